"""Reassembly: where an arriving slice belongs, and which batches are complete.

In:  slice headers, and the training loop's taking of batches.
Out: `Placement`s or reasons to drop; the bitmap of what has arrived.
Pure: holds no pixels; the window bounds its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.slice_header import SliceHeader
from pipeline.timeline import BatchRange, Timeline


class Placement(NamedTuple):
    """Rows first_row .. first_row + (stop - start) of the batch's buffer."""

    step: int
    first_row: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A slice that does not fit: `reason` is a counter's name."""

    reason: str


class Reassembly:
    """Each position is placed in exactly one batch; a batch is complete when all its positions have arrived."""

    def __init__(self, timeline: Timeline, *, stream: str, incarnation: int, window: int, head_step: int) -> None:
        self.timeline = timeline
        self.stream = stream
        self.incarnation = incarnation
        self.window = window
        self.head_step = head_step
        self._batches: dict[int, BatchRange] = {}
        self._arrived: dict[int, int] = {}
        """step -> bitmap of the batch's rows."""

    @property
    def ended(self) -> bool:
        """True once every batch was taken."""
        return self.head_step >= self.timeline.num_steps

    def place(self, header: SliceHeader) -> Placement | Dropped:
        """Where the slice goes, or why it is dropped; changes nothing."""
        if header.stream != self.stream or header.incarnation != self.incarnation:
            return Dropped("wrong_incarnation")
        for step in self._window_steps():
            batch = self._batch(step)
            if batch.start <= header.start and header.stop <= batch.stop:
                if batch.recipe != header.recipe:
                    return Dropped("wrong_recipe")
                present = self._bits(batch, header) & self._arrived.get(step, 0)
                if present:
                    # Part of it can be here only if it was given up and leased in smaller parts: those will come.
                    return Dropped("twin")
                return Placement(step, header.start - batch.start)
        return Dropped("outside_window")

    def mark(self, header: SliceHeader, placement: Placement) -> bool:
        """The slice's bytes are in place; True if its batch is now complete."""
        batch = self._batch(placement.step)
        arrived = self._arrived.get(placement.step, 0) | self._bits(batch, header)
        self._arrived[placement.step] = arrived
        return self.is_complete(placement.step)

    def awaits(self, position: int) -> bool:
        """True if the position is in the window and has not arrived: only then may it be made otherwise."""
        for step in self._window_steps():
            batch = self._batch(step)
            if batch.start <= position < batch.stop:
                return not self._arrived.get(step, 0) >> (position - batch.start) & 1
        return False

    def is_complete(self, step: int) -> bool:
        """True once every position of the batch has arrived."""
        batch = self._batch(step)
        return self._arrived.get(step, 0) == (1 << (batch.stop - batch.start)) - 1

    def take_head(self) -> BatchRange:
        """The head batch leaves the window; it must be complete."""
        assert self.is_complete(self.head_step)
        batch = self._batches.pop(self.head_step)
        del self._arrived[self.head_step]
        self.head_step += 1
        return batch

    def first_untouched_step(self) -> int:
        """The first step from which on nothing has arrived: no earlier one may still change."""
        touched = [step for step, rows in self._arrived.items() if rows]
        return max(touched, default=self.head_step - 1) + 1

    def change(self, timeline: Timeline) -> None:
        """Batches of which nothing has arrived are cut by this timeline from now on; it has the others as they are."""
        self.timeline = timeline
        for step in [step for step in self._batches if not self._arrived.get(step)]:
            del self._batches[step]
        assert all(timeline.batch(step) == batch for step, batch in self._batches.items())

    def arrived(self) -> bytes:
        """Bitmap of the window, little-endian; bit i is the position `start of the head batch + i`."""
        if self.ended:
            return b""
        head_start = self._batch(self.head_step).start
        bits = 0
        for step, rows in self._arrived.items():
            bits |= rows << (self._batch(step).start - head_start)
        return bits.to_bytes((bits.bit_length() + 7) // 8, "little")

    def _window_steps(self) -> range:
        return range(self.head_step, min(self.head_step + self.window, self.timeline.num_steps))

    def _batch(self, step: int) -> BatchRange:
        batch = self._batches.get(step)
        if batch is None:
            batch = self._batches[step] = self.timeline.batch(step)
        return batch

    @staticmethod
    def _bits(batch: BatchRange, header: SliceHeader) -> int:
        return ((1 << (header.stop - header.start)) - 1) << (header.start - batch.start)
