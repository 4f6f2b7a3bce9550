"""The index of a folder or manifest: one memory-mapped file in the user's cache, never in the data folder.

In:  samples (path, size, label) in order, from a scan of the data; or the file such a scan left.
Out: `Index`: path, size and label of sample i, at a few bytes of private memory for any number of samples.
Never lists folders, never opens an image.

The file: 8 bytes of magic, 8 bytes with the length of a JSON head, the head, then these arrays (little endian):
path ends (int64), sizes (int64), labels (int32), path bytes. The head has what it takes to trust them (lengths,
xxh3 of the arrays) and the `witnesses`: files and folders whose mtime and size tell that a new scan is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.errors import ConfigError, Problem

MAGIC = b"HRINDEX1"
UNSETTLED_NS = 2_000_000_000
"""A witness that changed less than 2 s before the scan may change again within one tick of its clock (FAT and some
network file systems count 1 to 2 s), so such an index is not trusted a second time. Git guards its index so too."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A file or folder whose change makes an index stale."""

    path: bytes
    mtime_ns: int
    nbytes: int

    @classmethod
    def of(cls, path: bytes) -> Witness:
        status = os.stat(path)
        return cls(path, status.st_mtime_ns, status.st_size)


@dataclass(slots=True)
class IndexBuilder:
    """Collects samples in their final order; 20 bytes and the path each."""

    classes: tuple[bytes, ...] = ()
    """Class names as they are on disk; a label is an index into them."""
    paths: bytearray = field(default_factory=bytearray)
    path_ends: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    content_sha256: Any = None
    """A running SHA-256 over each file's SHA-256, when the fingerprint is to cover the bytes."""
    witnesses: list[Witness] = field(default_factory=list)
    started_ns: int = field(default_factory=time.time_ns)

    def add(self, path: bytes, size: int, label: int) -> None:
        self.paths += path
        self.path_ends.append(len(self.paths))
        self.sizes.append(size)
        self.labels.append(label)

    def sections(self) -> list[bytes]:
        """The arrays in file order, little endian whatever the machine."""
        return [
            np.asarray(self.path_ends).astype("<i8").tobytes(),
            np.asarray(self.sizes).astype("<i8").tobytes(),
            np.asarray(self.labels).astype("<i4").tobytes(),
            bytes(self.paths),
        ]


class Index:
    """Samples by number, read from a mapped file; equal fingerprints mean equal paths, sizes, labels and classes."""

    def __init__(self, head: dict[str, Any], arrays: memoryview) -> None:
        num = int(head["num_samples"])
        self.fingerprint = str(head["fingerprint"])
        self.classes = tuple(bytes.fromhex(name) for name in head["classes"])
        self._path_ends = np.frombuffer(arrays, "<i8", num, 0)
        self._sizes = np.frombuffer(arrays, "<i8", num, 8 * num)
        self._labels = np.frombuffer(arrays, "<i4", num, 16 * num)
        self._paths = arrays[20 * num :]

    def __len__(self) -> int:
        return len(self._sizes)

    def path(self, index: int) -> bytes:
        start = int(self._path_ends[index - 1]) if index else 0
        return bytes(self._paths[start : int(self._path_ends[index])])

    def size(self, index: int) -> int:
        return int(self._sizes[index])

    def label(self, index: int) -> int:
        return int(self._labels[index])


def cache_folder() -> Path:
    """The user's cache for indexes, made if need be; a folder that can't be written is a ConfigError."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rule: a relative value is to be ignored.
    folder = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "headrace" / "index"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write into {folder}")
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            Problem(
                file=str(folder),
                line=0,
                path="",
                expected="a folder that can be written, for the index of the data",
                got=str(error),
                way_out="set XDG_CACHE_HOME to a folder of yours",
            )
        ) from error
    return folder


def cache_key(parts: dict[str, Any]) -> str:
    """Names the cache file of one configuration; a new format of ours gets new names."""
    text = json.dumps({"format": MAGIC.decode(), **parts}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def cached_index(key: str, build: Callable[[], IndexBuilder]) -> tuple[Index, Path]:
    """The index under `key`, and its file: `build` runs only if there is none that is whole and fresh.

    Of several processes that start at once, one builds while the others wait, then map what it made.
    """
    file = cache_folder() / f"{key}.index"
    index = open_index(file)
    if index is None:
        with _lock(file.with_suffix(".lock")):
            index = open_index(file)
            if index is None:
                write_index(file, build())
                index = open_index(file, trusted=True)
    assert index is not None, f"{file} can't be read back"
    return index, file


def open_index(file: Path, *, trusted: bool = False) -> Index | None:
    """The index in `file`, or None if it is missing, damaged or stale (`trusted`: just written, so not stale)."""
    try:
        with open(file, "rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: an empty file can't be mapped
        return None
    view = memoryview(mapped)
    head_nbytes = int.from_bytes(view[8:16], "little")
    if bytes(view[:8]) != MAGIC or 16 + head_nbytes > len(view):
        return None
    arrays = view[16 + head_nbytes :]
    try:
        head = json.loads(bytes(view[16 : 16 + head_nbytes]))
        whole = head["arrays_nbytes"] == len(arrays) and head["arrays_xxh3"] == xxhash.xxh3_128_hexdigest(arrays)
        if not whole or not (trusted or _is_fresh(head)):
            return None
        return Index(head, arrays)
    except (ValueError, KeyError, TypeError):
        return None


def write_index(file: Path, builder: IndexBuilder) -> None:
    """Replaces `file` in one step. Callers hold the lock, so the temporary name is theirs alone."""
    sections = builder.sections()
    checksum = xxhash.xxh3_128()
    for section in sections:
        checksum.update(section)
    head = {
        "num_samples": len(builder.sizes),
        "classes": [name.hex() for name in builder.classes],
        "fingerprint": _fingerprint(builder, sections),
        "arrays_nbytes": sum(map(len, sections)),
        "arrays_xxh3": checksum.hexdigest(),
        "started_ns": builder.started_ns,
        "witnesses": [[witness.path.hex(), witness.mtime_ns, witness.nbytes] for witness in builder.witnesses],
    }
    head_bytes = json.dumps(head).encode()
    temporary = file.with_suffix(".tmp")
    with open(temporary, "wb") as out:
        out.write(MAGIC + len(head_bytes).to_bytes(8, "little") + head_bytes)
        for section in sections:
            out.write(section)
    temporary.replace(file)


def printable(name: bytes) -> str:
    """A file name as a message may show it: on one line and valid UTF-8, odd bytes and characters as escapes."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fingerprint(builder: IndexBuilder, sections: list[bytes]) -> str:
    sha256 = hashlib.sha256(b"headrace index 1\0")
    for part in (*builder.classes, b"\0".join(builder.classes)):
        sha256.update(len(part).to_bytes(8, "little"))
    sha256.update(b"\0".join(builder.classes))
    for section in sections:
        sha256.update(len(section).to_bytes(8, "little"))
        sha256.update(section)
    if builder.content_sha256 is not None:
        sha256.update(builder.content_sha256.digest())
    return sha256.hexdigest()


def _is_fresh(head: dict[str, Any]) -> bool:
    """True if no witness has changed since the scan, and none changed so shortly before it that we can't tell."""
    newest_ns = int(head["started_ns"]) - UNSETTLED_NS
    for path, mtime_ns, nbytes in head["witnesses"]:
        try:
            status = os.stat(bytes.fromhex(path))
        except OSError:
            return False
        if status.st_mtime_ns != mtime_ns or status.st_size != nbytes or mtime_ns > newest_ns:
            return False
    return True


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Held by one process at a time; the system releases it if that process is killed."""
    with open(file, "wb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
