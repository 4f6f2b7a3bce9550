"""Samples that are files, found through an index: what `folder` and `manifest` share.

In:  an index and the message names of its classes.
Out: encoded bytes, exactly as many as the index says: a file that changed is not the sample the fingerprint names.
Never decodes, never lists a folder.
"""

from __future__ import annotations

import errno
import os
import stat

from pipeline.index_file import Index, printable
from pipeline.sample_causes import CHANGED, INDEX_ANEW
from pipeline.sources.protocol import RawSample


class IndexedFiles:
    """A source over an index; reading is the only thing that touches the data."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._classes = tuple(printable(name) for name in index.classes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of paths, sizes, labels and classes (and contents, if asked): not of mtimes or of the place."""
        return self._index.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> RawSample:
        """The file's bytes and label; OSError if it is gone, is no regular file, or has another size than indexed."""
        path = os.path.join(self._index.base, self._index.path(index))
        data = _read_exactly(path, self._index.size(index))
        return RawSample(data, self._index.label(index))

    def describe(self, index: int) -> str:
        return printable(self._index.path(index))


def _read_exactly(path: bytes, nbytes: int) -> bytes:
    # O_NONBLOCK: opening a named pipe that took a sample's place would otherwise wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
        chunks = []
        missing_nbytes = nbytes
        while status.st_size == nbytes and missing_nbytes > 0:
            chunk = os.read(descriptor, missing_nbytes)
            if not chunk:
                break
            chunks.append(chunk)
            missing_nbytes -= len(chunk)
    finally:
        os.close(descriptor)
    if status.st_size != nbytes or missing_nbytes:
        found = f"{status.st_size} bytes, {nbytes} then"
        raise OSError(errno.ESTALE, f"{CHANGED} ({found}); {INDEX_ANEW}", os.fsdecode(path))
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
