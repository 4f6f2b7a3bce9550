"""Rules that calibration has mended: what they must tell apart, and the numbers that their fixes print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.test_health_judge import CONFIG, deep_stats, fed, step_stats
from trainer.health.judge import Judge
from trainer.health.records import DeepStats, InputStats, ParameterStats, Severity, StepStats, Verdict


def verdicts(name: str, stats: Sequence[StepStats | DeepStats]) -> list[Verdict]:
    judge = Judge(CONFIG)
    fed(judge, list(stats))
    return [one for one in judge.verdicts if one.id == name]


def clipped_steps(norms_after: Sequence[float], *, loss: float = 2.3) -> list[StepStats | DeepStats]:
    """Every step clipped from norm 8; nobody says what the threshold is."""
    return [
        step_stats(step, grad_norm=8.0, clipped_norm=norm, was_clipped=True, loss=2.3 if step == 0 else loss)
        for step, norm in enumerate(norms_after)
    ]


def test_a_norm_that_is_the_same_after_clipping_is_a_threshold() -> None:
    (verdict,) = verdicts("CLIP", clipped_steps([1.0] * 320))

    assert verdict.severity is Severity.WARN
    assert verdict.evidence["threshold"] == 1.0
    assert "set the clip threshold to 8 " in verdict.fix


def test_clipping_unit_by_unit_has_no_threshold_to_judge() -> None:
    """AGC and clipping by value bound parts: each step may be clipped, and the norm afterwards is another each time."""
    assert verdicts("CLIP", clipped_steps([0.8 + 0.1 * (step % 5) for step in range(320)])) == []


def test_clipping_each_step_of_a_run_that_learns_is_news_only() -> None:
    """Under Adam a constant factor cancels; a threshold a hundred times too low stays a warning."""
    (mild,) = verdicts("CLIP", clipped_steps([1.0] * 320, loss=0.5))
    (severe,) = verdicts("CLIP", clipped_steps([0.05] * 320, loss=0.5))

    assert mild.severity is Severity.INFO
    assert severe.severity is Severity.WARN


def moved(name: str, layer: str, *, weight: float, update: float) -> ParameterStats:
    return ParameterStats(
        name=name, num_dims=3, numel=100, layer=layer, weight_norm=weight, update_norm=update, row_spread=1.0
    )


def small_net(step: int, *parameters: ParameterStats) -> DeepStats:
    return replace(deep_stats(step), parameters=parameters)


def test_a_token_of_a_container_has_no_scale_to_compare_its_update_with() -> None:
    """Class tokens, positions and layer scales begin at zero or at any size; weights beside children are judged."""
    child = moved("head.weight", "head", weight=1.0, update=1e-3)
    token = moved("position", "", weight=0.5, update=0.05)
    attention = moved("in_proj_weight", "", weight=0.5, update=0.05)

    assert verdicts("UPDATE_RATIO", [small_net(10 * step, token, child) for step in range(6)]) == []
    (found,) = verdicts("UPDATE_RATIO", [small_net(10 * step, attention, child) for step in range(6)])
    assert found.layers == ("in_proj_weight",)


@pytest.mark.parametrize(("num_units", "named"), [(3, "a0.weight, a1.weight, a2.weight then"), (4, "(4 parameters)")])
def test_parameters_are_not_counted_as_layers(num_units: int, named: str) -> None:
    """A weight and a bias are two parameters of one layer."""
    moving = [moved(f"a{place}.weight", f"a{place}", weight=1.0, update=0.5) for place in range(num_units)]
    (found,) = verdicts("UPDATE_RATIO", [small_net(10 * step, *moving) for step in range(6)])

    assert named in found.fix


def silent(step: int, share: float, num_observations: int = 4096) -> DeepStats:
    plain = deep_stats(step)
    layers = (replace(one, never_active=share, num_observations=num_observations) for one in plain.layers)
    return replace(plain, layers=tuple(layers))


def test_units_that_died_in_training_are_a_matter_of_the_rate() -> None:
    """They fired at the start, so initial weights and biases were in order."""
    (found,) = verdicts("DEAD", [step_stats(0, lr=3.0), *(silent(10 * n, 0.0 if n == 0 else 0.9) for n in range(5))])

    assert 0.0 == found.evidence["at start"]
    assert "(12 layers): these units fired at the start and died in training" in found.fix
    assert "the learning rate that an earlier verdict names; where none does, multiply the learning rate" in found.fix
    assert "LeakyReLU" not in found.fix


@pytest.mark.parametrize("num_observations", [512, 4096])
def test_units_that_never_fired_are_a_matter_of_init_and_bias(num_observations: int) -> None:
    """Whether the first window is full or not."""
    (found,) = verdicts("DEAD", [step_stats(0), *(silent(10 * n, 0.9, num_observations) for n in range(5))])

    assert 0.9 == found.evidence["at start"]
    assert "replace ReLU by LeakyReLU(0.01), kaiming_normal with gain 1.414" in found.fix
    assert "learning rate" not in found.fix


def test_a_weight_as_long_as_its_first_update_began_at_zero() -> None:
    """Norms are measured after the update, so a zero-initialised head has a length by then."""
    first = small_net(0, moved("head.weight", "head", weight=0.032, update=0.032))
    later = [small_net(10 * step, moved("head.weight", "head", weight=0.3, update=0.03)) for step in range(1, 7)]

    assert verdicts("UPDATE_RATIO", [first, *later]) == []
    assert verdicts("UPDATE_RATIO", later) != []


def test_a_weight_drawn_far_below_its_scale_is_meant_to_grow() -> None:
    """A policy's head: its first steps of Adam are a third of it, and a rate at which they are not learns nothing."""

    def head(weight: float, step: int) -> DeepStats:
        length = weight + 0.003 * step
        return small_net(
            step, replace(moved("head.weight", "head", weight=length, update=0.003), numel=640, num_rows=10)
        )

    assert verdicts("UPDATE_RATIO", [head(0.01, step) for step in (0, 1, 2, 4, 8, 16, 32)]) == []
    grown = [small_net(step, moved("a.weight", "a", weight=1.0, update=0.3)) for step in (0, 1, 2, 4)]
    assert [one.severity for one in verdicts("UPDATE_RATIO", grown)] == [Severity.CRITICAL]


def test_a_scale_for_each_channel_may_begin_at_one_for_all() -> None:
    """Of shape (C, 1, 1): each row is one number, and no unit's weights."""
    scale = ParameterStats(name="scale", num_dims=3, numel=16, num_rows=16, layer="", row_spread=0.0)
    copied = replace(scale, numel=160)

    assert verdicts("SYMMETRY", [small_net(step, scale) for step in range(1, 6)]) == []
    assert len(verdicts("SYMMETRY", [small_net(step, copied) for step in range(1, 6)])) == 1


def labelled(step: int, low: float, high: float, num_samples: int = 256) -> DeepStats:
    inputs = InputStats(
        num_samples=num_samples, num_values=num_samples, sums=(0.0,), square_sums=(float(num_samples),),
        minima=(-1.0,), maxima=(1.0,), label_min=low, label_max=high,
    )  # fmt: skip
    return replace(deep_stats(step), inputs=inputs)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_a_rare_class_is_waited_for(num_classes: int) -> None:
    """At 1 % positives one window of 256 in 13 has none; 2,048 have, and what was seen once exists."""
    judge = Judge(replace(CONFIG, num_classes=num_classes))
    fed(judge, [labelled(step, 0.0, float(step == 5)) for step in range(8)])
    fed(judge, [labelled(step, 0.0, 0.0) for step in range(8, 40)])
    assert judge.verdicts == ()

    alone = Judge(replace(CONFIG, num_classes=num_classes))
    fed(alone, [labelled(step, 0.0, 0.0) for step in range(7)])
    assert alone.verdicts == ()
    alone.see(labelled(7, 0.0, 0.0))
    assert [("INPUT", "labels", 2048)] == [(one.id, one.kind, one.evidence["samples"]) for one in alone.verdicts]


def test_one_label_of_many_is_told_after_256() -> None:
    (verdict,) = verdicts("INPUT", [labelled(0, 3.0, 3.0)])
    assert verdict.kind == "labels"


def test_a_small_update_behind_a_tight_clip_is_blamed_on_the_clip() -> None:
    def steps(clipped_norm: float) -> list[StepStats | DeepStats]:
        weight = moved("a.weight", "a", weight=1.0, update=1e-7)
        return [
            one
            for step in range(0, 60, 10)
            for one in (
                step_stats(step, grad_norm=2.0, clipped_norm=clipped_norm, clip_threshold=clipped_norm),
                small_net(step, weight),
            )
        ]

    (blamed,) = verdicts("UPDATE_RATIO", steps(1e-6))
    (plain,) = verdicts("UPDATE_RATIO", steps(1.0))
    assert "set its threshold to 2 " in blamed.fix
    assert "multiply the learning rate" in plain.fix


def test_initial_weights_are_mended_by_the_first_profile() -> None:
    """Two steps of Adam lift a collapsed net; the factor for what was drawn is the first one."""
    (verdict,) = verdicts("COLLAPSE_FWD", [deep_stats(0, slope=-0.9), *(deep_stats(s, slope=-0.6) for s in (1, 2))])

    assert f"by {10**0.9:.3g} " in verdict.fix


def test_a_collapse_that_came_later_is_mended_by_its_own_profile() -> None:
    (verdict,) = verdicts("COLLAPSE_FWD", [deep_stats(0), *(deep_stats(step, slope=-0.6) for step in range(1, 9))])

    assert f"by {10**0.6:.3g} " in verdict.fix


@pytest.mark.parametrize("lr", [0.002, 0.05, 0.1, 1e-6])
def test_a_fix_of_the_learning_rate_is_of_the_one_that_a_person_sets(lr: float) -> None:
    """The schedule's rate of this step is in no job: what it names would be another in each step."""
    weight = moved("a.weight", "a", weight=1.0, update=0.1)
    for base_lr, job_lr, told in (
        (0.1, 0.0, "(0.1 ->"),
        (0.1, 0.2, "(optimizer.lr 0.2 ->"),
        (0.0, 0.0, f"({lr:.3g} ->"),
    ):
        judge = Judge(replace(CONFIG, base_lr=job_lr))
        for step in range(0, 60, 10):
            fed(judge, [step_stats(step, lr=lr, base_lr=base_lr), small_net(step, weight)])
        (found,) = judge.verdicts
        assert f"multiply the learning rate by 0.01 {told}" in found.fix


def slow(step: int, update: float, **changes: float) -> DeepStats:
    weight = moved("a.weight", "a", weight=1.0, update=update)
    return replace(deep_stats(step, **changes), parameters=(weight,))


def test_no_more_than_ten_times_the_learning_rate_is_proposed_in_one_try() -> None:
    (near,) = verdicts("UPDATE_RATIO", [step_stats(0), *(slow(10 * step, 5e-6) for step in range(6))])
    (far,) = verdicts("UPDATE_RATIO", [step_stats(0), *(slow(10 * step, 2e-11) for step in range(6))])

    assert "multiply the learning rate by 10 (0.01 -> 0.1), again if this comes back, or" in near.fix
    assert near.fix == far.fix


def test_a_small_update_is_told_also_where_each_step_is_a_sample() -> None:
    """The window must not be shorter than the span it has to show."""
    (verdict,) = verdicts("UPDATE_RATIO", [step_stats(0), *(slow(step, 1e-7) for step in range(30))])
    assert verdict.first_step == 19


def test_a_small_update_of_a_vanished_gradient_says_so_until_that_is_mended() -> None:
    judge = Judge(CONFIG)
    judge.see(step_stats(0))
    fed(judge, [slow(10 * step, 2e-11, delta_slope=-0.5) for step in range(6)])
    (during,) = [one.fix for one in judge.verdicts if one.id == "UPDATE_RATIO"]
    fed(judge, [slow(10 * step, 2e-11) for step in range(6, 10)])
    (after,) = [one.fix for one in judge.verdicts if one.id == "UPDATE_RATIO"]

    assert during == "this follows from VANISH_BWD, open here too: mend that first, no learning rate does"
    assert "multiply the learning rate by 10" in after


def test_a_clip_threshold_is_of_the_norms_before_the_growth() -> None:
    """At the end of it nine in ten norms are huge, and a threshold of their size bounds nothing."""
    grown = [step_stats(step, grad_norm=1.5 * 10 ** (max(0, step - 40) / 4)) for step in range(140)]
    (verdict,) = [one for one in verdicts("EXPLODE", grown) if one.kind == "growth"]

    assert verdict.evidence["grad_norm"] == pytest.approx(1.5 * 10 ** (99 / 4))
    assert "clip the global norm at 1.5 " in verdict.fix


def test_no_clip_threshold_is_made_up_where_no_norm_was_ordinary() -> None:
    wild = [step_stats(step, grad_norm=1e20 * 10 ** (max(0, step - 40) / 4)) for step in range(60)]
    for verdict in verdicts("EXPLODE", [*wild, *(deep_stats(step, delta_slope=0.5) for step in range(60, 63))]):
        assert "the global norm at" not in verdict.fix, verdict.kind


def saturated(step: int, share: float) -> DeepStats:
    stats = deep_stats(step)
    layers = tuple(replace(layer, activation="Tanh", saturated=share, std=5.0) for layer in stats.layers)
    return replace(stats, layers=layers)


def test_saturation_is_blamed_on_what_brought_it_about() -> None:
    (drawn,) = verdicts("SATURATED", [saturated(step, 0.8) for step in range(3)])
    (grown,) = verdicts("SATURATED", [saturated(0, 0.1), *(saturated(step, 0.8) for step in range(1, 5))])

    assert "shrink the initial weights by 0.2" in drawn.fix
    assert "multiply the learning rate by 0.1" in grown.fix


def test_normalize_is_printed_with_a_number_for_each_channel() -> None:
    """As the chain takes it; several channels seldom share a mean."""
    inputs = InputStats(
        num_samples=300,
        num_values=1000,
        sums=(100_000.0, 50_000.0),
        square_sums=(10_400_000.0, 2_900_000.0),
        minima=(0.0, 0.0),
        maxima=(255.0, 255.0),
    )

    (verdict,) = verdicts("INPUT", [replace(deep_stats(0), inputs=inputs)])

    assert "Normalize(mean=[0.392, 0.196], std=[0.0784, 0.0784], max_pixel_value=255)" in verdict.fix
