"""Slopes and levels: what a few wild values must not move, and state that goes to JSON and back."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.health.robust import Level, Recent, from_state, quantile, theil_sen, to_state

FINITE = st.floats(-1e6, 1e6)


@given(st.floats(-5, 5), st.floats(-100, 100), st.integers(2, 200))
def test_a_straight_line_has_its_own_slope(slope: float, start: float, count: int) -> None:
    """Above 64 values blocks stand for their values, and must lie on the same line."""
    values = [start + slope * index for index in range(count)]

    assert theil_sen(values) == pytest.approx(slope, abs=1e-6)


@given(st.integers(10, 60), st.data())
def test_a_quarter_of_wild_values_leaves_the_slope_between_the_others(count: int, data: st.DataObject) -> None:
    """Sen 1968: the breakdown point is 29 %; a line with clean points keeps its slope exactly in sign."""
    values = [0.3 * index for index in range(count)]
    wild = data.draw(st.lists(st.integers(0, count - 1), max_size=count // 5, unique=True))
    for place in wild:
        values[place] = data.draw(st.floats(-1e6, 1e6))

    assert theil_sen(values) == pytest.approx(0.3, rel=1e-6) or len(wild) > 0.1 * count
    assert theil_sen(values) > 0.0


def test_one_value_has_no_slope() -> None:
    assert math.isnan(theil_sen([1.0]))
    assert math.isnan(theil_sen([]))


@given(st.lists(FINITE, min_size=20, max_size=20), st.floats(1e3, 1e30))
def test_a_spike_of_any_size_moves_the_level_by_a_bounded_amount(values: list[float], spike: float) -> None:
    """Otherwise one explosion would hide the next."""
    level = Level()
    for value in values:
        level.add(value)
    before, spread = level.level, max(level.spread, level.floor)
    level.add(before + spike * spread)

    assert abs(level.level - before) <= level.rate * 3.0 * spread * (1 + 1e-9) + 1e-9 * abs(before)


@given(st.lists(FINITE, max_size=60), st.integers(0, 60))
def test_a_level_goes_on_from_its_json_as_if_never_stopped(values: list[float], cut: int) -> None:
    """Exact resume, for the smallest part that remembers."""
    whole, first = Level(), Level()
    for value in values:
        whole.add(value)
    for value in values[:cut]:
        first.add(value)
    second = from_state(Level, json.loads(json.dumps(to_state(first), allow_nan=False)))
    for value in values[cut:]:
        second.add(value)

    assert whole == second


@given(st.lists(FINITE, min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_enough_values_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_recent_keeps_the_last_ones() -> None:
    recent = Recent(size=3)
    for value in range(5):
        recent.add(float(value))

    assert recent.values == [2.0, 3.0, 4.0]
