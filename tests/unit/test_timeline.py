"""Batches cover an epoch exactly, whatever the policy, and can be found from their number alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.timeline import LastBatch, Timeline, TimelineEntry, slices_of


def brute_force(start: int, size: int, num_samples: int, last_batch: LastBatch, end: int) -> list[tuple[int, int]]:
    batches = []
    position = start
    while position < end:
        epoch_end = (position // num_samples + 1) * num_samples
        stop = min(position + size, end if last_batch == "wrap" else min(epoch_end, end))
        if stop - position == size or last_batch != "drop":
            batches.append((position, stop))
            position = stop
        else:
            position = epoch_end
    return batches


@given(
    num_samples=st.integers(1, 40),
    size=st.integers(1, 50),
    epochs=st.integers(1, 4),
    start=st.integers(0, 60),
    last_batch=st.sampled_from(["drop", "keep", "wrap"]),
)
def test_batches_equal_the_ones_cut_one_after_the_other(
    num_samples: int, size: int, epochs: int, start: int, last_batch: LastBatch
) -> None:
    entry = TimelineEntry(start=start, step=3, recipe="r", batch_size=size)
    timeline = Timeline([entry], num_samples=num_samples, last_batch=last_batch, end_position=epochs * num_samples)
    expected = brute_force(start, size, num_samples, last_batch, epochs * num_samples)
    assert len(expected) == timeline.num_steps - 3
    assert expected == [timeline.batch(3 + number)[1:3] for number in range(len(expected))]


def test_a_new_entry_takes_over_at_its_step() -> None:
    entries = [
        TimelineEntry(start=0, step=0, recipe="a", batch_size=4),
        TimelineEntry(start=8, step=2, recipe="b", batch_size=2),
    ]
    timeline = Timeline(entries, num_samples=100, last_batch="drop", end_position=100)
    assert [(0, 0, 4, "a"), (1, 4, 8, "a"), (2, 8, 10, "b")] == [tuple(timeline.batch(step)) for step in range(3)]
    assert 2 + 46 == timeline.num_steps


@pytest.mark.parametrize("start", [8, 12])
def test_entries_at_the_end_or_past_it_are_left_out(start: int) -> None:
    """A timeline of more epochs than the job has by now must not make batches that are not there."""
    entries = [
        TimelineEntry(start=0, step=0, recipe="a", batch_size=4),
        TimelineEntry(start=start, step=start // 4, recipe="b", batch_size=4),
    ]
    timeline = Timeline(entries, num_samples=4, last_batch="drop", end_position=8)
    assert timeline.entries == (entries[0],)
    assert [tuple(timeline.batch(step)) for step in range(timeline.num_steps)] == [(0, 0, 4, "a"), (1, 4, 8, "a")]


def test_a_step_past_the_end_is_an_index_error() -> None:
    timeline = Timeline(
        [TimelineEntry(start=0, step=0, recipe="a", batch_size=4)], num_samples=8, last_batch="drop", end_position=8
    )
    with pytest.raises(IndexError, match=r"step 2 is not in 0\.\.1"):
        timeline.batch(2)


@given(size=st.integers(1, 20), num=st.integers(1, 50))
def test_slices_partition_their_batch(size: int, num: int) -> None:
    timeline = Timeline(
        [TimelineEntry(start=0, step=0, recipe="a", batch_size=num)],
        num_samples=num,
        last_batch="keep",
        end_position=num,
    )
    slices = slices_of(timeline.batch(0), size)
    assert list(range(num)) == [position for start, stop in slices for position in range(start, stop)]
    assert all(0 < stop - start <= size for start, stop in slices)
