"""A step's order: micro-batches, precision, loss scale; where a fault came from; what an observer is told."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from pipeline.job import OptimizerSection
from pipeline.job_clip import ClipSection
from tests.sizes import cases
from trainer.batch import Batch
from trainer.optimizers import build_optimizer
from trainer.step import Measured, Stepper, StepResult

torch.set_num_threads(1)


def make_batch(num_samples: int = 8, seed: int = 0, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        step=step,
        epoch=0,
        start=0,
        stop=num_samples,
        recipe="r",
        digest="d",
        images=torch.randn(num_samples, 3, 4, 4, generator=generator),
        labels=torch.randint(0, 5, (num_samples,), generator=generator),
        sample_ids=torch.arange(num_samples),
    )


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 5))


def with_batch_norm(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1)


def reference_norms(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Per parameter, of the whole batch's mean loss, in float64."""
    double = copy.deepcopy(model).double()
    functional.cross_entropy(double(batch.images.double()), batch.labels).backward()
    return {name: p.grad.norm().item() for name, p in double.named_parameters() if p.grad is not None}


def loud(outputs: torch.Tensor, labels: torch.Tensor, /, *, reduction: str) -> torch.Tensor:
    """Times 2**127 it is no float32."""
    return 1000.0 * functional.cross_entropy(outputs, labels, reduction=reduction)


class Watching:
    """Keeps what it was told; optionally looks closer when gradients are there."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[Measured] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.results: list[StepResult] = []

    def before_forward(self, step: int) -> None:
        self.calls.append(f"before_forward {step}")

    def measured(self, measured: Measured) -> None:
        self.calls.append("measured")
        self.seen.append(measured)
        pairs = zip(measured.names_P, measured.parameters_P, strict=True)
        self.gradients.append({name: p.grad.clone() for name, p in pairs if p.grad is not None})

    def stepped(self, result: StepResult) -> None:
        self.calls.append("stepped")
        self.results.append(result)


def state_of(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def are_equal(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


# --- micro-batches ----------------------------------------------------------------------------------------------


@settings(max_examples=cases(40))
@given(num_samples=st.integers(1, 13), accumulate=st.integers(1, 16), has_scale=st.booleans())
def test_a_step_in_micro_batches_is_the_step_of_the_whole_batch(
    num_samples: int, accumulate: int, has_scale: bool
) -> None:
    """The mean is over samples, not over micro-batches: also when they are not equally long."""
    batch = make_batch(num_samples)
    whole, parted, watching = make_model(), make_model(), Watching()
    expected = Stepper(whole, sgd(whole)).step(batch, lr=0.1)
    scale = 65536.0 if has_scale else None
    stepper = Stepper(parted, sgd(parted), accumulate=accumulate, initial_scale=scale, observer=watching)
    result = stepper.step(batch, lr=0.1)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert (result.num_samples, result.num_correct) == (num_samples, expected.num_correct)
    assert len(watching.seen[0].losses) == min(accumulate, num_samples)
    assert result.loss_scale == (scale or 1.0)
    for a, b in zip(state_of(whole), state_of(parted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [None, 65536.0])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_measured_norm_is_the_float64_reference(scale: float | None, accumulate: int) -> None:
    """Unscaled, accumulated, not clipped yet, though this step is going to be."""
    model, watching, batch = make_model(), Watching(), make_batch(10)
    expected = reference_norms(model, batch)
    clip = ClipSection(kind="norm", threshold=1e-3)
    stepper = Stepper(model, sgd(model), clip=clip, accumulate=accumulate, initial_scale=scale, observer=watching)
    result = stepper.step(batch, lr=0.1)
    measured = watching.seen[0]
    assert dict(zip(measured.names_P, measured.norms_P.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)
    assert measured.grad_norm == result.grad_norm == pytest.approx(math.hypot(*expected.values()), rel=1e-5)
    assert (result.was_clipped, result.clipped_norm) == (True, 1e-3)


def test_a_parameter_missing_from_the_optimizer_is_measured_unscaled_and_doesnt_add_up() -> None:
    """zero_grad and unscale_ of an optimizer pass it over: its norm would be 65,536 times too large, and grow."""
    model, watching, batch = make_model(), Watching(), make_batch()
    model[3].weight.requires_grad_(True)
    held = [p for name, p in model.named_parameters() if name != "3.weight"]
    stepper = Stepper(model, SGD(held, lr=0.1), initial_scale=65536.0, observer=watching)
    for _ in range(3):
        expected = reference_norms(model, batch)
        stepper.step(batch, lr=0.1)
        measured = watching.seen[-1]
        assert dict(zip(measured.names_P, measured.norms_P.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)


def test_frozen_and_unused_parameters_have_no_norm() -> None:
    model, watching = make_model(), Watching()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    Stepper(model, sgd(model), observer=watching).step(make_batch(), lr=0.1)
    assert watching.seen[0].names_P == ("0.bias", "3.weight", "3.bias", "5.weight", "5.bias")


# --- precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precisions_measure_the_gradient_at_its_own_size(precision: Any, tolerance: float) -> None:
    model, watching, batch = make_model(), Watching(), make_batch()
    expected = reference_norms(model, batch)
    stepper = Stepper(model, sgd(model), precision=precision, accumulate=2, observer=watching)
    result = stepper.step(batch, lr=0.1)
    assert result.grad_norm == pytest.approx(math.hypot(*expected.values()), rel=tolerance)
    assert result.loss_scale == (65536.0 if precision == "fp16" else 1.0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result.grad_norm != pytest.approx(math.hypot(*expected.values()), rel=1e-7), "it computed in float32"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_learn(precision: Any) -> None:
    model, batch = make_model(), make_batch(32)
    stepper = Stepper(model, build_optimizer(OptimizerSection(), model), precision=precision)
    losses = [stepper.step(batch, lr=0.01).loss for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_overflowing_loss_scale_is_halved_until_it_fits_and_each_skip_is_counted() -> None:
    """Nothing of the model moves on the way down."""
    model = make_model()
    before = state_of(model)
    stepper = Stepper(model, sgd(model), initial_scale=2.0**127, criterion=loud)
    overflows = 0
    while (result := stepper.step(make_batch(), lr=0.1)).was_skipped:
        overflows += 1
        assert result.maybe_fault is not None
        assert (result.maybe_fault.cause, result.loss_scale) == ("loss_scale", 2.0 ** (128 - overflows))
        assert result.maybe_fault.parameters
        assert are_equal(before, state_of(model))
    assert overflows == stepper.num_overflows > 0
    assert not are_equal(before, state_of(model))


def test_a_loss_scale_finds_its_size_also_when_the_optimizer_lacks_what_overflows() -> None:
    model = make_model()
    with torch.no_grad():
        model[5].weight.mul_(1e6)  # the gradient below it is large, the optimizer's own is not
    stepper = Stepper(model, SGD([model[5].bias], lr=0.1), initial_scale=2.0**127)
    was_skipped = [stepper.step(make_batch(), lr=0.0).was_skipped for _ in range(40)]
    assert was_skipped[0]
    assert not was_skipped[-1]


# --- skipped steps ----------------------------------------------------------------------------------------------

CLIPS = [{"kind": kind, "warmup_steps": 2} for kind in ("none", "value", "norm", "agc", "auto")]


@pytest.mark.parametrize("clip", CLIPS, ids=[clip["kind"] for clip in CLIPS])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_a_poisoned_batch_leaves_no_trace_in_whatever_has_state(clip: dict[str, Any], scale: float | None) -> None:
    """Weights, moments, batch-norm statistics, the window of norms. (A loss scale does halve: it can't know better,
    and powers of two change no digit.)"""
    section = ClipSection.model_validate(clip)
    models = with_batch_norm(), with_batch_norm()
    disturbed, undisturbed = (
        Stepper(
            model,
            build_optimizer(OptimizerSection(kind="adam"), model),
            clip=section,
            accumulate=3,
            initial_scale=scale,
        )
        for model in models
    )
    poisoned = make_batch(seed=9)
    poisoned.images[5, 0, 0, 0] = math.nan
    for seed in range(4):
        assert disturbed.step(poisoned, lr=0.1).was_skipped
        assert not disturbed.step(make_batch(seed=seed), lr=0.1).was_skipped
        undisturbed.step(make_batch(seed=seed), lr=0.1)
    assert are_equal(state_of(models[0]), state_of(models[1]))
    assert disturbed.state_dict()["clip"] == undisturbed.state_dict()["clip"]


@pytest.mark.parametrize(("sample", "micro_batch"), [(0, 0), (4, 1), (9, 3)])
def test_a_non_finite_sample_is_named_with_its_micro_batch(sample: int, micro_batch: int) -> None:
    model, batch = make_model(), make_batch(10)
    batch.images[sample, 1] = math.inf
    fault = Stepper(model, sgd(model), accumulate=4).step(batch, lr=0.1).maybe_fault
    assert fault is not None
    assert fault.cause == "loss"
    assert (fault.bad_samples, fault.micro_batch, fault.bad_weights) == ((sample,), micro_batch, ())
    assert fault.parameters == tuple(name for name, _ in model.named_parameters())


class OverflowsBackward(torch.autograd.Function):
    """Harmless forward; an infinite gradient where the input's first number is above a bound."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(mark)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mark,) = ctx.saved_tensors
        return torch.where(mark[:, None], torch.full_like(grads[0], math.inf), grads[0]), None


class Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(48, 8)
        self.dropout = nn.Dropout(0.5)
        self.above = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.below(images.flatten(1)))
        out: torch.Tensor = self.above(OverflowsBackward.apply(hidden, images[:, 0, 0, 0] > 50))
        return out


@pytest.mark.parametrize(("sample", "micro_batch"), [(1, 0), (7, 2)])
def test_a_gradient_that_is_not_finite_below_a_finite_loss_is_found_in_its_micro_batch(
    sample: int, micro_batch: int
) -> None:
    """The sum of all micro-batches no longer says which: each is computed again, beside the random state."""
    torch.manual_seed(0)
    model, batch = Marked(), make_batch(9)
    batch.images[sample, 0, 0, 0] = 100.0
    stepper = Stepper(model, sgd(model), accumulate=3)
    before = state_of(model)
    random_state = torch.get_rng_state()
    fault = stepper.step(batch, lr=0.1).maybe_fault
    drawn_after = torch.rand(3)
    assert fault is not None
    assert (fault.cause, fault.micro_batch, fault.bad_samples) == ("gradient", micro_batch, ())
    assert fault.parameters == ("below.weight", "below.bias")
    assert are_equal(before, state_of(model))
    torch.set_rng_state(random_state)  # as a step without a fault would have left it: three forwards, no more
    for part in batch.images.tensor_split(3):
        model(part)
    assert torch.equal(torch.rand(3), drawn_after)


def test_weights_that_are_not_finite_are_named() -> None:
    model = make_model()
    with torch.no_grad():
        model[3].weight[2, 1] = math.inf
        model[3].weight[2, 2] = -math.inf
    fault = Stepper(model, sgd(model)).step(make_batch(), lr=0.1).maybe_fault
    assert fault is not None
    assert fault.bad_weights == ("3.weight",)


def test_huge_finite_gradients_are_measured_exactly_by_parameter() -> None:
    model, watching = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), Watching()
    with torch.no_grad():
        model[1].weight.zero_()
    batch = make_batch()
    batch.images.mul_(1e25)
    expected = reference_norms(model, batch)
    clip = ClipSection(kind="agc")
    assert not Stepper(model, sgd(model), clip=clip, observer=watching).step(batch, lr=1e-9).was_skipped
    measured = watching.seen[0]
    assert dict(zip(measured.names_P, measured.norms_P.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)


def test_a_loss_scale_of_one_excuses_nothing() -> None:
    model, batch = Marked(), make_batch()
    batch.images[0, 0, 0, 0] = 100.0
    for scale, cause in ((1.0, "gradient"), (2.0, "loss_scale")):
        fault = Stepper(model, sgd(model), initial_scale=scale).step(batch, lr=0.1).maybe_fault
        assert fault is not None
        assert fault.cause == cause


# --- the observer -----------------------------------------------------------------------------------------------


def test_an_observer_is_told_in_order_and_sees_what_the_optimizer_hasnt_touched() -> None:
    model, watching = make_model(), Watching()
    stepper = Stepper(model, sgd(model), clip=ClipSection(kind="norm", threshold=0.01), observer=watching)
    before = [p.detach().clone() for p in model.parameters()]
    result = stepper.step(make_batch(step=7), lr=0.5)
    assert watching.calls == ["before_forward 7", "measured", "stepped"]
    assert watching.results == [result]
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        factor = 0.01 / result.grad_norm
        torch.testing.assert_close(old - 0.5 * factor * watching.gradients[0][name], parameter.detach())


def test_an_observer_changes_no_bit_of_the_step() -> None:
    alone, watched = make_model(), make_model()
    first = Stepper(alone, sgd(alone), accumulate=2)
    second = Stepper(watched, sgd(watched), accumulate=2, observer=Watching())
    for seed in range(3):
        assert first.step(make_batch(seed=seed), lr=0.1) == second.step(make_batch(seed=seed), lr=0.1)
    assert are_equal(state_of(alone), state_of(watched))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_sample_losses_are_those_of_the_step(accumulate: int) -> None:
    model, watching, batch = make_model(), Watching(), make_batch(7)
    expected = functional.cross_entropy(model(batch.images), batch.labels, reduction="none").detach()
    Stepper(model, sgd(model), accumulate=accumulate, observer=watching).step(batch, lr=0.1)
    losses_N = watching.seen[0].sample_losses()
    torch.testing.assert_close(losses_N, expected)
    assert not losses_N.requires_grad


def test_a_skipped_step_is_shown_too() -> None:
    model, watching, batch = make_model(), Watching(), make_batch()
    batch.images[3] = math.nan
    result = Stepper(model, sgd(model), observer=watching).step(batch, lr=0.1)
    assert watching.calls == ["before_forward 0", "measured", "stepped"]
    assert not watching.seen[0].is_finite
    assert torch.isnan(watching.seen[0].sample_losses()).nonzero().flatten().tolist() == [3]
    assert watching.results[0].maybe_fault == result.maybe_fault


# --- what is remembered -----------------------------------------------------------------------------------------


@settings(max_examples=cases(15))
@given(cut=st.integers(0, 15))
def test_a_stepper_resumed_from_its_state_takes_the_same_steps(cut: int) -> None:
    """Clip window and loss scale: the scale is falling in the first steps, and with it which of them are skipped."""
    section = ClipSection(kind="auto", warmup_steps=2, window=4)

    def begin() -> tuple[nn.Module, Optimizer, Stepper]:
        model = make_model()
        optimizer = build_optimizer(OptimizerSection(), model)
        return model, optimizer, Stepper(model, optimizer, clip=section, initial_scale=2.0**127, criterion=loud)

    model, optimizer, stepper = begin()
    results = []
    for step in range(16):
        if step == cut:
            state = json.loads(json.dumps(stepper.state_dict()))
            weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
            model, optimizer, stepper = begin()
            model.load_state_dict(weights)
            optimizer.load_state_dict(moments)
            stepper.load_state_dict(state)
        results.append(stepper.step(make_batch(seed=step), lr=0.1))
    undisturbed_model, _, undisturbed = begin()
    expected = [undisturbed.step(make_batch(seed=step), lr=0.1) for step in range(16)]
    assert repr(results) == repr(expected)  # as text: a NaN is not equal to itself
    assert [result.was_skipped for result in results[:2]] == [True, True]
    assert not results[-1].was_skipped
    assert stepper.state_dict() == undisturbed.state_dict()
    assert are_equal(state_of(model), state_of(undisturbed_model))


def test_a_state_of_another_precision_is_taken_over_as_far_as_it_goes() -> None:
    model = make_model()
    scaled, plain = Stepper(model, sgd(model), initial_scale=8.0), Stepper(model, sgd(model))
    scaled.step(make_batch(), lr=0.1)
    plain.load_state_dict(scaled.state_dict())
    scaled.load_state_dict(plain.state_dict())
    assert scaled.step(make_batch(), lr=0.1).loss_scale == 8.0
    assert plain.step(make_batch(), lr=0.1).loss_scale == 1.0
