"""The timeline cuts a stream into batches, and batches into slices.

In:  the source's size, last-batch policy, end position, timeline entries; then step numbers.
Out: `BatchRange`s and slices, as ranges of positions.
Pure and O(1) in the length of the stream.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

LastBatch = Literal["drop", "keep", "wrap"]


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """From this batch on, this recipe and batch size."""

    start: int
    """First position of the first batch."""
    step: int
    """Number of the first batch."""
    recipe: str
    """The recipe's digest."""
    batch_size: int
    file: str = ""
    """The chain file it came from, "" for a chain inside the job file: an edit of that file replaces it."""


class TimelineChange(msgspec.Struct, frozen=True, kw_only=True):
    """One line of timeline.jsonl: from this step on, these entries stand in the place of all others."""

    from_step: int
    entries: tuple[TimelineEntry, ...]
    """In order; the first one's step is `from_step`."""
    why: str
    """For people: "start", "edit of FILE", "headrace swap", "resume with batch_size 32"."""
    files: dict[str, str] = {}
    """Chain files that were read for it -> digest of the recipe each held: one that holds another when the run is
    resumed was edited meanwhile."""


class BatchRange(NamedTuple):
    """One batch: positions start..stop-1 under one recipe."""

    step: int
    start: int
    stop: int
    recipe: str


class Timeline:
    """Every step has exactly one batch; a position is in at most one (an epoch's dropped tail is in none).

    Entries that begin at the end of the stream or past it are left out: a job whose epochs were lowered still runs.
    """

    def __init__(
        self, entries: Sequence[TimelineEntry], *, num_samples: int, last_batch: LastBatch, end_position: int
    ) -> None:
        if not entries or any(a.step >= b.step or a.start >= b.start for a, b in pairwise(entries)):
            raise ValueError("a timeline needs entries with rising steps and positions")
        if num_samples < 1 or any(entry.batch_size < 1 or entry.start < 0 or entry.step < 0 for entry in entries):
            raise ValueError("a timeline needs num_samples and batch sizes from 1, positions and steps from 0")
        entries = [entry for entry in entries if entry is entries[0] or entry.start < end_position]
        self.entries = tuple(entries)
        self.num_samples = num_samples
        self.last_batch = last_batch
        self.end_position = end_position
        self._first_steps = [entry.step for entry in entries]
        self._starts = [entry.start for entry in entries]
        self.num_steps = entries[-1].step + self._num_batches(entries[-1])
        """Steps up to the end of the stream, those before the first entry included."""

    def batch(self, step: int) -> BatchRange:
        """The batch of `step`; IndexError outside first step .. num_steps - 1."""
        if not self.entries[0].step <= step < self.num_steps:
            raise IndexError(f"step {step} is not in {self.entries[0].step}..{self.num_steps - 1}")
        index = max(0, bisect_right(self._first_steps, step) - 1)
        entry = self.entries[index]
        start, stop = self._range(entry, step - entry.step)
        # Under `wrap` the last batch before the end was short: more epochs begin where it stopped.
        next_start = self._starts[index + 1] if index + 1 < len(self._starts) else stop
        return BatchRange(step, start, min(stop, next_start), entry.recipe)

    def changed(self, change: TimelineChange) -> Timeline:
        """The timeline after a change; what lies before its step is untouched."""
        return Timeline(
            after(self.entries, change),
            num_samples=self.num_samples,
            last_batch=self.last_batch,
            end_position=self.end_position,
        )

    def start_of(self, step: int) -> int:
        """First position of the batch of `step`; the end of the stream for its last step's successor."""
        return self.batch(step).start if step < self.num_steps else self.end_position

    def entry_at(self, step: int) -> TimelineEntry:
        """The entry that a step stands under; the last one for steps past the end."""
        return self.entries[max(0, bisect_right(self._first_steps, step) - 1)]

    def step_from(self, position: int) -> int:
        """The first step whose batch starts at this position or after it; num_steps if there is none."""
        steps = range(self.entries[0].step, self.num_steps)
        return steps.start + bisect_left(steps, position, key=lambda step: self.batch(step).start)

    def recipe_at(self, position: int) -> str:
        """The recipe's digest at a position of the stream."""
        return self.entries[max(0, bisect_right(self._starts, position) - 1)].recipe

    def _range(self, entry: TimelineEntry, number: int) -> tuple[int, int]:
        size, epoch_size = entry.batch_size, self.num_samples
        if self.last_batch == "wrap":
            start = entry.start + number * size
            return start, min(start + size, self.end_position)
        first_epoch, first_offset = divmod(entry.start, epoch_size)
        in_first = self._per_epoch(epoch_size - first_offset, size)
        if number < in_first:
            epoch, start = first_epoch, entry.start + number * size
        else:
            epochs, place = divmod(number - in_first, self._per_epoch(epoch_size, size))
            epoch = first_epoch + 1 + epochs
            start = epoch * epoch_size + place * size
        return start, min(start + size, (epoch + 1) * epoch_size, self.end_position)

    def _num_batches(self, entry: TimelineEntry) -> int:
        """Batches from the entry to the end of the stream."""
        size, left = entry.batch_size, self.end_position - entry.start
        if left <= 0:
            return 0
        if self.last_batch == "wrap":
            return -(-left // size)
        first_epoch, first_offset = divmod(entry.start, self.num_samples)
        last_epoch, last_offset = divmod(self.end_position, self.num_samples)
        if first_epoch == last_epoch:
            return self._per_epoch(left, size)
        whole = (last_epoch - first_epoch - 1) * self._per_epoch(self.num_samples, size)
        return self._per_epoch(self.num_samples - first_offset, size) + whole + self._per_epoch(last_offset, size)

    def _per_epoch(self, num_samples: int, batch_size: int) -> int:
        return num_samples // batch_size if self.last_batch == "drop" else -(-num_samples // batch_size)


def after(entries: Sequence[TimelineEntry], change: TimelineChange) -> tuple[TimelineEntry, ...]:
    """The entries once the change is made."""
    return (*(entry for entry in entries if entry.step < change.from_step), *change.entries)


def slices_of(batch: BatchRange, slice_size: int) -> list[tuple[int, int]]:
    """The batch's ranges of at most slice_size positions, in order, cut from the batch's start."""
    return [(start, min(start + slice_size, batch.stop)) for start in range(batch.start, batch.stop, slice_size)]
