"""The law of the whole: dispatcher, trainer and workers as they are, over links that lose, repeat and reorder."""

from __future__ import annotations

import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.timeline import LastBatch, Timeline, TimelineEntry
from tests.law_cores import CoreSystem, recipe
from tests.laws import Faults
from tests.sizes import cases

RATES = st.fixed_dictionaries(
    {
        "drop": st.sampled_from([0.0, 0.05, 0.3]),
        "kill": st.sampled_from([0.0, 0.005]),
        "leave": st.sampled_from([0.0, 0.02]),
        "silence": st.sampled_from([0.0, 0.002]),
        "restart": st.sampled_from([0.0, 0.01, 0.03]),
        "resume": st.sampled_from([0.0, 0.01]),
        "swap": st.sampled_from([0.0, 0.05, 0.5]),
        "crash_in_swap": st.sampled_from([0.0, 0.2]),
        "other_batch_size": st.sampled_from([0.0, 0.5]),
        "flaky": st.sampled_from([0.0, 0.02]),
        "narrow": st.sampled_from([0.0, 0.05]),
    }
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of warnings of a failing example would hide it."""
    caplog.set_level(logging.CRITICAL)


def timeline(num_samples: int, batch_size: int, last_batch: LastBatch) -> Timeline:
    """Two epochs, the second under another recipe where it begins a batch."""
    first = TimelineEntry(start=0, step=0, recipe=recipe(0).digest, batch_size=batch_size, file="0.yaml")
    size = {"num_samples": num_samples, "end_position": 2 * num_samples}
    alone = Timeline([first], last_batch=last_batch, **size)
    step = alone.step_from(num_samples)
    if not 0 < step < alone.num_steps:
        return alone
    second = TimelineEntry(
        start=alone.start_of(step), step=step, recipe=recipe(-1).digest, batch_size=batch_size, file="-1.yaml"
    )
    return Timeline([first, second], last_batch=last_batch, **size)


@settings(max_examples=cases(30))
@given(
    seed=st.integers(0, 2**32),
    num_samples=st.integers(1, 50),
    batch_size=st.integers(1, 12),
    slice_size=st.integers(1, 16),
    window=st.integers(1, 4),
    num_workers=st.integers(1, 4),
    last_batch=st.sampled_from(["keep", "wrap"]),
    bad=st.integers(0, 2),
    wrong=st.sampled_from([0.0, 0.5]),
    max_delay_s=st.sampled_from([0.0, 0.3]),
    rates=RATES,
)
def test_the_whole_delivers_each_batch_once_and_in_order_whoever_fails(
    seed: int,
    num_samples: int,
    batch_size: int,
    slice_size: int,
    window: int,
    num_workers: int,
    last_batch: LastBatch,
    bad: int,
    wrong: float,
    max_delay_s: float,
    rates: dict[str, float],
) -> None:
    """Each life of the trainer takes its batches in order and without a gap, each with the bytes that the timeline and
    the quarantine on disk say; a boundary never moves after it is on disk; and while one worker lives, it ends."""
    plan, coin = timeline(num_samples, batch_size, last_batch), random.Random(seed)
    unreadable = frozenset(coin.sample(range(2 * num_samples), min(bad, num_samples)))
    faults = Faults(unreadable=unreadable, **rates)
    system = CoreSystem(
        plan, [recipe(0), recipe(-1)], window, slice_size, coin, faults, max_delay_s=max_delay_s, wrong=wrong
    )
    system.run(num_workers, max_s=3000.0)
    final = system.disk.timeline
    for trainer in (*system.past, system.trainer):
        steps = [batch.step for batch in trainer.taken]
        assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else True
    assert all(batch == final.batch(batch.step) for batch in system.delivered)
    assert {batch.step for batch in system.delivered} == set(range(final.num_steps))
    covered = sorted(place for batch in set(system.delivered) for place in range(batch.start, batch.stop))
    assert covered == list(range(2 * num_samples))
    assert unreadable <= set(system.disk.quarantined)
