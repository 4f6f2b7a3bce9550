"""The index of a folder or manifest: one memory-mapped file in the user's cache, never in the data folder.

In:  samples (path, size, label) in order, from a scan of the data; or the file such a scan left.
Out: `Index`: path, size and label of sample i, at a few bytes of private memory for any number of samples.
Never lists folders, never opens an image.

The file: 8 bytes of magic, the xxh3-128 of all that follows, 8 bytes with the length of a JSON head, the head, then
these arrays (little endian): path ends (int64), sizes (int64), labels (int32), path bytes, and change times (int64)
if the fingerprint covers content.

A new scan is made when a witness (each folder that was listed, the CSV of a manifest) has another change time or
size; with `content`, also when any file has. NOT noticed otherwise: a file rewritten in place, until it is read
and has another size. To force a new scan, `touch` the folder or the CSV, or delete the cache folder. Change times
(ctime) can't be set back, as mtimes are by tar and rsync. They are no part of the fingerprint.

A scan that finds other samples gets a file of its own: a run that began with the earlier ones goes by theirs, and a
worker that starts days later must still find it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.errors import ConfigError, Problem

MAGIC = b"HRINDEX1"
_PREFIX = struct.Struct("<8s16sQ")
"""Magic, checksum of everything after it (the length too), length of the head."""
UNSETTLED_NS = 2_000_000_000
"""A witness that changed less than 2 s before the scan may change again within one tick of its clock (some network
file systems count whole seconds), so such an index is not trusted a second time. Git guards its index so too."""
NUM_KEPT = 8
"""Indexes of one configuration that stay however old they are: runs whose workers live for months still find theirs."""
KEPT_S = 30 * 24 * 3600.0
"""... and all that a process has opened within 30 days: each worker that starts opens its own, and jobs run for days.
By time and not by locks, since a run whose workers are all dead holds none. Costs a stale index (about 60 MB for a
million files) for each time in a month that the data changed between two starts."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A file or folder whose change makes an index stale."""

    path: bytes
    changed_ns: int
    nbytes: int

    @classmethod
    def of(cls, path: bytes) -> Witness:
        status = os.stat(path)
        return cls(path, status.st_ctime_ns, status.st_size)


@dataclass(slots=True)
class IndexBuilder:
    """Collects samples in their final order; 20 bytes and the path each."""

    base: bytes
    """The folder that paths are relative to; absolute."""
    content: bool = False
    """True: the fingerprint covers each file's bytes too."""
    classes: tuple[bytes, ...] = ()
    """Class names as they are on disk; a label is an index into them."""
    paths: bytearray = field(default_factory=bytearray)
    path_ends: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    changed_ns: array[int] = field(default_factory=lambda: array("q"))
    contents: Any = field(default_factory=hashlib.sha256)
    """Over each file's SHA-256, in order."""
    witnesses: list[Witness] = field(default_factory=list)
    started_ns: int = field(default_factory=time.time_ns)

    def add(self, path: bytes, size: int, label: int) -> None:
        """One more sample; with `content` its file is read now. A size of -1: there is no such file."""
        self.paths += path
        self.path_ends.append(len(self.paths))
        self.sizes.append(size)
        self.labels.append(label)
        if self.content and size >= 0:
            with open(os.path.join(self.base, path), "rb") as opened:
                self.contents.update(hashlib.file_digest(opened, "sha256").digest())
                self.changed_ns.append(os.fstat(opened.fileno()).st_ctime_ns)
        elif self.content:
            self.changed_ns.append(0)

    def sections(self) -> list[bytes]:
        """The arrays that the fingerprint covers, in file order, little endian whatever the machine."""
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
        self.base = bytes.fromhex(head["base"])
        self.classes = tuple(bytes.fromhex(name) for name in head["classes"])
        self._path_ends = np.frombuffer(arrays, "<i8", num, 0)
        self._sizes = np.frombuffer(arrays, "<i8", num, 8 * num)
        self._labels = np.frombuffer(arrays, "<i4", num, 16 * num)
        self._paths = arrays[20 * num : 20 * num + head["paths_nbytes"]]
        self._changed_ns = np.frombuffer(arrays, "<i8", num if head["content"] else 0, 20 * num + head["paths_nbytes"])

    def __len__(self) -> int:
        return len(self._sizes)

    def path(self, index: int) -> bytes:
        start = int(self._path_ends[index - 1]) if index else 0
        return bytes(self._paths[start : int(self._path_ends[index])])

    def size(self, index: int) -> int:
        return int(self._sizes[index])

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def files_are_unchanged(self) -> bool:
        """Each file that a `content` fingerprint covers is as it was; one stat a file, so minutes on a slow disk."""
        for index, changed_ns in enumerate(self._changed_ns):
            try:
                status = os.stat(os.path.join(self.base, self.path(index)))
                found = (status.st_ctime_ns, status.st_size)
            except OSError:
                found = (0, -1)
            if found != (changed_ns, self.size(index)):
                return False
        return True


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


def cached_index(key: str, build: Callable[[], IndexBuilder], wanted: str = "") -> Index:
    """The index under `key`: `build` runs only if there is none that is whole and fresh.

    An index whose fingerprint is `wanted` need not be fresh: it is the one that a run goes by, to its end, whatever
    other indexes are made under the same key meanwhile.
    Of several processes that start at once, one builds while the others wait, then map what it made.
    """
    if (kept := _kept_index(key, wanted)) is not None:
        return kept
    with lock(cache_folder() / f"{key}.index"):
        return _kept_index(key, wanted) or _new_index(key, build())


def open_index(file: Path, *, trusted: bool = False, wanted: str = "") -> Index | None:
    """The index in `file`, or None if it is missing, damaged or stale.

    `trusted`: just written, so not stale. `wanted`: an index with this fingerprint is taken, stale or not.
    """
    try:
        with open(file, "rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: an empty file can't be mapped
        return None
    view = memoryview(mapped)
    if len(view) < _PREFIX.size:
        return None
    magic, checksum, head_nbytes = _PREFIX.unpack_from(view)
    if magic != MAGIC or checksum != xxhash.xxh3_128_digest(view[24:]):
        return None
    mapped.madvise(mmap.MADV_DONTNEED)  # checking touched every page; only those in use shall count as memory
    head = json.loads(bytes(view[_PREFIX.size : _PREFIX.size + head_nbytes]))
    trusted = trusted or head["fingerprint"] == wanted
    if not trusted and not _witnesses_are_unchanged(head):
        return None
    index = Index(head, view[_PREFIX.size + head_nbytes :])
    return index if trusted or index.files_are_unchanged() else None


def write_index(key: str, builder: IndexBuilder) -> Path:
    """The file of an index, written: equal samples give the same name. Callers hold the key's lock."""
    sections = builder.sections()
    fingerprint = _fingerprint(builder, sections)
    sections.append(np.asarray(builder.changed_ns).astype("<i8").tobytes())
    head = {
        "fingerprint": fingerprint,
        "base": builder.base.hex(),
        "content": builder.content,
        "classes": [name.hex() for name in builder.classes],
        "num_samples": len(builder.sizes),
        "paths_nbytes": len(builder.paths),
        "started_ns": builder.started_ns,
        "witnesses": [[witness.path.hex(), witness.changed_ns, witness.nbytes] for witness in builder.witnesses],
    }
    head_bytes = json.dumps(head).encode()
    covered = [len(head_bytes).to_bytes(8, "little"), head_bytes, *sections]
    checksum = xxhash.xxh3_128()
    for part in covered:
        checksum.update(part)
    file = cache_folder() / f"{key}-{fingerprint}.index"
    write_atomically(file, [MAGIC, checksum.digest(), *covered])
    return file


def write_atomically(file: Path, parts: list[bytes]) -> None:
    """Replaces `file` in one step: whoever opens it finds all of the old or all of the new.

    Callers hold the lock, so the temporary name is theirs, and what a killed writer left is written over.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with open(temporary, "wb") as out:
            for part in parts:
                out.write(part)
        temporary.replace(file)
    except OSError:  # the disk is full, say: nothing half-written stays
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Held by one process at a time, beside `file`; the system releases it if that process is killed."""
    with open(file.with_name(f"{file.name}.lock"), "wb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def printable(name: bytes) -> str:
    """A file name as a message may show it: on one line and valid UTF-8, odd bytes and characters as escapes."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _kept_index(key: str, wanted: str) -> Index | None:
    for file in _candidates(key, wanted):
        if (index := open_index(file, wanted=wanted)) is not None:
            with suppress(OSError):  # removed since: what is mapped stays readable
                os.utime(file)
            return index
    return None


def _candidates(key: str, wanted: str) -> list[Path]:
    """The file of `wanted` first, then those that were used last.

    No path is made of `wanted`: a peer sent it. No more than a few, since each is read whole: a fresh one is always
    the newest but for late workers of earlier runs, and one that is missed is only made again.
    """
    files = _by_last_use(key)
    return [*(file for file in files if file.name == f"{key}-{wanted}.index"), *files[:NUM_KEPT]]


def _by_last_use(key: str) -> list[Path]:
    """Every index under `key`, the one that was used last first; also those of older versions."""
    return sorted(cache_folder().glob(f"{key}*.index"), key=_used_s, reverse=True)


def _used_s(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # another process has pruned it
        return 0.0


def _prune(key: str) -> None:
    """Remove the indexes that nobody has used for long, and what a killed writer left; callers hold the key's lock."""
    for file in _by_last_use(key)[NUM_KEPT:]:
        if time.time() - _used_s(file) > KEPT_S:
            file.unlink(missing_ok=True)
    for left in cache_folder().glob(f"{key}*.index.tmp"):
        left.unlink(missing_ok=True)


def _new_index(key: str, builder: IndexBuilder) -> Index:
    file = write_index(key, builder)
    _prune(key)
    index = open_index(file, trusted=True)
    assert index is not None, f"{file} can't be read back"
    return index


def _fingerprint(builder: IndexBuilder, sections: list[bytes]) -> str:
    class_names = json.dumps([name.hex() for name in builder.classes]).encode()
    sha256 = hashlib.sha256(b"headrace index 1")
    for section in (class_names, *sections, builder.contents.digest() if builder.content else b""):
        sha256.update(len(section).to_bytes(8, "little"))
        sha256.update(section)
    return sha256.hexdigest()


def _witnesses_are_unchanged(head: dict[str, Any]) -> bool:
    """True if no witness has changed since the scan, and none changed so shortly before it that we can't tell."""
    settled_ns = int(head["started_ns"]) - UNSETTLED_NS
    for path, changed_ns, nbytes in head["witnesses"]:
        try:
            status = os.stat(bytes.fromhex(path))
        except OSError:
            return False
        if (status.st_ctime_ns, status.st_size) != (changed_ns, nbytes) or changed_ns > settled_ns:
            return False
    return True
