"""Reassembly: each position is placed once, in the batch it belongs to, whatever arrives."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.messages import Lease
from pipeline.reassembly import Dropped, Placement, Reassembly
from pipeline.slice_header import SliceHeader
from pipeline.swaps import swap_by_command
from pipeline.timeline import LastBatch, Timeline, TimelineEntry, slices_of
from tests.laws import header_of
from tests.sizes import cases

NUM_SAMPLES = 22


def make_timeline(last_batch: LastBatch = "keep", recipe_from_step_2: str = "r") -> Timeline:
    """Two epochs of 22; batches of 4, then of 6 from step 2 on."""
    entries = [
        TimelineEntry(start=0, step=0, recipe="r", batch_size=4),
        TimelineEntry(start=8, step=2, recipe=recipe_from_step_2, batch_size=6),
    ]
    return Timeline(entries, num_samples=NUM_SAMPLES, last_batch=last_batch, end_position=2 * NUM_SAMPLES)


def make_reassembly(timeline: Timeline | None = None, window: int = 3, head_step: int = 0) -> Reassembly:
    return Reassembly(timeline or make_timeline(), stream="s", incarnation=1, window=window, head_step=head_step)


def header(start: int, stop: int, recipe: str = "r") -> SliceHeader:
    return header_of(Lease(number=1, stream="s", incarnation=1, start=start, stop=stop, recipe=recipe), "w")


def arrive(reassembly: Reassembly, start: int, stop: int) -> bool:
    """True if the slice was placed."""
    placement = reassembly.place(header(start, stop))
    if isinstance(placement, Placement):
        reassembly.mark(header(start, stop), placement)
    return isinstance(placement, Placement)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (msgspec.structs.replace(header(0, 2), incarnation=2), "wrong_incarnation"),
        (msgspec.structs.replace(header(0, 2), stream="t"), "wrong_incarnation"),
        (header(0, 2, recipe="other"), "wrong_recipe"),
        (header(8, 10, recipe="r"), "wrong_recipe"),
        (header(3, 5), "outside_window"),
        (header(20, 22), "outside_window"),
        (header(10**15, 10**15 + 1), "outside_window"),
    ],
)
def test_what_does_not_fit_the_timeline_is_dropped_and_named(wrong: SliceHeader, reason: str) -> None:
    """Another incarnation's, another recipe's, across two batches, before or beyond the window."""
    reassembly = make_reassembly(make_timeline(recipe_from_step_2="new"))
    assert reassembly.place(wrong) == Dropped(reason)
    assert reassembly.arrived() == b""


def test_a_twin_is_dropped_also_when_it_is_cut_otherwise() -> None:
    """A slice given up and leased sample by sample may still arrive whole: no sample is placed twice."""
    reassembly = make_reassembly()
    assert arrive(reassembly, 1, 2)
    assert not arrive(reassembly, 1, 2)
    assert not arrive(reassembly, 0, 4)
    assert arrive(reassembly, 0, 1)


def test_placing_changes_nothing_until_it_is_marked() -> None:
    """A slice whose bytes turn out wrong must be able to come again."""
    reassembly = make_reassembly()
    first = reassembly.place(header(0, 4))
    assert reassembly.place(header(0, 4)) == first == Placement(step=0, first_row=0)


def test_a_slice_that_was_taken_does_not_come_back() -> None:
    """A late twin of a batch the loop has already seen lies before the window."""
    reassembly = make_reassembly()
    arrive(reassembly, 0, 4)
    assert reassembly.take_head().step == 0
    assert reassembly.place(header(0, 4)) == Dropped("outside_window")


@settings(max_examples=cases(300))
@given(
    seed=st.integers(0, 2**32),
    last_batch=st.sampled_from(["drop", "keep", "wrap"]),
    window=st.integers(1, 5),
    head_step=st.integers(0, 3),
    slice_size=st.integers(1, 6),
)
def test_every_batch_is_taken_once_in_order_and_the_bitmap_tells_what_is_here(
    seed: int, last_batch: LastBatch, window: int, head_step: int, slice_size: int
) -> None:
    """Slices in any order, with twins and strays; the bitmap is compared to a set of positions kept beside it."""
    coin, timeline = random.Random(seed), make_timeline(last_batch)
    reassembly = make_reassembly(timeline, window, head_step)
    here: set[int] = set()
    taken = []
    while not reassembly.ended:
        in_window = range(reassembly.head_step, min(reassembly.head_step + window, timeline.num_steps))
        offered = [part for step in in_window for part in slices_of(timeline.batch(step), slice_size)]
        start, stop = coin.choice([*offered, (coin.randrange(50), coin.randrange(51, 60))])
        was_placed = arrive(reassembly, start, stop)
        assert was_placed == ((start, stop) in offered and not here & set(range(start, stop)))
        if was_placed:
            here |= set(range(start, stop))
        head = timeline.batch(reassembly.head_step)
        assert int.from_bytes(reassembly.arrived(), "little") == sum(1 << (position - head.start) for position in here)
        awaited = {position for position in range(60) if reassembly.awaits(position)}
        assert awaited == {place for step in in_window for place in range(*timeline.batch(step)[1:3])} - here
        assert reassembly.is_complete(head.step) == (set(range(head.start, head.stop)) <= here)
        if reassembly.is_complete(head.step) and coin.random() < 0.5:
            assert reassembly.take_head() == head
            here -= set(range(head.start, head.stop))
            taken.append(head.step)
    assert taken == list(range(head_step, timeline.num_steps))
    assert reassembly.arrived() == b""


@settings(max_examples=cases(200))
@given(seed=st.integers(0, 2**32), window=st.integers(1, 6), taken=st.integers(0, 2))
def test_a_change_of_the_timeline_leaves_what_has_arrived_and_recuts_the_rest(
    seed: int, window: int, taken: int
) -> None:
    """From the first untouched step on only slices of the new recipe fit; before it only those of the old."""
    coin, old = random.Random(seed), make_timeline()
    reassembly = make_reassembly(old, window)
    for step in range(taken):
        arrive(reassembly, *old.batch(step)[1:3])
        reassembly.take_head()
    in_window = range(taken, min(taken + window, old.num_steps))
    arrived = [part for step in in_window for part in slices_of(old.batch(step), 2) if coin.random() < 0.3]
    assert all(arrive(reassembly, start, stop) for start, stop in arrived)
    reassembly.place(header(*old.batch(in_window[-1])[1:3]))  # a look alone touches nothing
    boundary = reassembly.first_untouched_step()
    assert boundary == max(
        (step + 1 for step in in_window for start, _ in arrived if start in range(*old.batch(step)[1:3])),
        default=taken,
    )
    bitmap = reassembly.arrived()
    change = swap_by_command(old, boundary, "new", "new.yaml", "a test")
    assert change is not None
    reassembly.change(old.changed(change))
    assert reassembly.arrived() == bitmap
    until = min((entry.step for entry in old.entries if entry.step > boundary), default=old.num_steps)
    for step in in_window:
        start, stop = old.batch(step)[1:3]
        fits = {recipe: reassembly.place(header(start, stop, recipe)) for recipe in ("r", "new")}
        is_new = boundary <= step < until
        assert fits["r" if is_new else "new"] == Dropped("wrong_recipe")
        assert fits["new" if is_new else "r"] != Dropped("wrong_recipe")


def test_its_size_is_bounded_by_the_window() -> None:
    """A stream of 10^9 samples leaves nothing behind."""
    entry = TimelineEntry(start=0, step=0, recipe="r", batch_size=4)
    reassembly = make_reassembly(Timeline([entry], num_samples=10**9, last_batch="keep", end_position=10**12), window=3)
    for step in range(2000):
        arrive(reassembly, 4 * step, 4 * step + 4)
        reassembly.take_head()
        assert len(reassembly._batches) <= 3
        assert len(reassembly._arrived) <= 3
