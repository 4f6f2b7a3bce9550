"""What a swap makes of a timeline: the cut never moves, and only what was wished for changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.swaps import previous_recipe, schedule, swap_by_command, swap_by_edit
from pipeline.timeline import LastBatch, Timeline, TimelineEntry
from tests.sizes import cases

LAST_BATCHES: tuple[LastBatch, ...] = ("drop", "keep", "wrap")
FILES = ("a.yaml", "b.yaml", "c.yaml")


def first(batch_size: int = 4, start: int = 0) -> TimelineEntry:
    return TimelineEntry(start=start, step=0, recipe="r0", batch_size=batch_size, file="a.yaml")


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """A timeline with a schedule and a history of swaps and edits."""
    ends: dict[str, Any] = {
        "num_samples": draw(st.integers(1, 30)),
        "last_batch": draw(st.sampled_from(LAST_BATCHES)),
    }
    ends["end_position"] = ends["num_samples"] * draw(st.integers(1, 6))
    epochs = draw(st.lists(st.integers(1, 7), unique=True, max_size=3).map(sorted))
    later = [(epoch, f"s{epoch}", draw(st.sampled_from(FILES))) for epoch in epochs]
    timeline = Timeline(schedule(first(draw(st.integers(1, 40))), later, **ends), **ends)
    for number in range(draw(st.integers(0, 3))):
        if timeline.num_steps:
            timeline = swapped(draw, timeline, f"swap{number}")
    return timeline


def swapped(draw: st.DrawFn, timeline: Timeline, recipe: str) -> Timeline:
    swap = draw(st.sampled_from([swap_by_command, swap_by_edit]))
    step = draw(st.integers(0, timeline.num_steps - 1))
    change = swap(timeline, step, recipe, draw(st.sampled_from(FILES)), "a test")
    return timeline.changed(change) if change is not None else timeline


def ranges(timeline: Timeline) -> list[tuple[int, int]]:
    return [timeline.batch(step)[1:3] for step in range(timeline.num_steps)]


def recipes(timeline: Timeline) -> list[str]:
    return [timeline.batch(step).recipe for step in range(timeline.num_steps)]


@settings(max_examples=cases(300))
@given(timeline=timelines(), data=st.data())
def test_a_swap_by_command_holds_until_the_next_entry_and_cuts_nothing_anew(timeline: Timeline, data: Any) -> None:
    """A batch's positions are the same before and after, or resume would not be exact."""
    if timeline.num_steps == 0:
        return
    step = data.draw(st.integers(0, timeline.num_steps - 1))
    change = swap_by_command(timeline, step, "new", "new.yaml", "headrace swap")
    assert change is not None
    changed = timeline.changed(change)
    until = min((entry.step for entry in timeline.entries if entry.step > step), default=timeline.num_steps)
    expected = [*recipes(timeline)[:step], *["new"] * (until - step), *recipes(timeline)[until:]]
    assert recipes(changed) == expected
    assert ranges(changed) == ranges(timeline)
    assert changed.entry_at(step).file == "new.yaml"
    assert [entry for entry in changed.entries if entry.step < step] == [e for e in timeline.entries if e.step < step]


@settings(max_examples=cases(300))
@given(timeline=timelines(), file=st.sampled_from(FILES), data=st.data())
def test_an_edit_replaces_its_file_wherever_it_stands_from_the_boundary_on(
    timeline: Timeline, file: str, data: Any
) -> None:
    """Also in entries that the schedule brings later; other files' entries stay."""
    if timeline.num_steps == 0:
        return
    step = data.draw(st.integers(0, timeline.num_steps - 1))
    change = swap_by_edit(timeline, step, "new", file, "edit")
    changed = timeline.changed(change) if change is not None else timeline
    expected = [
        "new" if later >= step and timeline.entry_at(later).file == file else recipe
        for later, recipe in enumerate(recipes(timeline))
    ]
    assert recipes(changed) == expected
    assert (change is None) == (expected == recipes(timeline))
    assert ranges(changed) == ranges(timeline)
    assert change is None or change.files == {file: "new"}
    assert [changed.entry_at(at).file for at in range(timeline.num_steps)] == [
        timeline.entry_at(at).file for at in range(timeline.num_steps)
    ]


@settings(max_examples=cases(200))
@given(timeline=timelines(), data=st.data())
def test_going_back_twice_comes_back(timeline: Timeline, data: Any) -> None:
    """The recipe before the present one, then the one before that: which is where it began."""
    if timeline.num_steps == 0:
        return
    step = data.draw(st.integers(0, timeline.num_steps - 1))
    present = timeline.entry_at(step)
    previous = previous_recipe(timeline, step)
    if previous is None:
        assert {entry.recipe for entry in timeline.entries if entry.step <= step} == {present.recipe}
        return
    change = swap_by_command(timeline, step, previous.recipe, previous.file, "headrace swap --to previous")
    assert change is not None
    back = timeline.changed(change)
    assert back.entry_at(step).recipe == previous.recipe != present.recipe
    if present.step < step:
        again = previous_recipe(back, step)
        assert again is not None
        assert again.recipe == present.recipe


def test_a_swap_that_made_no_batch_is_not_gone_back_to() -> None:
    """B, then C at the same boundary: before both was A, which is what was seen to work."""
    timeline = Timeline([first()], num_samples=20, last_batch="drop", end_position=60)
    for recipe in ("b", "c"):
        change = swap_by_command(timeline, 3, recipe, f"{recipe}.yaml", "headrace swap")
        assert change is not None
        timeline = timeline.changed(change)
    for step in (3, 4):
        previous = previous_recipe(timeline, step)
        assert previous is not None
        assert previous.recipe == "r0"


def test_a_swap_to_what_is_there_already_changes_nothing() -> None:
    """A file saved without a change must not make a line in the timeline."""
    timeline = Timeline([first()], num_samples=20, last_batch="drop", end_position=60)
    assert swap_by_command(timeline, 3, "r0", "other.yaml", "headrace swap") is None
    assert swap_by_edit(timeline, 3, "r0", "a.yaml", "edit") is None
    assert swap_by_edit(timeline, 3, "new", "b.yaml", "edit") is None


@settings(max_examples=cases(300))
@given(
    batch_size=st.integers(1, 50),
    num_samples=st.integers(1, 30),
    epochs=st.integers(1, 8),
    last_batch=st.sampled_from(LAST_BATCHES),
    from_epochs=st.lists(st.integers(1, 9), unique=True, max_size=4).map(sorted),
    start=st.integers(0, 60),
)
def test_a_batch_has_the_chain_of_the_latest_entry_that_began_at_or_before_it(
    batch_size: int, num_samples: int, epochs: int, last_batch: LastBatch, from_epochs: list[int], start: int
) -> None:
    """By brute force over all batches; a batch may span epochs, and a stream may begin anywhere."""
    later = [(epoch, f"s{epoch}", f"{epoch}.yaml") for epoch in from_epochs]
    end = epochs * num_samples
    entries = schedule(
        first(batch_size, start), later, num_samples=num_samples, last_batch=last_batch, end_position=end
    )
    timeline = Timeline(entries, num_samples=num_samples, last_batch=last_batch, end_position=end)
    plain = Timeline([first(batch_size, start)], num_samples=num_samples, last_batch=last_batch, end_position=end)
    expected = [
        next((f"s{epoch}" for epoch in reversed(from_epochs) if epoch * num_samples <= begin), "r0")
        for begin, _ in ranges(plain)
    ]
    assert recipes(timeline) == expected
    assert ranges(timeline) == ranges(plain)


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
def test_a_schedule_beyond_the_end_is_left_out(last_batch: LastBatch) -> None:
    """A job whose epochs were lowered still runs."""
    entries = schedule(first(), [(2, "s", "s.yaml")], num_samples=8, last_batch=last_batch, end_position=16)
    assert entries == (first(),)
