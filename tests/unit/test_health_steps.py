"""What is said of steps counts steps: judged in each, or in a few of them, the verdicts are the same."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.unit.test_health_judge import CONFIG, deep_stats, fed, one_verdict, step_stats
from trainer.health.judge import Judge
from trainer.health.records import Severity


@pytest.mark.parametrize("every", [1, 5, 20])
def test_fifty_finite_steps_resolve_a_bad_one_however_few_of_them_are_measured(every: int) -> None:
    """The table says steps: by samples it would be a thousand of them."""
    judge = Judge(CONFIG)
    judge.see(step_stats(0, loss=math.nan))
    fed(judge, [step_stats(step) for step in range(every, 200, every)])

    resolved_at = one_verdict(judge, "NONFINITE").resolved_at
    assert resolved_at == 50 + -50 % every


@pytest.mark.parametrize("every", [1, 5, 20])
def test_rates_and_growth_are_over_steps_however_few_of_them_are_measured(every: int) -> None:
    """300 steps of clipping each, and two decades within 200 steps: by samples these would be thousands of steps."""
    judge = Judge(CONFIG)
    steps = range(0, 700, every)
    fed(judge, [step_stats(step, grad_norm=8.0, clip_threshold=1.0, was_clipped=True) for step in steps])
    clip = one_verdict(judge, "CLIP")
    growing = Judge(CONFIG)
    fed(growing, [step_stats(step, grad_norm=10 ** (max(0, step - 300) / 60)) for step in steps])
    growth = next(one for one in growing.verdicts if one.kind == "growth")

    assert 299 <= clip.first_step < 299 + 2 * 50
    assert 400 < growth.first_step < 520


def test_the_first_steps_after_a_resume_are_counted_by_their_numbers() -> None:
    judge = Judge(CONFIG)
    fed(judge, [step_stats(step, optimizer_entries=2) for step in range(40)])
    judge.resumed()
    fed(judge, [step_stats(step, optimizer_entries=0) for step in (40, 50)])
    assert judge.is_after_resume
    judge.see(step_stats(60, optimizer_entries=2))
    assert not judge.is_after_resume
    fed(judge, [step_stats(step, optimizer_entries=2) for step in range(70, 150, 10)])

    assert 140 == one_verdict(judge, "RESUME").resolved_at


def test_a_verdict_on_depth_is_resolved_by_three_deep_samples() -> None:
    """They come every fiftieth step: one of them is no proof, and twenty would take a thousand steps."""
    judge = Judge(CONFIG)
    fed(judge, [deep_stats(step, delta_slope=0.5) for step in (0, 1, 2)])
    fed(judge, [deep_stats(step) for step in (50, 100, 150)])

    assert 150 == next(one for one in judge.verdicts if one.kind == "depth").resolved_at


def test_a_bad_step_is_pending_until_fifty_finite_ones_have_followed() -> None:
    """A skipped one counts, unless a loss scale is being found; whether anything is said of them does not."""
    for bad, is_pending in (
        (step_stats(10, loss=math.nan), True),
        (step_stats(10, was_skipped=True), True),
        (step_stats(10, grad_norm=math.inf, was_skipped=True, scaler_scale=65536.0), False),
    ):
        judge = Judge(replace(CONFIG, off=("NONFINITE",)))
        fed(judge, [*map(step_stats, range(10)), bad])
        assert is_pending == judge.is_nonfinite_pending
        fed(judge, [step_stats(step) for step in range(11, 60)])
        assert is_pending == Judge.from_dict(judge.to_dict(), CONFIG).is_nonfinite_pending
        judge.see(step_stats(60))
        assert not judge.is_nonfinite_pending


def test_it_is_critical_from_the_first_sample_that_shows_it_until_the_verdict_is_resolved() -> None:
    """It takes three samples to open one: a checkpoint between the first and the third has the same fault."""
    judge = Judge(CONFIG)
    seen = []
    for step in range(8):
        judge.see(deep_stats(step, delta_slope=-0.5 if step < 4 else 0.0))
        seen.append(judge.is_critical)

    assert (2, 6) == (judge.verdicts[0].first_step, judge.verdicts[0].resolved_at)
    assert [True] * 6 + [False] * 2 == seen
    assert not Judge.from_dict(judge.to_dict(), CONFIG).is_critical


def test_what_is_off_or_a_warning_is_not_critical() -> None:
    quiet, warned = Judge(replace(CONFIG, off=("VANISH_BWD",))), Judge(CONFIG)
    fed(quiet, [deep_stats(step, delta_slope=-0.5) for step in range(4)])
    fed(warned, [deep_stats(step, delta_slope=-0.25) for step in range(4)])

    assert (Severity.WARN, False) == (one_verdict(warned, "VANISH_BWD").severity, warned.is_critical)
    assert not quiet.is_critical
