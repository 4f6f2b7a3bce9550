"""A resumed run follows what has changed in its job: from the first batch never delivered, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pipeline.following import (
    GIVEN,
    RESCHEDULED,
    START,
    as_read,
    files_of,
    files_read,
    followed,
    past_short_batch,
)
from pipeline.swaps import schedule, swap_by_command, swap_by_edit
from pipeline.timeline import LastBatch, Timeline, TimelineChange, TimelineEntry, after

N = 20


def job(
    *later: tuple[int, str, str], recipe: str = "a1", file: str = "a.yaml", batch_size: int = 4, epochs: int = 10
) -> tuple[TimelineEntry, ...]:
    first = TimelineEntry(start=0, step=0, recipe=recipe, batch_size=batch_size, file=file)
    return schedule(first, later, num_samples=N, last_batch="drop", end_position=epochs * N)


def started(entries: Sequence[TimelineEntry]) -> TimelineChange:
    return TimelineChange(from_step=0, entries=tuple(entries), why=START, files=files_of(entries))


def timeline_of(changes: Sequence[TimelineChange], epochs: int = 10, last_batch: LastBatch = "drop") -> Timeline:
    entries: tuple[TimelineEntry, ...] = ()
    for change in changes:
        entries = after(entries, change)
    return Timeline(entries, num_samples=N, last_batch=last_batch, end_position=epochs * N)


def swapped(changes: list[TimelineChange], step: int, recipe: str, file: str = "live.yaml") -> list[TimelineChange]:
    change = swap_by_command(timeline_of(changes), step, recipe, file, "headrace swap")
    assert change is not None
    return [*changes, change]


def edited(changes: list[TimelineChange], step: int, recipe: str, file: str) -> list[TimelineChange]:
    change = swap_by_edit(timeline_of(changes), step, recipe, file, f"edit of {file}")
    assert change is not None
    return [*changes, change]


def recipes(timeline: Timeline, *steps: int) -> list[str]:
    return [timeline.batch(step).recipe for step in steps]


WEAK = (5, "w1", "w.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        [started(job(WEAK))],
        swapped([started(job(WEAK))], 3, "live"),
        edited([started(job(WEAK))], 3, "a1", "w.yaml"),
        swapped(edited([started(job(WEAK))], 3, "a2", "a.yaml"), 6, "a1", "a.yaml"),
    ],
    ids=["nothing happened", "a live swap", "an edit of a later file", "an edit, then back to the one before"],
)
def test_a_run_whose_job_is_as_it_was_read_last_changes_nothing(changes: list[TimelineChange]) -> None:
    """A rollback is no edit: the file holds what it held, and the run goes on with the older recipe."""
    held: dict[str, str] = {}
    for change in changes:
        held |= change.files
    now = [msgspec.structs.replace(entry, recipe=held[entry.file]) for entry in job(WEAK)]
    assert followed(timeline_of(changes), changes, now, 8) is None


def test_an_edit_made_while_the_run_was_down_lands_at_the_first_batch_never_delivered() -> None:
    """Wherever the file stands from there on."""
    changes = [started(job(WEAK, (7, "a1", "a.yaml")))]
    change = followed(timeline_of(changes), changes, job(WEAK, (7, "a2", "a.yaml"), recipe="a2"), 8)
    assert change is not None
    assert (change.from_step, change.files) == (8, {"a.yaml": "a2"})
    assert change.why == "edit of a.yaml while the run was down"
    made = timeline_of([*changes, change])
    assert recipes(made, 7, 8, 24, 25, 34, 35) == ["a1", "a2", "a2", "w1", "w1", "a2"]
    assert followed(made, [*changes, change], job(WEAK, (7, "a2", "a.yaml"), recipe="a2"), 9) is None


def test_a_live_swap_holds_though_its_jobs_file_was_edited_while_the_run_was_down() -> None:
    """The file does not stand there any more, as it would not in a running job."""
    changes = swapped([started(job())], 3, "live")
    assert followed(timeline_of(changes), changes, job(recipe="a2"), 8) is None


def test_an_edit_back_to_an_earlier_text_is_an_edit() -> None:
    """What counts is what was read last, not whether the run ever had it."""
    changes = edited([started(job())], 3, "a2", "a.yaml")
    change = followed(timeline_of(changes), changes, job(recipe="a1"), 8)
    assert change is not None
    assert recipes(timeline_of([*changes, change]), 7, 8) == ["a2", "a1"]


def test_the_job_as_it_was_read_last_brings_no_edit_and_all_else() -> None:
    """Since its schedule was written: what a file held before that says nothing."""
    changes = edited([started(job(WEAK))], 3, "a2", "a.yaml")
    now = job((5, "w2", "w.yaml"), recipe="a3", batch_size=5)
    before = as_read(now, files_read(changes))
    assert [entry.recipe for entry in before] == ["a2", "w1"]
    change = followed(timeline_of(changes), changes, before, 8)
    assert change is not None
    assert (change.why, change.files) == ("resume with batch_size 5", {})
    other = followed(timeline_of(changes), changes, job(recipe="b1", file="b.yaml"), 8)
    assert other is not None
    assert files_read([*changes, other]) == {"b.yaml": "b1"}


def test_another_batch_size_cuts_anew_from_the_first_batch_never_delivered() -> None:
    """No position is repeated or left out there, and the schedule stays with its epochs."""
    changes = swapped([started(job(WEAK))], 3, "live")
    change = followed(timeline_of(changes), changes, job(WEAK, batch_size=5), 7)
    assert change is not None
    assert change.why == "resume with batch_size 5"
    made = timeline_of([*changes, change])
    assert [made.batch(step)[1:3] for step in (6, 7, 8)] == [(24, 28), (28, 33), (33, 38)]
    assert made.batch(9).start == 2 * N
    (later,) = change.entries[1:]
    assert (later.start, later.recipe, later.batch_size) == (5 * N, "w1", 5)
    assert made.batch(later.step).start == 5 * N
    assert followed(made, [*changes, change], job(WEAK, batch_size=5), 9) is None


def test_more_epochs_bring_the_schedule_that_lay_past_the_end() -> None:
    """A live swap holds until then; a file that is new in it has been read, so that its next edit is one."""
    changes = swapped([started(job(WEAK, epochs=3))], 3, "live")
    change = followed(timeline_of(changes), changes, job(WEAK), 8)
    assert change is not None
    assert change.why == "resume with more epochs"
    made = timeline_of([*changes, change])
    assert recipes(made, 7, 8, 24, 25) == ["live", "live", "live", "w1"]
    assert followed(made, [*changes, change], job(WEAK), 9) is None
    assert files_read([*changes, change]) == {"a.yaml": "a1", "w.yaml": "w1"}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (job(), ["a1", "a1", "a1"]),
        (job((6, "w1", "w.yaml")), ["a1", "a1", "w1"]),
        (job(WEAK, recipe="b1", file="b.yaml"), ["b1", "w1", "w1"]),
        (job(WEAK, recipe="inline2", file=""), ["inline2", "w1", "w1"]),
    ],
    ids=["an entry removed", "an entry moved", "another first file", "a list in the job"],
)
def test_another_schedule_replaces_the_rest_of_the_old_one(now: Any, expected: list[str]) -> None:
    """The user has written what the run is to do, so live swaps end there too."""
    changes = swapped([started(job(WEAK))], 3, "live")
    change = followed(timeline_of(changes), changes, now, 8)
    assert change is not None
    assert change.why == RESCHEDULED
    made = timeline_of([*changes, change])
    assert recipes(made, 7) == ["live"]
    assert recipes(made, 8, 25, 30) == expected
    assert followed(made, [*changes, change], now, 9) is None


def test_two_lists_inside_the_job_are_told_apart() -> None:
    """Neither has a file, so neither is taken for an edit of the other."""
    entries = job((5, "i2", ""), recipe="i1", file="")
    changes = [started(entries)]
    assert changes[0].files == {}
    assert followed(timeline_of(changes), changes, entries, 8) is None
    change = followed(timeline_of(changes), changes, job((5, "i3", ""), recipe="i1", file=""), 8)
    assert change is not None
    assert recipes(timeline_of([*changes, change]), 8, 24, 25) == ["i1", "i1", "i3"]


def test_a_run_with_an_earlier_runs_timeline_follows_no_job() -> None:
    """It is a repetition: what the job's files hold by now is not the matter."""
    changes = [TimelineChange(from_step=0, entries=job(WEAK), why=GIVEN)]
    assert followed(timeline_of(changes), changes, job(recipe="a9"), 8) is None


def test_a_run_with_an_earlier_runs_timeline_takes_another_batch_size_over() -> None:
    """That is the job's to say, and is recorded; the swaps stay at their places."""
    changes = [TimelineChange(from_step=0, entries=job(WEAK), why=GIVEN)]
    change = followed(timeline_of(changes), changes, job(recipe="a9", batch_size=5), 7)
    assert change is not None
    assert change.why == "resume with batch_size 5"
    made = timeline_of([*changes, change])
    assert [made.batch(step)[1:] for step in (6, 7)] == [(24, 28, "a1"), (28, 33, "a1")]
    assert [(entry.start, entry.recipe, entry.batch_size) for entry in made.entries[2:]] == [(5 * N, "w1", 5)]
    assert followed(made, [*changes, change], job(recipe="a9", batch_size=5), 9) is None


def test_a_given_timelines_own_batch_sizes_are_no_word_of_the_job() -> None:
    """The earlier run had changed its batch size: at a later step the job only seems to differ."""
    entries = (*job(), TimelineEntry(start=40, step=10, recipe="a1", batch_size=5, file="a.yaml"))
    changes = [TimelineChange(from_step=0, entries=entries, why=GIVEN)]
    for free_from_step in (8, 12):
        assert followed(timeline_of(changes), changes, job(), free_from_step) is None


def test_fewer_epochs_leave_out_what_lies_past_the_end() -> None:
    """Whoever made the entries there: a schedule, a swap --at, an earlier run."""
    changes = [TimelineChange(from_step=0, entries=job(WEAK), why=GIVEN)]
    fewer = timeline_of(changes, epochs=3)
    assert (fewer.num_steps, fewer.batch(14)[1:]) == (15, (56, 60, "a1"))
    assert followed(fewer, changes, job(epochs=3), 8) is None


def wrapped(entries: Sequence[TimelineEntry], epochs: int) -> Timeline:
    return Timeline(entries, num_samples=10, last_batch="wrap", end_position=epochs * 10)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 5), (2, 3)])
def test_more_epochs_after_a_short_last_batch_begin_where_it_stopped(before: int, now: int) -> None:
    """`wrap`: it was trained on as it was, and no sample after it is left out or repeated."""
    first = TimelineEntry(start=0, step=0, recipe="a1", batch_size=8)
    old, new = wrapped([first], before), wrapped([first], now)
    change = past_short_batch(old, new, old.num_steps)
    assert change is not None
    assert change.from_step == old.num_steps
    made = new.changed(change)
    batches = [made.batch(step) for step in range(made.num_steps)]
    assert batches[: old.num_steps] == [old.batch(step) for step in range(old.num_steps)]
    assert [batch.start for batch in batches[1:]] == [batch.stop for batch in batches[:-1]]
    assert batches[-1].stop == now * 10
    assert past_short_batch(wrapped(made.entries, before), made, old.num_steps) is None, "once"


def test_more_epochs_before_the_short_last_batch_make_it_whole() -> None:
    """As in a run that had them from the beginning."""
    first = TimelineEntry(start=0, step=0, recipe="a1", batch_size=8)
    assert past_short_batch(wrapped([first], 1), wrapped([first], 2), 1) is None
    assert past_short_batch(wrapped([first], 4), wrapped([first], 5), 5) is None, "it ended whole"


def test_a_run_that_has_ended_changes_nothing() -> None:
    """There is no batch left that a change could begin with."""
    changes = [started(job())]
    timeline = timeline_of(changes)
    assert followed(timeline, changes, job(recipe="a2"), timeline.num_steps) is None
