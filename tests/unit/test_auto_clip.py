"""A clipping bound from the norms so far, without torch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job_clip import ClipRule
from trainer.auto_clip import AutoBound, percentile_of

finite_norms = st.floats(0.0, 1e30)
any_norms = st.one_of(finite_norms, st.sampled_from([math.nan, math.inf]))


def rule(**fields: float) -> ClipRule:
    return ClipRule.model_validate({"kind": "auto", "window": 8, "warmup_steps": 3, **fields})


@given(norms=st.lists(finite_norms, min_size=1, max_size=30), percentile=st.floats(0.01, 100.0))
def test_a_percentile_is_what_numpy_says(norms: list[float], percentile: float) -> None:
    expected = float(np.percentile(norms, percentile))
    assert percentile_of(sorted(norms), percentile) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(norms=st.lists(any_norms, max_size=40), floor=st.floats(1e-6, 1.0), cap=st.floats(1.0, 1e6))
def test_a_bound_is_the_percentile_of_the_latest_finite_norms_between_floor_and_cap(
    norms: list[float], floor: float, cap: float
) -> None:
    """One NaN in AutoClip's history makes every later gradient NaN; here it was never there."""
    auto = AutoBound(rule(floor=floor, cap=cap))
    for norm in norms:
        auto.observe(norm)
    finite = [norm for norm in norms if math.isfinite(norm)]
    latest = float(np.percentile(finite[-8:], 90.0)) if len(finite) >= 3 else math.inf
    assert auto.bound() == pytest.approx(min(cap, max(floor, latest)))


def test_nothing_is_bounded_during_a_warm_up_without_a_cap() -> None:
    auto = AutoBound(rule())
    auto.observe(1.0)
    auto.observe(1.0)
    assert auto.bound() == math.inf
    auto.observe(1.0)
    assert auto.bound() == 1.0


def test_a_window_of_vanished_gradients_leaves_the_floor() -> None:
    """A bound of zero would freeze whatever came after."""
    auto = AutoBound(rule())
    for _ in range(8):
        auto.observe(0.0)
    assert auto.bound() == 1e-6


def test_a_spike_doesnt_raise_its_own_bound() -> None:
    auto = AutoBound(rule())
    for _ in range(8):
        auto.observe(1.0)
    assert auto.bound() == 1.0
    auto.observe(1e12)
    assert auto.bound() > 1.0


@given(norms=st.lists(any_norms, max_size=30), cut=st.integers(0, 30))
def test_after_a_resume_at_any_step_the_bounds_are_the_same(norms: list[float], cut: int) -> None:
    whole, first, second = AutoBound(rule()), AutoBound(rule()), AutoBound(rule())
    for norm in norms[:cut]:
        whole.observe(norm)
        first.observe(norm)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for norm in norms[cut:]:
        assert second.bound() == whole.bound()
        whole.observe(norm)
        second.observe(norm)
    assert second.bound() == whole.bound()
    assert second.state_dict() == whole.state_dict()


def test_a_shorter_window_takes_over_the_newest_norms() -> None:
    long = AutoBound(rule())
    for norm in (9.0, 9.0, 9.0, 1.0, 2.0, 3.0):
        long.observe(norm)
    short = AutoBound(rule(window=3, percentile=100.0))
    short.load_state_dict(long.state_dict())
    assert short.bound() == 3.0


@pytest.mark.parametrize(
    ("fields", "message"), [({"warmup_steps": 9}, "warmup_steps at most 8"), ({"cap": 1e-7}, "at least 1e-06")]
)
def test_a_rule_that_could_never_begin_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(**fields)
