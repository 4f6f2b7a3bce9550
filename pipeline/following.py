"""Following the job: what became of its chains, schedule, batch size and epochs while a run was down.

In:  the run's timeline and how it came about, the job's schedule as it is now, the first batch never delivered.
Out: one `TimelineChange` at that batch, or None where the timeline says the same.
Pure. A live swap holds as it would have in a running job; what was delivered is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from pipeline.timeline import Timeline, TimelineChange, TimelineEntry

START = "start"
"""Why the first change of a run was made."""
GIVEN = "timeline of an earlier run"
"""... where it was given one: such a run follows no chain of its job, however often it is resumed."""
RESCHEDULED = "resume with another chain or schedule"
RESIZED = "resume with batch_size"
EVALUATION_WAITS = "evaluations of a run compare under one chain only; it takes effect in the next run"
"""What is told of an edit of the file that they use, whether it is made while the run goes on or while it is down."""


def followed(
    timeline: Timeline, changes: Sequence[TimelineChange], job: Sequence[TimelineEntry], free_from_step: int
) -> TimelineChange | None:
    """What a resume writes before its first batch.

    timeline: the run's, with the job's present end; changes: all that the run wrote, oldest first;
    job: the entries that a new run of the job would begin with.
    """
    if free_from_step >= timeline.num_steps:
        return None
    since_schedule = _since_schedule(changes)
    if not since_schedule:
        return _resized(timeline, changes, job[0].batch_size, free_from_step)
    here, start = timeline.entry_at(free_from_step), timeline.start_of(free_from_step)
    present = msgspec.structs.replace(here, start=start, step=free_from_step)
    later = [entry for entry in timeline.entries if entry.step > free_from_step]
    base = since_schedule[0].entries
    before, now = _slots(base, timeline), _slots(_from(job, base[0].start), timeline)
    whys: list[str] = []
    files: dict[str, str] = {}
    if any(now.get(epoch) != chain for epoch, chain in before.items()):
        present, *later = _from(job, start)
        whys, files = [RESCHEDULED], files_of(job)
    else:
        files = _edited(changes, files_of(job))
        whys = [f"edit of {file} while the run was down" for file in files]
        present, *later = (
            msgspec.structs.replace(entry, recipe=files.get(entry.file, entry.recipe)) for entry in (present, *later)
        )
        standing = {(_epoch(entry, timeline), entry.file or entry.recipe) for entry in later}
        new = [entry for entry in job[1:] if _epoch(entry, timeline) not in before and entry.start > start]
        later += [entry for entry in new if (_epoch(entry, timeline), entry.file or entry.recipe) not in standing]
        files |= files_of(new)
        later.sort(key=lambda entry: entry.start)
    batch_size = job[0].batch_size
    if batch_size != here.batch_size:
        whys.append(f"{RESIZED} {batch_size}")
    first = msgspec.structs.replace(present, start=start, step=free_from_step, batch_size=batch_size)
    entries = _cut(timeline, first, [_at_epoch(entry, now, timeline) for entry in later])
    if _says_the_same(timeline, entries):
        return None
    return TimelineChange(
        from_step=free_from_step, entries=entries, why="; ".join(whys) or "resume with more epochs", files=files
    )


def past_short_batch(before: Timeline, now: Timeline, free_from_step: int) -> TimelineChange | None:
    """What more epochs need where the last batch of fewer was trained on and was short (`last_batch: wrap`).

    before, now: the same entries with the end as it was, and as it is. The next batch begins where that one stopped.
    """
    step = min(free_from_step, before.num_steps, now.num_steps) - 1
    if step < 0 or before.batch(step).stop >= now.batch(step).stop:
        return None
    start = before.batch(step).stop
    first = msgspec.structs.replace(now.entry_at(step), start=start, step=step + 1)
    entries = _cut(now, first, [entry for entry in now.entries if entry.step > step])
    return TimelineChange(from_step=step + 1, entries=entries, why="resume with more epochs after a short batch")


def is_given(changes: Sequence[TimelineChange]) -> bool:
    """True for a run that was given its timeline, and so follows no chain file."""
    return bool(changes) and changes[0].why.startswith(GIVEN)


def files_of(job: Sequence[TimelineEntry]) -> dict[str, str]:
    """The job's chain files -> digest of the recipe that each holds; chains inside the job file are not among them."""
    return {entry.file: entry.recipe for entry in job if entry.file}


def files_read(changes: Sequence[TimelineChange]) -> dict[str, str]:
    """Chain files -> the recipe that each held when it was read last, since the run's schedule was written."""
    read: dict[str, str] = {}
    for change in _since_schedule(changes):
        read.update(change.files)
    return read


def as_read(job: Sequence[TimelineEntry], read: Mapping[str, str]) -> tuple[TimelineEntry, ...]:
    """The job's entries as if none of its chain files had been edited since."""
    return tuple(msgspec.structs.replace(entry, recipe=read.get(entry.file, entry.recipe)) for entry in job)


def _since_schedule(changes: Sequence[TimelineChange]) -> Sequence[TimelineChange]:
    """The last change that brought the job's whole schedule, and all after it; none where no change did."""
    brought = [number for number, change in enumerate(changes) if change.why.startswith((START, RESCHEDULED))]
    return changes[brought[-1] :] if brought else ()


def _resized(
    timeline: Timeline, changes: Sequence[TimelineChange], batch_size: int, free_from_step: int
) -> TimelineChange | None:
    """As `followed`, for a run that was given its timeline, batch sizes included: only a later word counts."""
    said_last = next((change for change in reversed(changes) if change.why.startswith(RESIZED)), changes[0])
    if said_last.entries[0].batch_size == batch_size:
        return None
    here, start = timeline.entry_at(free_from_step), timeline.start_of(free_from_step)
    first = msgspec.structs.replace(here, start=start, step=free_from_step, batch_size=batch_size)
    entries = _cut(timeline, first, [entry for entry in timeline.entries if entry.step > free_from_step])
    return TimelineChange(from_step=free_from_step, entries=entries, why=f"{RESIZED} {batch_size}")


def _edited(changes: Sequence[TimelineChange], job: Mapping[str, str]) -> dict[str, str]:
    """Files of the job that hold another recipe than when they were read last."""
    read = files_read(changes)
    return {file: recipe for file, recipe in job.items() if read.get(file, recipe) != recipe}


def _slots(entries: Sequence[TimelineEntry], timeline: Timeline) -> dict[int, str]:
    """Which chain (its file; the digest of one inside the job) stands from which epoch on; -1 for the first."""
    first, *later = entries
    return {-1: first.file or first.recipe} | {_epoch(entry, timeline): entry.file or entry.recipe for entry in later}


def _epoch(entry: TimelineEntry, timeline: Timeline) -> int:
    return entry.start // timeline.num_samples


def _from(entries: Sequence[TimelineEntry], start: int) -> tuple[TimelineEntry, ...]:
    """The entry in force at a position, and all after it."""
    later = [entry for entry in entries if entry.start > start]
    return (entries[len(entries) - len(later) - 1], *later)


def _at_epoch(entry: TimelineEntry, slots: Mapping[int, str], timeline: Timeline) -> TimelineEntry:
    """A scheduled entry belongs to its epoch, whose first batch may begin elsewhere once batches are cut anew."""
    epoch, offset = divmod(entry.start, timeline.num_samples)
    is_scheduled = slots.get(epoch) == (entry.file or entry.recipe) and offset < entry.batch_size
    return msgspec.structs.replace(entry, start=epoch * timeline.num_samples) if is_scheduled else entry


def _cut(timeline: Timeline, first: TimelineEntry, later: Sequence[TimelineEntry]) -> tuple[TimelineEntry, ...]:
    """The entries with the first one's batch size, each from the first batch that begins where it does, or after."""
    entries = [first]
    for entry in later:
        made = _timeline(timeline, entries)
        step = made.step_from(max(entry.start, first.start))
        if step < made.num_steps:
            moved = msgspec.structs.replace(entry, start=made.start_of(step), step=step, batch_size=first.batch_size)
            entries = [*(earlier for earlier in entries if earlier.step < step), moved]
    return tuple(entries)


def _timeline(timeline: Timeline, entries: Sequence[TimelineEntry]) -> Timeline:
    return Timeline(
        entries,
        num_samples=timeline.num_samples,
        last_batch=timeline.last_batch,
        end_position=timeline.end_position,
    )


def _says_the_same(timeline: Timeline, entries: Sequence[TimelineEntry]) -> bool:
    first, *later = entries
    here = timeline.entry_at(first.step)
    return (first.recipe, first.file, first.batch_size) == (here.recipe, here.file, here.batch_size) and later == [
        entry for entry in timeline.entries if entry.step > first.step
    ]
