"""The benchmark of what watching costs says what it measured, and watching together what was one by one is the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from headrace.health_bench import bench_health
from trainer.health.cost import ROUND, Cost, Estimate, Pair, Subject, agrees, build_thin, estimate, holds
from trainer.health.measure_weights import MAX_COLUMNS, MAX_V_VALUES, adam_roots, row_spreads
from trainer.health.overhead import Overhead, Pace


def an_overhead(
    *,
    light_s: float = 0.0,
    idle_s: float = 0.0,
    deep_s: float = 0.0,
    every: tuple[int, int],
    is_fixed: bool = False,
    num_steps: int = 100,
) -> Overhead:
    return Overhead(
        num_steps=num_steps,
        num_deep_steps=10,
        step_s=0.1,
        light_s=light_s,
        idle_s=idle_s,
        deep_s=deep_s,
        light_every=every[0],
        deep_every=every[1],
        measured_light_share=0.0,
        measured_deep_share=0.0,
        is_light_fixed=is_fixed,
        is_deep_fixed=is_fixed,
    )


def a_cost(light_every: int) -> Cost:
    """Steps of 0.1 s; 2 ms more for a light one, 0.4 ms for one that isn't measured, 50 ms for a deep one."""
    extra = {"deep": 0.05, "light": 0.002, "idle": 0.0004}
    kinds = ("deep", *(("light",) * 7 if light_every == 1 else ("idle", "light") * 3), "idle")[:ROUND]
    pairs = tuple(
        Pair(kind=kind, alone_s=0.1, watched_s=0.1 + extra[kind], alone_wall_s=0.1)  # type: ignore[arg-type]
        for kind in kinds
    )
    return Cost(
        name="m",
        num_tensors=4,
        rounds=(pairs,) * 10,
        auto=an_overhead(every=(light_every, 50)),
        fixed=an_overhead(light_s=0.002, idle_s=0.0004, deep_s=0.05, every=(2, 8)),
        are_weights_equal=True,
    )


@pytest.mark.parametrize(("light_every", "light_share"), [(1, 0.02), (4, (0.02 + 3 * 0.004) / 4)])
def test_shares_are_those_of_the_long_run(light_every: int, light_share: float) -> None:
    """Both measurements, at the chosen intervals and not at those of the benchmark; steps between count as well."""
    cost = a_cost(light_every)

    for share in (cost.light_share.value, cost.own_light_share):
        assert share == pytest.approx(light_share)
    for share in (cost.deep_share.value, cost.own_deep_share):
        assert share == pytest.approx(0.5 / 50)
    assert cost.ratio.value == pytest.approx(1.0 + light_share + 0.01)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of 2,000 medians of 31 values of a skewed distribution."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 31, generator=generator).log().neg()
    found = [estimate(values) for values in draws.tolist()]
    num_held = sum(one.low <= math.log(2) <= one.high for one in found)

    assert 0.93 <= num_held / len(found) <= 0.99


@pytest.mark.parametrize(
    ("own", "low", "high", "said"),
    [
        (0.005, 0.001, 0.009, "yes"),
        (0.005, -0.02, 0.03, "unresolved"),
        (0.005, 0.02, 0.03, "no"),
        (0.02, 0.001, 0.009, "no"),
    ],
)
def test_a_bound_holds_if_both_measurements_say_so(own: float, low: float, high: float, said: str) -> None:
    """Noise is no proof of either."""
    assert said == holds(own, Estimate(value=(low + high) / 2, low=low, high=high), 0.01)


def test_two_measurements_that_differ_by_more_than_their_noise_do_not_agree() -> None:
    assert agrees(0.01, Estimate(value=0.5, low=0.0, high=1.0))
    assert agrees(0.010, Estimate(value=0.011, low=0.0109, high=0.0111))
    assert not agrees(0.010, Estimate(value=0.015, low=0.014, high=0.016))


def test_the_interval_takes_in_what_unmeasured_steps_cost() -> None:
    """Steps of 10 ms, 0.3 ms for a light one, 40 us for one between: at every 7th both are 80 us a step, the margin."""
    pace = Pace(deep_every=50, light_every=2, is_deep_fixed=True)
    for step in range(100):
        is_light = pace.is_light(step)
        pace.ended(
            step_s=0.010, own_s=3e-4 if is_light else 4e-5, is_deep=step < 2, is_light=is_light, is_plain=step >= 2
        )
    overhead = pace.overhead()

    assert 7 == overhead.light_every
    assert overhead.light_share == pytest.approx((3e-4 + 6 * 4e-5) / 7 / 0.010)
    assert overhead.light_share <= 0.008


@pytest.mark.parametrize(
    ("idle_s", "light_s", "every", "said"),
    [
        (
            0.002,
            0.003,
            (100, 50),
            "More than the 1% meant for norms: a step that is not measured costs 2000 us too",
        ),
        (
            0.0001,
            0.003,
            (1, 50),
            "More than the 1% meant for norms: set health.light_every_steps to 4 or more, or to auto",
        ),
        (
            0.0001,
            0.0005,
            (1, 2),
            "More than the 3% meant for looks into layers: set health.every_steps to 4 or more, or to auto",
        ),
        (0.0001, 0.0005, (1, 50), "So far, in 100 steps, it was"),
    ],
)
def test_a_bound_that_is_missed_is_said_with_the_reason(
    idle_s: float, light_s: float, every: tuple[int, int], said: str
) -> None:
    """Steps of 0.1 s. Where unmeasured steps alone cost too much, no interval helps, and nobody should look for one."""
    text = str(an_overhead(light_s=light_s, idle_s=idle_s, deep_s=0.01, every=every, is_fixed=True))

    assert said in text
    assert ("More than" in text) == ("More than" in said)


@pytest.mark.parametrize(
    ("deep_s", "num_steps", "said"),
    [
        (0.2, 36, "nothing to do, the interval is auto and widens itself after 40 steps"),
        (0.2, 46, "nothing to do, the interval is auto and widens itself after 100 steps"),
        (0.2, 1200, "nothing to do, the interval is auto and widens itself after 1500 steps"),
        (6.0, 46, "once in 1000 steps is the longest that auto takes; set health.every_steps to 2000 or more"),
    ],
)
def test_nobody_is_asked_to_mend_what_auto_mends(deep_s: float, num_steps: int, said: str) -> None:
    """Steps of 0.1 s."""
    assert str(an_overhead(deep_s=deep_s, every=(1, 50), num_steps=num_steps)).endswith(f"looks into layers: {said}")


def test_auto_widens_when_it_was_said_to() -> None:
    """Steps of 10 ms, 20 ms for a look: once in 50 steps is 4 %."""
    pace = Pace()
    for step in range(39):
        pace.ended(step_s=0.010, own_s=0.020 if step < 2 else 0.0, is_deep=step < 2, is_light=True, is_plain=step >= 2)
    assert "widens itself after 40 steps" in str(pace.overhead())
    pace.ended(step_s=0.010, own_s=0.0, is_deep=False, is_light=True, is_plain=True)
    assert "More than" not in str(pace.overhead())


def test_why_the_first_steps_cost_more_than_the_long_run_is_said() -> None:
    early = replace(an_overhead(deep_s=0.01, every=(1, 50)), measured_deep_share=0.0696, measured_light_share=0.0033)

    assert "it was 0.33% for norms, 6.96% for looks (the first steps are looked into more often) and" in str(early)
    assert "more often" not in str(replace(early, measured_deep_share=0.001))


def test_a_cost_that_nobody_could_measure_is_not_said_to_be_nothing() -> None:
    """Looks in every second step leave no step that tells how long one takes without."""
    pace = Pace(deep_every=2, is_deep_fixed=True)
    for step in range(60):
        pace.ended(step_s=0.010, own_s=0.002, is_deep=step % 2 == 0, is_light=True, is_plain=False)
    text = str(pace.overhead())

    assert text.startswith("what gradient health costs in the long run is not known")
    assert text.endswith("meant for looks: set health.every_steps higher, or to auto")
    assert "0.00% of the training time" not in text


def test_the_cost_is_said_to_somebody_who_has_never_seen_it() -> None:
    """A sum first, then what each part is for, how long it takes and how often."""
    text = str(an_overhead(light_s=0.0005, deep_s=0.01, every=(1, 50)))

    assert (
        "gradient health costs 0.70% of the training time in the long run: 0.50% for gradient norms (500 us, each step)"
        in text
    )
    assert "0.20% for a look into each layer (10.0 ms, once in 50 steps), where a step takes 100.0 ms" in text


def test_the_benchmark_trains_both_alike_and_prints_its_numbers(tmp_path: Path) -> None:
    """A thin model of few layers; no time is asserted."""
    subject = Subject(name="thin", build=lambda: build_thin(12), input_shape_CHW=(3, 8, 8), batch_size=4)
    file = tmp_path / "costs.json"
    console = Console(width=120, file=(tmp_path / "out.txt").open("w"))
    num_threads = torch.get_num_threads()
    (cost,) = bench_health(num_rounds=3, num_threads=1, json_file=file, console=console, chosen=[subject])
    console.file.close()
    printed = (tmp_path / "out.txt").read_text()

    assert num_threads == torch.get_num_threads()
    assert cost.are_weights_equal
    assert 24 == cost.num_tensors
    assert 3 == len(cost.rounds)
    for pairs in cost.rounds:
        assert 1 == sum(pair.kind == "deep" for pair in pairs)
        assert 3 <= sum(pair.kind == "light" for pair in pairs)
    assert cost.fixed.deep_s > cost.fixed.light_s > 0.0
    assert f"deep steps every {cost.auto.deep_every}" in printed
    for text in (
        "always on",
        "deep steps",
        "own clock",
        "outside",
        "weights afterwards equal",
        "gradient health costs",
    ):
        assert text in printed
    assert cost.rounds[0][0].alone_s == json.loads(file.read_text())[0]["rounds"][0][0]["alone_s"]


Shapes = list[tuple[int, ...]]
SHAPES: Shapes = [
    (4, 3),
    (4, 3),
    (1, 5),
    (7,),
    (5, 2, 3, 3),
    (4, 3),
    (3, MAX_COLUMNS + 9),
    (2, MAX_V_VALUES + 5),
    (1, 1),
]


@pytest.fixture
def named() -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(1)
    return [(str(n), nn.Parameter(torch.randn(shape, generator=generator))) for n, shape in enumerate(SHAPES)]


def test_copied_rows_are_found_as_they_are_one_by_one(named: list[tuple[str, nn.Parameter]]) -> None:
    with torch.no_grad():
        named[1][1][:] = named[1][1][0].clone()
    found = {
        name: float(value) for names, values in row_spreads(named) for name, value in zip(names, values, strict=True)
    }

    expected = {}
    for name, one in named:
        if one.ndim >= 2 and len(one) > 1:
            rows = one.detach().flatten(1)[:, :MAX_COLUMNS]
            expected[name] = float((rows - rows[0]).abs().max() / rows.abs().max())
    assert expected == pytest.approx(found)
    assert 0.0 == found["1"]


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.99)),
        lambda groups: torch.optim.AdamW(groups, amsgrad=True),
        lambda groups: torch.optim.AdamW(groups, fused=True),
    ],
    ids=["adam", "amsgrad", "fused"],
)
def test_what_adam_divides_by_is_as_it_is_one_by_one(
    named: list[tuple[str, nn.Parameter]], make: Callable[[object], torch.optim.Optimizer]
) -> None:
    """Geometric mean of sqrt(v_hat) over elements above zero, by hand in float64; groups with betas of their own."""
    parameters = [one for _, one in named]
    optimizer = make([{"params": parameters[:3]}, {"params": parameters[3:], "betas": (0.9, 0.9)}])
    for _ in range(3):
        for place, one in enumerate(parameters):
            one.grad = torch.full_like(one, 0.1 * (place + 1))
            one.grad.view(-1)[0] = 0.0
        optimizer.step()
    groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    found = {
        name: float(value)
        for names, values in adam_roots(named, [optimizer], groups)
        for name, value in zip(names, values, strict=True)
    }

    expected = {}
    for name, one in named:
        if one.ndim >= 2:
            v = optimizer.state[one]["exp_avg_sq"].double().flatten()
            v_hat = v[v > 0] / (1.0 - groups[id(one)]["betas"][1] ** 3)
            expected[name] = float(v_hat.sqrt().log().mean().exp()) if len(v_hat) else 0.0
    assert expected == pytest.approx(found, rel=1e-4)
    assert 0.0 == found[str(len(SHAPES) - 1)], "no element has had a gradient"


def test_an_optimizer_without_second_moments_has_no_roots(named: list[tuple[str, nn.Parameter]]) -> None:
    optimizer = torch.optim.SGD([one for _, one in named], lr=0.1)

    assert [] == list(adam_roots(named, [optimizer], {}))
