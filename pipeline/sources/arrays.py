"""The `arrays` source: images and labels as NumPy files, read row by row and never loaded whole.

In:  an `ArraysSource`: one uncompressed .npz with `images` and `labels`, or two .npy files.
Out: one image array (H, W) or (H, W, C) a sample; uint8 or uint16.
Never unpickles, never maps the images: a mapped file that shrinks kills the process (SIGBUS) where a read fails
with OSError, and a mapping's pages would count as memory that grows with the data.

Fingerprint: SHA-256 of dtype, shape, all image bytes, labels and class names. The images' hash is kept in the user's
cache by path, size and change time, so it is computed once a file (1.7 s a GB).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
import time
import tokenize
import weakref
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from pipeline.errors import ConfigError, Problem
from pipeline.index_file import UNSETTLED_NS, cache_folder, cache_key, lock, write_atomically
from pipeline.job import ArraysSource
from pipeline.sources.manifest import MAX_NUMBERED_CLASSES
from pipeline.sources.protocol import RawSample
from pipeline.sources.split import rows_on_side

_HASH_CHUNK_NBYTES = 1 << 20
_LABELS_A_READ = 1 << 16
"""Few at a time: a worker's allocator keeps what it has freed, which for all at once was 8 bytes a sample."""
_ZIP_LOCAL_HEADER_NBYTES = 30
_ZIP_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class StoredArray:
    """Where an array's values lie in an open file: C order, from `offset` on."""

    descriptor: int
    """Closed with the last reference to this object."""
    name: str
    """How messages name it: `x.npz[images]` or `x.npy`."""
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_nbytes

    def row(self, row: int) -> np.ndarray:
        """One row in the file's byte order; OSError if the file has become too short."""
        data = self.bytes_at(row * self.row_nbytes, self.row_nbytes)
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def bytes_at(self, start: int, nbytes: int) -> bytes:
        # pread: no shared file position, so processes that inherited the descriptor don't disturb each other.
        data = os.pread(self.descriptor, nbytes, self.offset + start)
        if len(data) != nbytes:
            raise OSError(errno.EIO, f"ends early: {len(data)} of {nbytes} bytes at {self.offset + start}", self.name)
        return data


class Arrays:
    """Rows of an image array with their labels."""

    def __init__(self, config: ArraysSource, images: StoredArray, labels: np.ndarray, classes: tuple[str, ...]) -> None:
        self._images = images
        self._labels = labels
        self._classes = classes
        self._rows = rows_on_side(images.shape[0], config.split)
        self._fingerprint = _fingerprint(config, images, labels, classes)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> RawSample:
        row = int(self._rows[index])
        return RawSample(self._images.row(row), int(self._labels[row]))

    def describe(self, index: int) -> str:
        return f"{self._images.name}[{int(self._rows[index])}]"


def open_arrays(config: ArraysSource) -> Arrays:
    """The rows of the arrays; wrong kinds, shapes and labels are refused now, before any row is read."""
    if config.path.suffix == ".npz":
        if config.labels is not None:
            _refuse(config.path, "labels inside the .npz", "`labels` beside it", "remove `labels`")
        images = _open_member(config.path, "images")
        stored_labels = _open_member(config.path, "labels")
    else:
        if config.labels is None:
            _refuse(config.path, "`labels` beside an .npy", "none", "name the .npy with the labels, or use an .npz")
        images = _open_npy(config.path)
        stored_labels = _open_npy(config.labels)
    _check_images(config.path, images)
    labels = _load_labels(config, stored_labels, images.shape[0])
    classes = config.classes or tuple(str(number) for number in range(int(labels.max()) + 1))
    if int(labels.max()) >= len(classes):
        _refuse(config.path, f"labels below {len(classes)}, the number of `classes`", str(labels.max()), "add classes")
    source = Arrays(config, images, labels, classes)
    if not len(source):
        _refuse(config.path, "samples on this side of the split", "none", "change `held_out` or `salt`")
    return source


def _open_npy(path: Path) -> StoredArray:
    try:
        with open(path, "rb") as file:
            return _stored_array(path, file, path.name)
    except OSError as error:
        _refuse(path, "a NumPy file", str(error.strerror), "correct the path")


def _open_member(path: Path, member: str) -> StoredArray:
    """An array inside an .npz where it lies; possible because `np.savez` stores without compressing."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{member}.npy")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ZIP_ENCRYPTED:
                way_out = "write it with np.savez, not np.savez_compressed"
                _refuse(path, f"{member!r} stored as it is", "compressed or encrypted", way_out)
            archive.open(info).close()  # checks the local header, which is read below
        with open(path, "rb") as file:
            # The local header repeats the name and may carry other extra fields than the central directory.
            file.seek(info.header_offset + _ZIP_LOCAL_HEADER_NBYTES - 4)
            name_nbytes, extra_nbytes = struct.unpack("<HH", file.read(4))
            file.seek(name_nbytes + extra_nbytes, os.SEEK_CUR)
            return _stored_array(path, file, f"{path.name}[{member}]")
    except KeyError:
        _refuse(path, f"an array named {member!r}", "none", "np.savez(path, images=images, labels=labels)")
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # RuntimeError: a kind that zipfile does not know
        _refuse(path, "an .npz file", getattr(error, "strerror", None) or str(error), "correct the path")


def _stored_array(path: Path, file: BinaryIO, name: str) -> StoredArray:
    """Reads the .npy header at the file's position; the values follow it."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:  # NumPy parses the header as Python
        got = f"{name}: {str(error).splitlines()[0]}"
        _refuse(path, "a NumPy array", got, "write it with np.save or np.savez")
    if dtype.kind not in "iu" or not shape or min(shape) < 1 or (is_fortran and len(shape) > 1):
        order = "Fortran" if is_fortran else "C"
        _refuse(path, f"{name}: whole numbers in C order, at least one", f"{dtype} {shape}, {order} order", "")
    descriptor = os.dup(file.fileno())
    array = StoredArray(descriptor=descriptor, name=name, offset=file.tell(), shape=shape, dtype=dtype)
    weakref.finalize(array, os.close, descriptor)
    if array.offset + array.nbytes > os.fstat(descriptor).st_size:
        _refuse(path, f"{name}: {array.nbytes} bytes of values", "a file that ends before them", "write it again")
    return array


def _check_images(path: Path, images: StoredArray) -> None:
    is_image = images.dtype.kind == "u" and images.dtype.itemsize <= 2
    has_shape = len(images.shape) == 3 or (len(images.shape) == 4 and 1 <= images.shape[3] <= 4)
    if not is_image or not has_shape or images.row_nbytes == 0:
        expected = "images of uint8 or uint16, (N, H, W) or (N, H, W, 1 to 4)"
        _refuse(path, expected, f"{images.dtype} {images.shape}", "convert and transpose them before saving")


def _load_labels(config: ArraysSource, stored: StoredArray, num_images: int) -> np.ndarray:
    path = config.labels or config.path
    if stored.shape != (num_images,):
        _refuse(path, f"labels of shape ({num_images},), one an image", str(stored.shape), "")
    labels, size = np.empty(num_images, np.int32), stored.dtype.itemsize
    for start in range(0, num_images, _LABELS_A_READ):
        num_read = min(_LABELS_A_READ, num_images - start)
        read = np.frombuffer(stored.bytes_at(start * size, num_read * size), stored.dtype)
        for worst in (read.min(), read.max()):
            if not 0 <= worst < MAX_NUMBERED_CLASSES:
                expected = f"labels from 0 to {MAX_NUMBERED_CLASSES - 1}"
                _refuse(path, expected, str(worst), "number the classes 0, 1, 2, ...")
        labels[start : start + num_read] = read
    return labels


def _fingerprint(config: ArraysSource, images: StoredArray, labels: np.ndarray, classes: tuple[str, ...]) -> str:
    split = config.split.model_dump() if config.split else None
    described = json.dumps([images.dtype.str, images.shape, classes, split], sort_keys=True)
    sha256 = hashlib.sha256(b"headrace arrays 1" + described.encode())
    sha256.update(np.ascontiguousarray(labels, "<i4").data)  # no copies: an allocator would keep what they took
    sha256.update(bytes.fromhex(_content_sha256(config.path, images)))
    return sha256.hexdigest()


def _content_sha256(path: Path, images: StoredArray) -> str:
    """Hash of the image bytes, from the cache if the file has not changed since."""
    status = os.fstat(images.descriptor)
    state = [status.st_ino, status.st_size, status.st_ctime_ns, images.offset]
    cached = cache_folder() / (cache_key({"arrays": os.path.abspath(path)}) + ".sha256.json")
    with lock(cached):  # of several workers one hashes, the others wait for what it finds
        try:
            known = json.loads(cached.read_bytes())
            if known["state"] == state:
                return str(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there or damaged: hash again
        started_ns = time.time_ns()
        sha256 = hashlib.sha256()
        for start in range(0, images.nbytes, _HASH_CHUNK_NBYTES):
            sha256.update(images.bytes_at(start, min(_HASH_CHUNK_NBYTES, images.nbytes - start)))
        if status.st_ctime_ns <= started_ns - UNSETTLED_NS:
            write_atomically(cached, [json.dumps({"state": state, "sha256": sha256.hexdigest()}).encode()])
    return sha256.hexdigest()


def _refuse(path: Path, expected: str, got: str, way_out: str) -> NoReturn:
    raise ConfigError(Problem(file=str(path), line=0, path="", expected=expected, got=got, way_out=way_out))
