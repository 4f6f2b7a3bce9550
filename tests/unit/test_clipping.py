"""Norms and clipping: each kind's law, groups, and what is remembered."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.config import load_job
from pipeline.errors import ConfigError
from pipeline.job_clip import ClipSection
from tests.sizes import cases
from trainer.clipping import Clipped, Clipper, head_of
from trainer.norms import exact_norms, global_norm, gradient_norms, lost_below, made_exact, needs_exact

gradient_lists = st.lists(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8).map(torch.tensor),
    min_size=1,
    max_size=4,
)
far_gradient_lists = st.lists(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=8).map(torch.tensor),
    min_size=1,
    max_size=4,
)


class Holder(nn.Module):
    """Parameters p0, p1, ... with given gradients."""

    def __init__(self, gradients: list[torch.Tensor]) -> None:
        super().__init__()
        for place, gradient in enumerate(gradients):
            parameter = nn.Parameter(torch.ones_like(gradient))
            parameter.grad = gradient.clone()
            self.register_parameter(f"p{place}", parameter)


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def clip(clipper: Clipper, model: nn.Module) -> Clipped:
    """As a step does it, with exact norms."""
    names = tuple(name for name, parameter in model.named_parameters() if parameter.grad is not None)
    norms_P = exact_norms(gradients_of(model))
    norm = global_norm(norms_P)
    numbers = [number.item() for number in clipper.prepare(names, norms_P, norm)]
    return clipper.clip(norm.item(), numbers)


def exact(model: nn.Module) -> float:
    return global_norm(exact_norms(gradients_of(model))).item()


def section(**fields: Any) -> ClipSection:
    return ClipSection.model_validate(fields)


# --- norms ------------------------------------------------------------------------------------------------------


@settings(max_examples=cases(150))
@given(gradients=far_gradient_lists)
def test_every_norm_is_the_float64_norm_also_where_float32_squares_overflow_or_vanish(
    gradients: list[torch.Tensor],
) -> None:
    norms_P, lost_below_P = gradient_norms(gradients), lost_below(gradients)
    if needs_exact(norms_P, lost_below_P):
        norms_P = made_exact(gradients, norms_P, lost_below_P)
    expected = [torch.linalg.vector_norm(gradient.double()).item() for gradient in gradients]
    assert norms_P.tolist() == pytest.approx(expected, rel=2e-6)
    assert global_norm(norms_P).item() == pytest.approx(math.hypot(*expected), rel=2e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-18, 1e-14])
def test_a_vanished_gradient_is_not_a_zero_gradient(size: float) -> None:
    """In float32 the norm of a million elements of 1e-24 is 0, and "exactly zero" means something else."""
    gradients = [torch.full((1000,), size), torch.ones(3)]
    norms_P = made_exact(gradients, gradient_norms(gradients), lost_below(gradients))
    assert norms_P.tolist() == pytest.approx([size * math.sqrt(1000), math.sqrt(3)], rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_is_finite_only_if_every_gradient_is(bad: float) -> None:
    for gradients, is_finite in (
        ([torch.tensor([3e38, -3e38]), torch.tensor([3e38])], [True, True]),
        ([torch.tensor([1.0]), torch.tensor([1.0, bad])], [True, False]),
    ):
        norms_P, lost_below_P = gradient_norms(gradients), lost_below(gradients)
        assert needs_exact(norms_P, lost_below_P)
        assert torch.isfinite(made_exact(gradients, norms_P, lost_below_P)).tolist() == is_finite


def test_gradients_of_other_precisions_are_measured_in_float32_or_more() -> None:
    """bfloat16's own sum of 10,000 ones stops growing long before."""
    assert gradient_norms([torch.ones(10_000, dtype=torch.bfloat16)]).tolist() == pytest.approx([100.0])
    assert gradient_norms([torch.ones(4, dtype=torch.float64)]).dtype == torch.float64


# --- norm, value, none ------------------------------------------------------------------------------------------


@settings(max_examples=cases(100))
@given(gradients=far_gradient_lists, threshold=st.floats(2.0**-10, 2.0**10))
def test_clipping_by_norm_keeps_the_direction_and_bounds_the_norm(
    gradients: list[torch.Tensor], threshold: float
) -> None:
    model = Holder(gradients)
    norm = exact(model)
    clipped = clip(Clipper(section(kind="norm", threshold=threshold), model), model)
    assert clipped.was_clipped == (norm > threshold)
    assert clipped.norm == pytest.approx(exact(model), rel=1e-5)
    assert exact(model) <= threshold * (1 + 1e-5)
    factor = min(1.0, threshold / norm) if norm else 1.0
    for gradient, old in zip(gradients_of(model), gradients, strict=True):
        torch.testing.assert_close(gradient.double(), old.double() * factor, rtol=1e-5, atol=1e-30)


@settings(max_examples=cases(100))
@given(gradients=gradient_lists, threshold=st.floats(2.0**-10, 2.0**100, width=32))
def test_clipping_by_value_moves_only_what_is_over(gradients: list[torch.Tensor], threshold: float) -> None:
    model = Holder(gradients)
    clipped = clip(Clipper(section(kind="value", threshold=threshold), model), model)
    assert clipped.was_clipped == any((gradient.abs() > threshold).any() for gradient in gradients)
    assert clipped.norm == pytest.approx(exact(model), rel=1e-5)
    for gradient, old in zip(gradients_of(model), gradients, strict=True):
        assert torch.equal(gradient, old.clamp(-threshold, threshold))


def test_no_clipping_changes_no_bit() -> None:
    model = Holder([torch.tensor([3e38, -1e-40])])
    clipped = clip(Clipper(section(), model), model)
    assert gradients_of(model)[0].tolist() == torch.tensor([3e38, -1e-40]).tolist()
    assert not clipped.was_clipped
    assert clipped.groups[0].bounded.bound == math.inf


# --- agc --------------------------------------------------------------------------------------------------------


def small_net(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 5), nn.Linear(5, 2, bias=bias)
    )


def put_gradients(model: nn.Module, size: float, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * size
    return [gradient.clone() for gradient in gradients_of(model)]


def by_hand(weight: torch.Tensor, gradient: torch.Tensor, unit_dim: int) -> torch.Tensor:
    """Unit by unit: Brock et al. 2021, equation 3, with timm's defaults."""
    if weight.ndim < 2:
        bound = 0.01 * max(weight.norm().item(), 1e-3)
        return gradient * (bound / gradient.norm()) if gradient.norm() > bound else gradient
    units = []
    for weights, old in zip(weight.unbind(unit_dim), gradient.unbind(unit_dim), strict=True):
        bound = 0.01 * max(weights.norm().item(), 1e-3)
        units.append(old * (bound / old.norm()) if old.norm() > bound else old)
    return torch.stack(units, dim=unit_dim)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e25])
def test_agc_bounds_each_output_unit_by_its_weights_and_spares_the_head(size: float) -> None:
    model = small_net()
    before = put_gradients(model, size)
    clipped = clip(Clipper(section(kind="agc"), model), model)
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert parameter.grad is not None
        unit_dim = 1 if name == "1.weight" else 0  # a transposed convolution counts its outputs second
        expected = old if name.startswith("4.") else by_hand(parameter.detach().double(), old.double(), unit_dim)
        torch.testing.assert_close(parameter.grad.double(), expected.double(), rtol=1e-5, atol=1e-12)
    assert clipped.was_clipped == (size > 1e-6)
    assert clipped.norm == pytest.approx(exact(model), rel=1e-5)
    assert [group.name for group in clipped.groups] == ["head", "rest"]


def test_zero_weights_leave_zero_under_agc() -> None:
    """Their bound is ratio x min_weight_norm, not zero."""
    model = small_net()
    with torch.no_grad():
        model[3].weight.zero_()
    put_gradients(model, 1.0)
    clip(Clipper(section(kind="agc"), model), model)
    assert model[3].weight.grad.norm(dim=1).tolist() == pytest.approx([1e-5] * 5)


@pytest.mark.parametrize(("bias", "head"), [(True, {"4.weight", "4.bias"}), (False, {"4.weight"})])
def test_the_head_is_the_last_linear_or_convolution_layer(bias: bool, head: set[str]) -> None:
    """timm's "last two parameters" would take the layer before a head without bias."""
    assert head_of(small_net(bias)) == head


# --- groups -----------------------------------------------------------------------------------------------------


def test_groups_have_norms_and_bounds_of_their_own() -> None:
    model = small_net()
    before = put_gradients(model, 1.0)
    groups = [{"parameters": ["0.*", "1.weight"], "kind": "norm", "threshold": 0.5}, {"parameters": ["*.bias"]}]
    clipped = clip(Clipper(section(kind="value", threshold=0.1, groups=groups), model), model)
    after = dict(zip((name for name, _ in model.named_parameters()), gradients_of(model), strict=True))
    old = dict(zip(after, before, strict=True))
    first = ("0.weight", "0.bias", "1.weight")
    norm = math.hypot(*(old[name].norm().item() for name in first))
    for name, gradient in after.items():
        if name in first:
            torch.testing.assert_close(gradient, old[name] * (0.5 / norm))
        elif name.endswith("bias"):
            assert torch.equal(gradient, old[name])
        else:
            assert torch.equal(gradient, old[name].clamp(-0.1, 0.1))
    assert clipped.norm == pytest.approx(exact(model), rel=1e-5)
    assert [(group.name, group.kind) for group in clipped.groups] == [
        ("0.* 1.weight", "norm"),
        ("*.bias", "none"),
        ("rest", "value"),
    ]
    assert clipped.groups[0].norm == pytest.approx(norm, rel=1e-5)


def test_a_clipped_norm_is_right_also_where_a_huge_group_was_cut_down_beside_a_small_one() -> None:
    model = Holder([torch.full((4,), 1e30), torch.full((4,), 0.5)])
    groups = [{"parameters": ["p0"], "kind": "norm", "threshold": 1.0}]
    assert clip(Clipper(section(groups=groups), model), model).norm == pytest.approx(math.sqrt(2.0))


def test_a_pattern_that_names_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"clip\.groups\[0\]\.parameters\[1\](.|\n)*'4\.weihgt'(.|\n)*'4\.weight'"):
        Clipper(section(groups=[{"parameters": ["0.*", "4.weihgt"]}]), small_net())


def test_a_wrong_key_in_a_group_is_located_and_the_nearest_is_named(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "sources: {digits: {kind: digits}}\n"
        "train: {source: digits, chain: [{ToTensorV2: {}}]}\n"
        "clip:\n"
        "  groups:\n"
        "    - {parameters: ['head.*'], kidn: norm}\n"
        "    - {parameters: []}\n"
    )
    with pytest.raises(ConfigError) as refusal:
        load_job(job)
    problems = [(problem.line, problem.path, problem.way_out) for problem in refusal.value.problems]
    assert problems == [(5, "clip.groups[0].kidn", "did you mean kind?"), (6, "clip.groups[1].parameters", "")]


def test_a_parameter_without_gradient_is_left_out_and_comes_back() -> None:
    model = small_net()
    clipper = Clipper(section(kind="agc"), model)
    put_gradients(model, 1.0)
    model[3].weight.grad = None
    model[4].weight.grad = None
    model[4].bias.grad = None
    assert [group.name for group in clip(clipper, model).groups] == ["rest"]
    put_gradients(model, 1.0)
    assert [group.name for group in clip(clipper, model).groups] == ["head", "rest"]


def test_what_holds_can_be_read_on_one_line() -> None:
    groups = [{"parameters": ["0.*"], "kind": "auto", "cap": 5.0}]
    assert Clipper(section(kind="agc", groups=groups), small_net()).describe() == (
        "0.*: norm to p90 of the last 500 (from 25 on, at least 1e-06, at most 5), 2 parameters; "
        "head: not clipped, 2 parameters; "
        "rest: each unit's norm to 0.01 of its weights' (at least 0.001), 4 parameters"
    )


# --- auto, and what is remembered -------------------------------------------------------------------------------

AUTO = {"kind": "auto", "warmup_steps": 3, "window": 6}


def test_auto_clips_to_the_percentile_of_the_norms_before() -> None:
    model = Holder([torch.ones(4)])
    clipper = Clipper(section(**AUTO), model)
    for norm in (1.0, 3.0, 2.0):
        model.p0.grad = torch.tensor([norm, 0.0, 0.0, 0.0])
        assert not clip(clipper, model).was_clipped
    model.p0.grad = torch.tensor([0.0, 100.0, 0.0, 0.0])
    clipped = clip(clipper, model)
    assert clipped.norm == clipped.groups[0].bounded.bound == pytest.approx(2.8)  # p90 of 1, 2, 3
    assert model.p0.grad.tolist() == pytest.approx([0.0, 2.8, 0.0, 0.0])


@settings(max_examples=cases(50))
@given(sizes=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=15), cut=st.integers(0, 15))
def test_a_clipper_resumed_from_its_state_clips_the_same(sizes: list[float], cut: int) -> None:
    clips = section(**AUTO, groups=[{"parameters": ["0.*"], **AUTO}, {"parameters": ["1.*"], "kind": "norm"}])
    model = small_net()
    whole, part = Clipper(clips, model), Clipper(clips, model)
    for step, size in enumerate(sizes):
        if step == cut:
            state = json.loads(json.dumps(part.state_dict()))
            part = Clipper(clips, model)
            part.load_state_dict(state)
        put_gradients(model, size, seed=step)
        expected, gradients = clip(whole, model), gradients_of(model)
        put_gradients(model, size, seed=step)
        assert clip(part, model) == expected
        assert all(torch.equal(a, b) for a, b in zip(gradients_of(model), gradients, strict=True))


def test_a_group_whose_rule_was_changed_begins_anew() -> None:
    model = Holder([torch.ones(4)])
    auto = Clipper(section(**AUTO), model)
    for _ in range(5):
        clip(auto, model)
    other = Clipper(section(kind="norm"), model)
    other.load_state_dict(auto.state_dict())
    again = Clipper(section(**AUTO), model)
    again.load_state_dict(other.state_dict())
    assert again.state_dict()["groups"][0]["state"] == {"norms": []}
