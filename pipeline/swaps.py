"""Swaps: what a new recipe makes of a timeline.

In:  a timeline, a boundary, a recipe's digest and the file it came from.
Out: the `TimelineChange` to be written, or None where nothing would change.
Pure. Choosing the boundary is `trainer/`'s matter: it knows what has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipeline.timeline import LastBatch, Timeline, TimelineChange, TimelineEntry


def schedule(
    first: TimelineEntry,
    later: Sequence[tuple[int, str, str]],
    *,
    num_samples: int,
    last_batch: LastBatch,
    end_position: int,
) -> tuple[TimelineEntry, ...]:
    """The entries of a job's chain schedule: each begins with the first batch that starts in its epoch, or after it.

    `later`: (epoch, recipe digest, file) with rising epochs above 0; what would begin past the end is left out.
    """
    entries = [first]
    for epoch, recipe, file in later:
        timeline = Timeline(entries, num_samples=num_samples, last_batch=last_batch, end_position=end_position)
        step = timeline.step_from(epoch * num_samples)
        if step < timeline.num_steps:
            start = timeline.start_of(step)
            entry = msgspec.structs.replace(first, start=start, step=step, recipe=recipe, file=file)
            # A batch may span epochs, and a stream may begin in a later one: the latest that has begun holds.
            entries = [*(earlier for earlier in entries if earlier.step < step), entry]
    return tuple(entries)


def swap_by_command(timeline: Timeline, step: int, recipe: str, file: str, why: str) -> TimelineChange | None:
    """From `step` on the new recipe, until the next scheduled entry after it."""
    later = tuple(entry for entry in timeline.entries if entry.step > step)
    return _change(timeline, step, recipe, file, later, why)


def swap_by_edit(timeline: Timeline, step: int, recipe: str, file: str, why: str) -> TimelineChange | None:
    """The new recipe wherever the file stands at or after `step`; other files' entries stay."""
    later = tuple(
        msgspec.structs.replace(entry, recipe=recipe) if entry.file == file else entry
        for entry in timeline.entries
        if entry.step > step
    )
    present = timeline.entry_at(step)
    held = recipe if present.file == file else present.recipe
    change = _change(timeline, step, held, present.file, later, why)
    return change and msgspec.structs.replace(change, files={file: recipe})


def previous_recipe(timeline: Timeline, step: int) -> TimelineEntry | None:
    """What `--to previous` goes back to: the last other recipe that batches up to `step` are made with.

    Of two swaps at one boundary the first one is not gone back to: no batch was ever made with it, so nobody has seen
    it work, and the timeline, which is all that a resumed run knows, does not tell of it.
    """
    present = timeline.entry_at(step).recipe
    return next((entry for entry in reversed(timeline.entries) if entry.step <= step and entry.recipe != present), None)


def _change(
    timeline: Timeline, step: int, recipe: str, file: str, later: tuple[TimelineEntry, ...], why: str
) -> TimelineChange | None:
    present = timeline.entry_at(step)
    first = TimelineEntry(
        start=timeline.start_of(step), step=step, recipe=recipe, batch_size=present.batch_size, file=file
    )
    entries = (first, *later)
    if recipe == present.recipe and later == tuple(entry for entry in timeline.entries if entry.step > step):
        return None
    return TimelineChange(from_step=step, entries=entries, why=why)
