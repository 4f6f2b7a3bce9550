"""Files of one JSON object a line, each line with a checksum: what a run appends to while it lives.

In:  records, as plain values or msgspec structs; a path to read.
Out: one write() a line; the records back, without a torn end.
Never rewrites a line, never returns a damaged one; cuts nothing before it appends.

A line is its record with `attempt` in front and `crc` behind, the CRC-32 of the line without it.

A process that is killed in a write leaves part of a line, without its newline: that is left out. A whole line with a
wrong checksum is another matter. Where each line was synced before it counted (timeline, quarantine), it was damaged
afterwards, and what it said holds nevertheless: RunFailed. In the other files a machine that loses power may leave
any bytes behind the last sync, newlines among them, and nothing there was promised yet: at the end they are left out,
and counted; with an intact line after it a damaged one is RunFailed there too.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import RunFailed

_GO_BACK = "go back to a checkpoint that what is left still fits: --from STEP --branch"
_CRC_TAIL = re.compile(rb',"crc":"([0-9a-f]{8})"}\Z')


class JsonLines:
    """Appends records to a file, from any thread; what was appended is read back equal, however the process ends."""

    def __init__(self, path: Path, *, attempt: int, is_synced: bool) -> None:
        """Opens for appending; the first line takes the place of a torn end. `is_synced`: a record is on disk before
        `append` returns, and so a damaged line is RunFailed wherever it stands."""
        self.path = path
        self.attempt = attempt
        self.is_synced = is_synced
        # Another thread's line between a failed write and its cut would be cut with it.
        self._lock = threading.Lock()
        self._length_nbytes = 0
        self.num_lines = 0
        """Whole lines in the file; the number of the line that `append` returns."""
        self.last_attempt = 0
        """The highest among the lines that were there already."""
        for end_nbytes, record in _intact(path, is_synced=is_synced):
            self._length_nbytes, self.num_lines = end_nbytes, self.num_lines + 1
            self.last_attempt = max(self.last_attempt, int(record["attempt"]))
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with path.open("rb") as file:
                file.seek(self._length_nbytes)
                torn_end = file.read()
        except OSError as error:
            raise write_failure(path, error) from error
        self._has_torn_end = bool(torn_end)
        """It is cut by the first line that is appended: who opens the file may still refuse to go on with it."""
        self.num_damaged = torn_end.count(b"\n")
        """Whole lines at the end that were damaged, and are left out."""

    @property
    def is_empty(self) -> bool:
        return self._length_nbytes == 0

    def append(self, record: Mapping[str, Any] | msgspec.Struct) -> int:
        """Writes one whole line or none, and gives its number from 1; a full disk is a RunFailed that says so."""
        plain: dict[str, Any] = msgspec.to_builtins(record)
        line = encode_line({"attempt": self.attempt, **plain})
        with self._lock:
            try:
                if self._has_torn_end:
                    os.ftruncate(self._descriptor, self._length_nbytes)
                    self._has_torn_end = False
                num_written = os.write(self._descriptor, line)
                if num_written < len(line):  # how a disk that fills up in the middle of a line shows
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if self.is_synced:
                    os.fsync(self._descriptor)
            except OSError as error:
                if self._descriptor >= 0:
                    os.ftruncate(self._descriptor, self._length_nbytes)
                raise write_failure(self.path, error) from error
            self._length_nbytes += len(line)
            self.num_lines += 1
            return self.num_lines

    def sync(self) -> None:
        """All appended records are on disk afterwards."""
        with self._lock:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise write_failure(self.path, error) from error

    def close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1  # its number may be another file's soon, and a late writer must not meet that


def encode_line(record: Mapping[str, Any]) -> bytes:
    """The line of a record (at least one key, none called `crc`), newline included."""
    body = msgspec.json.encode(record)
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def read_lines(path: Path, *, is_synced: bool = False) -> list[dict[str, Any]]:
    """The records of a file in order, `attempt` included; none for a file that does not exist.

    A torn end is left out; a damaged line is RunFailed that names it, unless the file is not synced line by line and
    nothing intact comes after it.
    """
    return list(iter_lines(path, is_synced=is_synced))


def iter_lines(path: Path, *, is_synced: bool = False) -> Iterator[dict[str, Any]]:
    """As `read_lines`, one after the other: the metrics of a run of days don't fit into memory as objects."""
    return (record for _, record in _intact(path, is_synced=is_synced))


def write_failure(path: Path, error: OSError) -> RunFailed:
    """What to raise when a run's file can't be written; a full disk is told with what is left on it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free_nbytes = shutil.disk_usage(path.parent).free
        return RunFailed(f"{path}: the disk is full ({free_nbytes} bytes free); make room on it and start again")
    return RunFailed(f"{path}: can't be written: {error.strerror}")


def _intact(path: Path, *, is_synced: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The intact records, each with the offset of its line's end in the file."""
    if not path.exists():
        return
    end_nbytes = 0
    first_damaged = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise RunFailed(f"{path}: can't be read: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            maybe_record = _decode_line(line)
            if maybe_record is None:
                if is_synced and line.endswith(b"\n"):
                    expected = "every whole line as it was written: each was synced before it counted"
                    raise _damaged(path, number, expected, f"; or delete it from line {number} on, and {_GO_BACK}")
                first_damaged = first_damaged or number
            elif first_damaged:
                expected = f"lines as they were written, damaged at the very end at most; line {number} is intact"
                raise _damaged(path, first_damaged, expected)
            else:
                end_nbytes += len(line)
                yield end_nbytes, maybe_record


def _damaged(path: Path, number: int, expected: str, or_else: str = "") -> RunFailed:
    return RunFailed(
        f"{path}:{number}: line {number} is damaged\n"
        f"  expected: {expected}\n"
        "  got:      a line whose checksum is not that of its text\n"
        f"  to go on: restore the file from a copy (it was edited, or its disk is failing){or_else}"
    )


def _decode_line(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    tail = _CRC_TAIL.search(line[:-1])
    if tail is None:
        return None
    body = line[: tail.start()] + b"}"
    if zlib.crc32(body) != int(tail[1], 16):
        return None
    record: dict[str, Any] = msgspec.json.decode(body)
    return record
