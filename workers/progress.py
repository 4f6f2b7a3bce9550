"""What a worker is doing, readable by its pool even after the worker's death.

In:  the worker's coordinates, sample by sample.
Out: a small memory-mapped file in the pool's runtime directory; `Progress` records read from it.
One write of 32 bytes a sample; no message, no system call.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from pipeline.lease_events import IDLE

_COUNTS = struct.Struct("=qqqq")  # counter, position, delivered slices, attempt
_STREAM = struct.Struct("=q16sH")  # incarnation, recipe under probe, length of the stream's name
_STREAM_OFFSET = 64
_NAME_OFFSET = _STREAM_OFFSET + _STREAM.size
_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A worker's last signs of life."""

    counter: int
    """Rises with all that is begun, from 1 on when the worker can begin."""
    position: int
    """The sample in work; BUILDING or OPENING before the first one, IDLE between leases."""
    num_delivered: int
    stream: str
    incarnation: int
    attempt: int = 0
    """0 for the sample itself, 1 for its first substitute, and so on."""
    probed: str = ""
    """The recipe, while it is only tried."""

    @property
    def has_begun(self) -> bool:
        """It had all that it needs for its work."""
        return self.counter > 0


class ProgressSlot:
    """One worker's file; the worker writes, the pool reads."""

    def __init__(self, path: Path) -> None:
        with open(path, "a+b") as file:
            file.truncate(_SIZE)
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._counter = 0
        self._num_delivered = 0

    def start(self) -> None:
        """The worker holds no sample yet."""
        _COUNTS.pack_into(self._memory, 0, 0, IDLE, 0, 0)

    def begin_slice(self, stream: str, incarnation: int, probed: str = "") -> None:
        """What is begun from now on belongs to this stream; `probed`: and to the probe of this recipe."""
        name = stream.encode()[: _SIZE - _NAME_OFFSET]
        _STREAM.pack_into(self._memory, _STREAM_OFFSET, incarnation, probed.encode(), len(name))
        self._memory[_NAME_OFFSET : _NAME_OFFSET + len(name)] = name

    def begin_sample(self, position: int, attempt: int = 0) -> None:
        """This sample, or this substitute of it, is in work; or BUILDING, or OPENING."""
        self._counter += 1
        _COUNTS.pack_into(self._memory, 0, self._counter, position, self._num_delivered, attempt)

    def end_slice(self, *, delivered: bool) -> None:
        """Nothing is in work."""
        self._counter += 1
        self._num_delivered += delivered
        _COUNTS.pack_into(self._memory, 0, self._counter, IDLE, self._num_delivered, 0)

    def read(self) -> Progress:
        """What the worker wrote last."""
        counter, position, num_delivered, attempt = _COUNTS.unpack_from(self._memory, 0)
        incarnation, probed, length = _STREAM.unpack_from(self._memory, _STREAM_OFFSET)
        stream = self._memory[_NAME_OFFSET : _NAME_OFFSET + length].decode(errors="replace")
        return Progress(
            counter=counter,
            position=position,
            num_delivered=num_delivered,
            stream=stream,
            incarnation=incarnation,
            attempt=attempt,
            probed=probed.rstrip(b"\0").decode(errors="replace"),
        )

    def close(self) -> None:
        """Release the mapping; the file goes with its directory."""
        self._memory.close()
