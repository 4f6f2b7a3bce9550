"""The judge: exact resume at any cut, hysteresis, a budget of alarms, verdicts that JSON can carry."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from tests.sizes import cases
from trainer.health.detectors import DETECTORS, HealthConfig
from trainer.health.fixes import FIXES
from trainer.health.judge import MAX_RESOLVED, Judge
from trainer.health.records import (
    Change,
    DeepStats,
    InputStats,
    LayerStats,
    Life,
    ParameterStats,
    SampleLoss,
    Severity,
    StepStats,
    Verdict,
    VerdictEvent,
)

NAMES = ("a.weight", "b.weight")
CONFIG = HealthConfig(num_classes=10, run="runs/x")


def step_stats(step: int, **changes: Any) -> StepStats:
    plain = StepStats(
        step=step, loss=2.3, lr=0.01, grad_norm=1.0, clipped_norm=1.0, parameters=NAMES, parameter_norms=(0.6, 0.8)
    )
    return replace(plain, **changes)


def deep_stats(step: int, *, slope: float = 0.0, delta_slope: float = 0.0, **changes: Any) -> DeepStats:
    """Twelve layers whose signal changes by `slope` decades a layer forwards, `delta_slope` backwards."""
    layers = tuple(
        LayerStats(
            name=f"layer{depth}",
            kind="Linear",
            activation="ReLU",
            fan_in=128,
            num_units=128,
            mean=0.0,
            std=10 ** (slope * depth),
            sample_std=10 ** (slope * depth),
            delta_rms=10 ** (delta_slope * (11 - depth)),
            weight_norm=1.0,
            grad_norm=0.1,
            never_active=0.0,
            num_observations=4096,
        )
        for depth in range(12)
    )
    parameters = tuple(
        ParameterStats(
            name=f"layer{depth}.weight",
            num_dims=2,
            numel=100,
            layer=f"layer{depth}",
            weight_norm=1.0,
            update_norm=1e-3,
            row_spread=1.0,
        )
        for depth in range(12)
    )
    return replace(DeepStats(step=step, layers=layers, parameters=parameters), **changes)


def fed(judge: Judge, stats: list[StepStats | DeepStats]) -> list[VerdictEvent]:
    return [event for one in stats for event in judge.see(one)]


def one_verdict(judge: Judge, name: str) -> Verdict:
    found = [verdict for verdict in judge.verdicts if verdict.id == name]
    assert len(found) == 1, [str(verdict) for verdict in judge.verdicts]
    return found[0]


NUMBERS = st.one_of(st.floats(1e-3, 1e3), st.sampled_from([math.nan, math.inf, 0.0, 1e30, 1e-30]), st.floats(0.5, 2.0))


@st.composite
def histories(draw: st.DrawFn) -> list[StepStats | DeepStats]:
    history: list[StepStats | DeepStats] = []
    for step in range(draw(st.integers(1, 60))):
        norms = tuple(draw(st.one_of(st.none(), NUMBERS)) for _ in NAMES)
        norm = draw(NUMBERS)
        history.append(
            step_stats(
                step,
                loss=draw(NUMBERS),
                grad_norm=norm,
                parameter_norms=norms,
                clip_threshold=draw(st.sampled_from([None, 0.1, 1e-6])),
                was_clipped=draw(st.booleans()),
                scaler_scale=draw(st.sampled_from([None, 65536.0])),
                optimizer_entries=2,
            )
        )
        if draw(st.booleans()):
            channel = draw(st.floats(0, 255))
            inputs = InputStats(
                num_samples=200, num_values=200, sums=(200 * channel,), square_sums=(200 * channel**2 + 200,),
                minima=(0.0,), maxima=(255.0,), label_min=0.0, label_max=draw(st.sampled_from([0.0, 9.0])),
            )  # fmt: skip
            slope = draw(st.sampled_from([0.0, -0.4, 0.4]))
            history.append(deep_stats(step, slope=slope, delta_slope=slope, inputs=inputs))
    return history


@settings(max_examples=cases(40))
@given(histories(), st.integers(0, 120))
def test_a_history_cut_anywhere_and_restored_ends_in_the_same_verdicts(
    history: list[StepStats | DeepStats], cut: int
) -> None:
    """Law 5 for verdicts: state goes through JSON without NaN, and nothing is lost or said twice."""
    whole, first = Judge(CONFIG), Judge(CONFIG)
    events = fed(whole, history)
    before = fed(first, history[:cut])
    second = Judge.from_dict(json.loads(json.dumps(first.to_dict(), allow_nan=False)), CONFIG)
    after = fed(second, history[cut:])

    assert whole.to_dict() == second.to_dict()
    assert [repr(event) for event in events] == [repr(event) for event in before + after]


@settings(max_examples=cases(40))
@given(histories())
def test_non_finite_steps_leave_no_trace_in_statistics(history: list[StepStats | DeepStats]) -> None:
    """One NaN permanently breaks the published adaptive clippers; here the state holds finite numbers only."""
    judge = Judge(CONFIG)
    fed(judge, history)

    json.dumps(judge.to_dict(), allow_nan=False)


def test_a_quiet_run_raises_nothing() -> None:
    judge = Judge(CONFIG)
    fed(judge, [one for step in range(200) for one in (step_stats(step), deep_stats(step))])

    assert () == judge.verdicts


def test_a_verdict_opens_is_confirmed_and_is_resolved() -> None:
    """Three samples open it, six confirm it, three clean ones resolve it; one clean one does not."""
    judge = Judge(CONFIG)
    steep = [deep_stats(step, delta_slope=-0.5) for step in range(7)]
    events = fed(judge, [*steep, deep_stats(7), *[deep_stats(8, delta_slope=-0.5)], *map(deep_stats, (9, 10, 11))])

    changes = [(event.step, event.change) for event in events]
    assert [(2, Change.OPENED), (5, Change.CONFIRMED), (11, Change.RESOLVED)] == changes
    verdict = one_verdict(judge, "VANISH_BWD")
    assert (Severity.CRITICAL, Life.RESOLVED, 11) == (verdict.severity, verdict.life, verdict.resolved_at)
    assert "kaiming_normal with gain 1.414" in verdict.fix
    assert "std 0.125 at fan_in 128" in verdict.fix


@pytest.mark.parametrize(("num_layers", "is_fault"), [(5, False), (6, False), (7, False), (8, True)])
def test_a_shallow_loss_of_signal_is_no_collapse(num_layers: int, is_fault: bool) -> None:
    """Trend and drop both have to be there: torch's default init costs 0.39 decades a layer, and seven train."""
    judge = Judge(CONFIG)
    for step in range(20):
        deep = deep_stats(step, slope=-0.39, delta_slope=-0.39)
        judge.see(replace(deep, layers=deep.layers[-num_layers:]))

    assert is_fault == any(one.id == "VANISH_BWD" for one in judge.verdicts)
    assert is_fault == bool(judge.verdicts)


@pytest.mark.parametrize(("activation", "is_fault"), [("Sigmoid", True), ("ReLU", False)])
def test_sigmoids_lose_the_signal_sooner_than_a_small_init_does(activation: str, is_fault: bool) -> None:
    """Ten of them under the best init there is lose two decades, and no other init helps."""
    judge = Judge(CONFIG)
    for step in range(20):
        deep = deep_stats(step, delta_slope=-0.19)
        judge.see(replace(deep, layers=tuple(replace(one, activation=activation) for one in deep.layers)))

    assert is_fault == bool(judge.verdicts)


def test_a_signal_that_reaches_the_first_layers_has_not_vanished() -> None:
    """Queries and keys of one attention block have a gradient of their own size, and a shortcut leads past them."""
    judge = Judge(CONFIG)
    sizes = [0.0, -5.0, -5.0, -2.0, -2.0, -2.0, -1.0, 0.0]
    for step in range(20):
        deep = deep_stats(step)
        layers = tuple(replace(one, delta_rms=10**size) for one, size in zip(deep.layers, sizes, strict=False))
        judge.see(replace(deep, layers=layers))

    assert () == judge.verdicts


def with_activations(step: int, names: list[str]) -> DeepStats:
    """A vanishing profile of so many layers."""
    deep = deep_stats(step, delta_slope=-0.5)
    layers = tuple(replace(one, activation=name) for one, name in zip(deep.layers, names, strict=True))
    return replace(deep, layers=(*layers[:6], replace(layers[6], fan_in=3), *layers[7:]))


@pytest.mark.parametrize(
    ("names", "is_blamed"),
    [
        (["ReLU"] * 10 + ["Sigmoid", ""], False),  # a gate
        (["ReLU"] * 11 + ["Sigmoid"], False),  # probabilities
        (["Sigmoid"] * 11 + [""], True),
        (["Sigmoid"] * 6 + ["ReLU"] * 5 + [""], True),
    ],
)
def test_sigmoids_are_blamed_where_they_are_the_usual_activation(names: list[str], is_blamed: bool) -> None:
    """A gate's or an output's is meant; and the deviation is told of the usual layer, not of a bottleneck."""
    judge = Judge(CONFIG)
    fed(judge, [with_activations(step, names) for step in range(3)])

    fix = one_verdict(judge, "VANISH_BWD").fix
    assert is_blamed == ("replace Sigmoid by ReLU or GELU" in fix)
    assert "kaiming_normal with gain 1.414 for ReLU, std 0.125 at fan_in 128" in fix


def test_a_collapse_says_how_much_larger_the_weights_must_be() -> None:
    judge = Judge(CONFIG)
    fed(judge, [deep_stats(step, slope=-0.4) for step in range(3)])

    verdict = one_verdict(judge, "COLLAPSE_FWD")
    assert f"by {10**0.4:.3g}" in verdict.fix
    assert verdict.evidence["between samples"] == pytest.approx(-0.4)


def test_normalised_stretches_are_not_linted_forwards() -> None:
    """A norm layer takes the scale away, whatever it was."""
    judge = Judge(CONFIG)
    for step in range(20):
        deep = deep_stats(step, slope=-0.4)
        judge.see(replace(deep, layers=tuple(replace(one, stretch=place) for place, one in enumerate(deep.layers))))

    assert () == judge.verdicts


def test_a_non_finite_step_names_its_batch_and_the_command_that_shows_it() -> None:
    judge = Judge(CONFIG)
    fed(judge, [step_stats(step) for step in range(10)])
    bad = step_stats(
        10, loss=math.nan, grad_norm=math.nan, was_skipped=True, is_input_finite=False,
        batch={"step": 10, "start": 640, "stop": 704, "sample_ids": [7, 8, 9]},
        worst_samples=(SampleLoss(index=2, loss=math.nan),),
    )  # fmt: skip
    events = judge.see(bad)

    assert [Change.OPENED] == [event.change for event in events]
    verdict = one_verdict(judge, "NONFINITE")
    assert Severity.CRITICAL is verdict.severity
    assert "headrace replay runs/x --step 10 --out sheet.png" in verdict.fix
    assert "the input batch" in verdict.fix
    trace = verdict.traces[0]
    assert 640 == trace["batch"]["start"]
    assert [{"index": 2, "loss": "nan", "id": "9"}] == trace["worst_samples"]


@pytest.mark.parametrize(("num_bad", "severity"), [(3, Severity.INFO), (4, Severity.CRITICAL)])
def test_a_loss_scale_may_halve_three_times_in_a_row(num_bad: int, severity: Severity) -> None:
    """fp16 begins with 65,536 and has to find its scale; skipping on and on is no calibration."""
    judge = Judge(CONFIG)
    fed(
        judge,
        [
            step_stats(step, grad_norm=math.inf, scaler_scale=65536.0, was_skipped=True)
            for step in range(num_bad)
        ],
    )  # fmt: skip

    assert severity is max(verdict.severity for verdict in judge.verdicts)


def test_a_spike_names_the_largest_shares_and_a_threshold_for_clipping() -> None:
    judge = Judge(CONFIG)
    fed(judge, [step_stats(step, grad_norm=1.0 + 0.1 * (step % 3)) for step in range(60)])
    judge.see(step_stats(60, grad_norm=500.0, parameter_norms=(10.0, 499.9)))

    verdict = one_verdict(judge, "EXPLODE")
    assert (Severity.WARN, "spike") == (verdict.severity, verdict.kind)
    assert "b.weight 100%" in verdict.fix
    assert "clip the global norm at 1.2" in verdict.fix


def test_a_converged_run_may_jump_below_its_own_beginning() -> None:
    """From 1e-4 to 1e-2 is a z of dozens, and harmless: recorded, no alarm."""
    judge = Judge(CONFIG)
    fed(judge, [step_stats(step, grad_norm=10 ** -min(step / 50, 4)) for step in range(400)])
    judge.see(step_stats(400, grad_norm=1e-2))

    assert Severity.INFO is one_verdict(judge, "EXPLODE").severity


def test_alarms_beyond_the_budget_are_kept_but_not_announced() -> None:
    """A run that flaps must not bury the reader; CRITICAL has a quarter of the budget to itself."""
    judge = Judge(replace(CONFIG, num_alarms_per_1000_steps=4))
    step = 0
    for _ in range(6):  # each spike is a verdict of its own, once the one before it is resolved
        fed(judge, [step_stats(step + offset, grad_norm=1.0) for offset in range(60)])
        judge.see(step_stats(step + 60, grad_norm=500.0))
        step += 61
    judge.see(step_stats(step, loss=math.nan))

    assert [True] * 3 + [False] * 3 == [one.is_announced for one in judge.verdicts if one.id == "EXPLODE"]
    assert one_verdict(judge, "NONFINITE").is_announced
    assert 3 == judge.num_unannounced


def test_news_that_becomes_an_alarm_needs_its_place_in_the_budget() -> None:
    """Else what opens as INFO and gets worse would be told beyond all bounds."""
    judge = Judge(replace(CONFIG, num_alarms_per_1000_steps=1))
    judge.see(step_stats(0, loss=math.nan))
    for step, total in ((1, 150.0), (2, 150.0), (3, 3e5)):
        inputs = InputStats(
            num_samples=300, num_values=300, sums=(total,), square_sums=(375.0,), minima=(0.0,), maxima=(1.0,)
        )
        judge.see(deep_stats(step, inputs=inputs))

    raised = one_verdict(judge, "INPUT")
    assert (Severity.WARN, False) == (raised.severity, raised.is_announced)
    assert 1 == judge.num_unannounced


def test_an_alarm_that_was_held_back_is_told_when_it_becomes_critical() -> None:
    """A quarter of the budget is kept for that."""
    judge = Judge(replace(CONFIG, num_alarms_per_1000_steps=4))
    step = 0
    for _ in range(3):
        fed(judge, [step_stats(step + offset, grad_norm=1.0) for offset in range(60)])
        judge.see(step_stats(step + 60, grad_norm=500.0))
        step += 61
    fed(judge, [deep_stats(step + offset, delta_slope=-0.24) for offset in range(3)])
    held_back = one_verdict(judge, "VANISH_BWD")
    fed(judge, [deep_stats(step + offset, delta_slope=-0.5) for offset in range(3, 9)])
    told = one_verdict(judge, "VANISH_BWD")

    assert (Severity.WARN, False) == (held_back.severity, held_back.is_announced)
    assert (Severity.CRITICAL, True) == (told.severity, told.is_announced)
    assert 0 == judge.num_unannounced


def test_tiny_gradients_are_no_fault_under_adam_until_eps_decides() -> None:
    """Optimizer-aware: what counts is the update."""

    def with_root_v(root_v: float) -> list[StepStats | DeepStats]:
        history: list[StepStats | DeepStats] = []
        for step in range(5):
            deep = deep_stats(step)
            tiny = tuple(replace(one, adam_root_v=root_v, adam_eps=1e-8, grad_norm=1e-6) for one in deep.parameters)
            history += [step_stats(step, grad_norm=1e-6), replace(deep, parameters=tiny)]
        return history

    healthy, suppressed = Judge(CONFIG), Judge(CONFIG)
    fed(healthy, with_root_v(1e-6))
    fed(suppressed, with_root_v(5e-9))

    assert () == healthy.verdicts
    assert "set Adam's eps to 5e-11" in one_verdict(suppressed, "ADAM_FLOOR").fix


def test_a_small_step_at_the_end_of_a_schedule_is_meant() -> None:
    judge = Judge(CONFIG)
    for step in range(100):
        lr = 0.01 if step < 50 else 1e-5
        deep = deep_stats(step)
        still = tuple(replace(one, update_norm=1e-3 * lr) for one in deep.parameters) if step >= 50 else deep.parameters
        judge.see(step_stats(step, lr=lr))
        judge.see(replace(deep, parameters=still))

    assert () == judge.verdicts


@pytest.mark.parametrize(("job_lr", "told"), [(0.0, 0.01), (0.01, 0.0), (0.0, 0.0)])
def test_a_small_step_at_the_beginning_of_a_long_warm_up_is_meant(job_lr: float, told: float) -> None:
    """The largest rate so far is that of now; what the schedule climbs to is known from the optimizer or the job, and
    that it climbs in any case."""
    judge = Judge(replace(CONFIG, base_lr=job_lr))
    for step in range(100):
        deep = deep_stats(step)
        slow = tuple(replace(one, update_norm=1e-7) for one in deep.parameters)
        judge.see(step_stats(step, lr=0.01 * (step + 1) / 5000, base_lr=told))
        judge.see(replace(deep, parameters=slow))

    assert () == judge.verdicts


def test_the_first_finite_loss_is_the_one_that_is_judged() -> None:
    """A NaN in the first batch says nothing about the head; the loss after it does."""
    nan = [step_stats(step, loss=math.nan, grad_norm=math.nan, was_skipped=True) for step in range(3)]
    well, loud, late = Judge(CONFIG), Judge(CONFIG), Judge(CONFIG)
    fed(well, [*nan, step_stats(3)])
    fed(loud, [*nan, step_stats(3, loss=30.0), step_stats(4, loss=30.0)])
    fed(late, [step_stats(40, loss=math.nan), step_stats(41, loss=30.0)])

    assert ["NONFINITE"] == [one.id for one in well.verdicts]
    assert {"loss": 30.0} == {key: value for key, value in one_verdict(loud, "LOSS0").evidence.items() if key == "loss"}
    assert ["NONFINITE"] == [one.id for one in late.verdicts], "a run not seen from its first step"


def test_an_inexact_resume_is_told_by_what_the_optimizer_forgot() -> None:
    judge = Judge(CONFIG)
    fed(judge, [step_stats(step, optimizer_entries=2) for step in range(30)])
    restored = Judge.from_dict(judge.to_dict(), CONFIG)
    restored.resumed()
    restored.see(step_stats(30, optimizer_entries=0))

    assert "2 parameters" in one_verdict(restored, "RESUME").fix


def test_every_detector_has_its_thresholds_source_and_a_fix_for_each_kind() -> None:
    """The table is the only home of numbers and texts; the two files must agree."""
    assert set(DETECTORS) == set(FIXES)
    for name, detector in DETECTORS.items():
        assert detector.source, name
        assert detector.clears, name
        assert all(one.unit and one.reason for one in detector.thresholds.values()), name


def test_an_unknown_threshold_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"CLIP\.warn_rate"):
        HealthConfig(thresholds={"CLIP.warn_rat": 0.1})


def test_a_user_may_change_a_threshold_and_switch_a_detector_off() -> None:
    steep: list[StepStats | DeepStats] = [deep_stats(step, delta_slope=-0.2) for step in range(5)]
    strict, off = (
        Judge(HealthConfig(thresholds={"VANISH_BWD.critical_slope": -0.1, "VANISH_BWD.critical_drop": 1.0})),
        (Judge(HealthConfig(off=("VANISH_BWD",)))),
    )
    fed(strict, steep)
    fed(off, steep)

    assert Severity.CRITICAL is one_verdict(strict, "VANISH_BWD").severity
    assert () == off.verdicts


def test_a_verdict_goes_to_json_and_back() -> None:
    judge = Judge(CONFIG)
    judge.see(step_stats(0, loss=math.nan, batch={"step": 0}))
    verdict = judge.verdicts[0]

    assert verdict == Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False)))


@settings(max_examples=cases(40))
@given(histories())
def test_a_step_that_is_noted_leaves_what_one_that_is_seen_leaves(history: list[StepStats | DeepStats]) -> None:
    """So it doesn't matter to verdicts in which steps parameters are measured: only what is cheap was left out."""
    whole, noted = Judge(CONFIG), Judge(CONFIG)
    for stats in history:
        if isinstance(stats, DeepStats):
            assert repr(whole.see(stats)) == repr(noted.see(stats))
            continue
        plain = replace(stats, parameters=(), parameter_norms=())
        is_suspicious = math.isfinite(plain.grad_norm) and noted.is_suspicious(plain.grad_norm)
        events = None if is_suspicious else noted.note(plain)
        assert repr(whole.see(plain)) == repr(noted.see(plain) if events is None else events)

    assert whole.to_dict() == noted.to_dict()


def test_growth_is_suspicious_before_it_is_seen_so_that_its_batch_is_kept() -> None:
    """CRITICAL as it is, it must not be the one verdict without samples; five batches are enough."""
    judge = Judge(CONFIG)
    fed(judge, [step_stats(step, grad_norm=1e-3) for step in range(100)])
    for step in range(100, 300):
        norm = 1e-3 * 10 ** min(2.5, (step - 100) / 50)
        is_wanted = judge.wants_trace(norm)
        judge.see(step_stats(step, grad_norm=norm, batch={"step": step} if is_wanted else None))

    growth = next(one for one in judge.verdicts if one.kind == "growth")
    assert [{"step": growth.first_step + place} for place in range(5)] == [one["batch"] for one in growth.traces]
    assert growth.num_hits > 5


def test_what_layers_show_is_traced_to_its_batch_once() -> None:
    """A step whose loss was traced already has told more than its layers can."""
    batch = {"step": 0, "start": 0, "stop": 32, "sample_ids": [7, 8]}
    worst = (SampleLoss(index=1, loss=9.5),)
    bad = deep_stats(0, delta_slope=0.5, batch=batch, scaler_scale=2.0**20, worst_samples=worst)
    bad = replace(bad, parameters=(replace(bad.parameters[0], grad_max=1.0), *bad.parameters[1:]))
    judge = Judge(CONFIG)
    fed(judge, [replace(bad, step=step) for step in range(3)])
    judge.see(step_stats(3, loss=math.nan, batch=batch))
    judge.see(deep_stats(3, layers=(replace(bad.layers[0], is_finite=False),), batch=batch))
    judge.see(deep_stats(4, layers=(replace(bad.layers[0], is_finite=False),), batch=batch))

    traces = {f"{one.id}/{one.kind}": one.traces for one in judge.verdicts}
    assert [[2], [0, 1, 2], [3, 4]] == [
        [trace["step"] for trace in traces[key]] for key in ("EXPLODE/depth", "EXPLODE/fp16", "NONFINITE/")
    ]
    assert all(trace["batch"] == batch for kept in traces.values() for trace in kept)
    assert ["nan", None] == [trace.get("loss") for trace in traces["NONFINITE/"]]
    named = [{"index": 1, "loss": 9.5, "id": "8"}]
    for kind, step in (("depth", 2), ("fp16", 2)):
        assert all(trace["worst_samples"] == named for trace in traces[f"EXPLODE/{kind}"])
        fix = next(one.fix for one in judge.verdicts if one.kind == kind)
        assert f"; to see its samples: headrace replay runs/x --step {step} --out sheet.png" in fix


def test_a_run_of_weeks_keeps_its_last_resolved_verdicts_and_all_open_ones() -> None:
    """The journal has the others. What is over keeps its worst samples, not the ids of all: its place says those."""
    judge, step, events = Judge(), 0, []
    for _ in range(MAX_RESOLVED + 7):
        batch = {"step": step, "start": 64 * step, "stop": 64 * step + 64, "sample_ids": list(range(64))}
        worst = (SampleLoss(index=2, loss=math.nan),)
        events += fed(judge, [step_stats(step, loss=math.nan, batch=batch, worst_samples=worst)])
        assert 64 == len(judge.verdicts[-1].traces[0]["batch"]["sample_ids"])
        events += fed(judge, [step_stats(one) for one in range(step + 1, step + 51)])
        step += 51
    judge.see(step_stats(step, loss=math.nan))
    restored = Judge.from_dict(json.loads(json.dumps(judge.to_dict())))

    for one in (judge, restored):
        assert [*range(8, MAX_RESOLVED + 9)] == [verdict.number for verdict in one.verdicts]
        assert (7, None) == (one.num_dropped, one.verdicts[-1].resolved_at)
    assert {*range(1, MAX_RESOLVED + 8)} == {event.verdict.number for event in events}
    trace = judge.verdicts[0].traces[0]
    assert {"step", "start", "stop"} == set(trace["batch"])
    assert "2" == trace["worst_samples"][0]["id"]
