"""Measuring: the numbers are the definitions', nothing of the training changes, and the device is not waited for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.job_clip import ClipSection
from tests.health_fixtures import one_thread, seen
from trainer.batch import Batch
from trainer.health.detectors import HealthConfig
from trainer.health.layers import CallOrder
from trainer.health.monitor import GradientHealth
from trainer.health.observer import HealthObserver
from trainer.health.overhead import Pace
from trainer.health.records import DeepStats, Severity, StepStats, VerdictEvent
from trainer.step import Stepper

__all__ = ["one_thread", "seen"]


def mlp(seed: int = 0, num_hidden: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(num_hidden):
        layers += [nn.Linear(8, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 4))


def data(seed: int, num_samples: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_samples, 8, generator=generator), torch.randint(4, (num_samples,), generator=generator)


Optimizers = Callable[[Any], torch.optim.Optimizer]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    health: GradientHealth | None,
    steps: range,
    max_norm: float = math.inf,
) -> None:
    for step in steps:
        images, labels = data(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        if health is not None:
            health.step(loss, inputs=images, labels=labels, batch={"step": step})
        if max_norm < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()


def test_watching_changes_neither_weights_nor_random_numbers() -> None:
    alone, watched = mlp(), mlp()
    trained(alone, adam(alone.parameters()), None, range(20))
    state = torch.random.get_rng_state()
    optimizer = adam(watched.parameters())
    health = GradientHealth(watched, optimizer, every_steps=3)
    torch.random.set_rng_state(state)
    trained(watched, optimizer, health, range(20))

    assert torch.equal(state, torch.random.get_rng_state())
    for one, other in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_deep_step_measures_what_the_definitions_say(seen: list[StepStats | DeepStats]) -> None:
    """Against float64, by hand: activations, deltas, norms before and after clipping, updates."""
    model = mlp()
    before = copy.deepcopy(model).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    health = GradientHealth(model, optimizer, every_steps=50)
    trained(model, optimizer, health, range(1), max_norm=0.01)

    images, labels = data(0)
    hidden = before[0](images.double())
    hidden.retain_grad()
    loss = functional.cross_entropy(before[1:](hidden), labels)
    loss.backward()
    norm = math.sqrt(sum(float(one.grad.square().sum()) for one in before.parameters() if one.grad is not None))
    step, deep = seen
    assert isinstance(step, StepStats)
    assert isinstance(deep, DeepStats)
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    assert step.grad_norm == pytest.approx(norm, rel=1e-5)
    assert step.clipped_norm == pytest.approx(0.01, rel=1e-3)
    assert step.was_clipped
    first = deep.layers[0]
    assert hidden.grad is not None
    assert ["0", "2", "4"] == [layer.name for layer in deep.layers]
    assert ["ReLU", "ReLU", ""] == [layer.activation for layer in deep.layers]
    assert first.std == pytest.approx(hidden.std(correction=0).item(), rel=1e-5)
    assert first.sample_std == pytest.approx(hidden.var(dim=0, correction=0).mean().sqrt().item(), rel=1e-5)
    assert first.delta_rms == pytest.approx(hidden.grad.square().mean().sqrt().item(), rel=1e-5)
    assert first.never_active == pytest.approx((hidden <= 0).all(dim=0).double().mean().item())
    weight = before[0].weight
    assert weight.grad is not None
    moved = 0.1 * 0.01 / norm * weight.grad.norm().item()
    assert first.weight_norm == pytest.approx(weight.norm().item(), rel=1e-2)
    assert first.update_norm == pytest.approx(moved, rel=1e-3)
    inputs = deep.inputs
    assert inputs is not None
    assert inputs.sums[0] == pytest.approx(images.sum().item(), rel=1e-4)


class Heads(nn.Module):
    """Two outputs with a sigmoid, of which one leads on to a third; a gate, dropout and plain functions between."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.inner = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.is_open, self.bound, self.dropout = nn.Sigmoid(), nn.Tanh(), nn.Dropout(0.1)
        self.first, self.second, self.third = nn.Linear(8, 1), nn.Linear(8, 1), nn.Linear(9, 4)
        self.is_first, self.is_second = nn.Sigmoid(), nn.Sigmoid()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.bound(self.inner(torch.relu_(self.body(images)))))
        hidden = 2.0 * hidden * self.is_open(self.gate(hidden))
        first, second = self.is_first(self.first(hidden)), self.is_second(self.second(hidden))
        logits: torch.Tensor = self.third(torch.cat([hidden, second], dim=1))
        return logits * first


def test_only_an_activation_that_nothing_reads_is_an_output(seen: list[StepStats | DeepStats]) -> None:
    """A head may be anywhere in the order of calls: an output's sigmoid is meant to be sure, a gate's or a hidden
    layer's may be saturated."""
    torch.manual_seed(0)
    model = Heads()
    with torch.no_grad():
        for head in (model.first, model.second, model.gate):
            head.bias.fill_(50.0)
    optimizer = adam(model.parameters())
    trained(model, optimizer, GradientHealth(model, optimizer, every_steps=1), range(1))

    deep = seen[-1]
    assert isinstance(deep, DeepStats)
    assert {"first", "third"} == {layer.name for layer in deep.layers if layer.is_output}
    saturated = {layer.name: layer.saturated for layer in deep.layers if not math.isnan(layer.saturated)}
    assert {"gate": 1.0, "inner": 0.0, "second": 1.0} == saturated


def test_a_layer_that_is_read_in_the_first_pass_is_no_output_of_the_second() -> None:
    """Micro-batches and tied layers call a module again; first calls count, judged by all that followed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    order = CallOrder(model, lambda layer, output: None, lambda layer, module, values: None)
    for _ in range(3):
        model(torch.randn(4, 8)).sum().backward()
    order.detach()

    assert [("0", False), ("2", True)] == [(layer.name, layer.is_output) for layer in order.layers]


def test_hooks_are_there_on_sampled_steps_only() -> None:
    """The rest of the time the model is as the user made it: no Python cost, no graph breaks."""
    model = mlp()
    optimizer = adam(model.parameters())
    health = GradientHealth(model, optimizer, every_steps=50)

    def num_hooks() -> int:
        modules = list(model.modules())
        return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in modules)

    counts = []
    for step in range(5):
        counts.append(num_hooks())
        trained(model, optimizer, health, range(step, step + 1))
    health.detach()

    assert [True, True, True, False, True] == [count > 0 for count in counts]
    assert 0 == num_hooks()
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("cut", [1, 5, 17, 33])
def test_a_restored_monitor_ends_in_the_same_verdicts(cut: int) -> None:
    """Law 5: model, optimizer and monitor saved together; hidden layers die on the way, so there are verdicts."""

    def made() -> tuple[nn.Sequential, torch.optim.Optimizer, GradientHealth]:
        model = mlp(num_hidden=3)
        with torch.no_grad():
            model[2].bias.fill_(-30.0)  # type: ignore[union-attr, operator]
        optimizer = adam(model.parameters())
        return model, optimizer, GradientHealth(model, optimizer, every_steps=5, light_every_steps=1)

    whole, optimizer, health = made()
    trained(whole, optimizer, health, range(60))
    health.flush()
    first, first_optimizer, first_health = made()
    trained(first, first_optimizer, first_health, range(cut))
    state = copy.deepcopy(
        (first.state_dict(), first_optimizer.state_dict(), first_health.state_dict(), torch.random.get_rng_state())
    )
    second, second_optimizer, second_health = made()
    second.load_state_dict(state[0])
    second_optimizer.load_state_dict(state[1])
    second_health.load_state_dict(state[2], is_exact=True)
    trained(second, second_optimizer, second_health, range(cut, 60))
    second_health.flush()

    assert health.verdicts
    assert repr(health.verdicts) == repr(second_health.verdicts)


@pytest.mark.parametrize("cut", [13, 41, 43, 44])
def test_a_restored_monitor_looks_deep_in_the_same_steps(cut: int, seen: list[StepStats | DeepStats]) -> None:
    """Right before a deep step out of turn (13, 43: one after a bad step), before one in its turn (41), and after."""

    def made() -> tuple[nn.Sequential, torch.optim.Optimizer, GradientHealth]:
        model = mlp()
        optimizer = adam(model.parameters())
        return model, optimizer, GradientHealth(model, optimizer, every_steps=41, light_every_steps=1)

    def deep_steps(model: nn.Module, optimizer: torch.optim.Optimizer, health: GradientHealth, steps: range) -> None:
        for step in steps:
            images, labels = data(step)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels) * (math.nan if step in (12, 42) else 1.0)
            loss.backward()
            health.step(loss)
            if step not in (12, 42):
                optimizer.step()

    whole, optimizer, health = made()
    deep_steps(whole, optimizer, health, range(70))
    health.flush()
    expected = [one.step for one in seen if isinstance(one, DeepStats)]
    seen.clear()
    first, first_optimizer, first_health = made()
    deep_steps(first, first_optimizer, first_health, range(cut))
    state = copy.deepcopy((first.state_dict(), first_optimizer.state_dict(), first_health.state_dict()))
    second, second_optimizer, second_health = made()
    second.load_state_dict(state[0])
    second_optimizer.load_state_dict(state[1])
    second_health.load_state_dict(state[2], is_exact=True)
    deep_steps(second, second_optimizer, second_health, range(cut, 70))
    second_health.flush()

    assert expected == [one.step for one in seen if isinstance(one, DeepStats)]
    assert {13, 41, 43} <= set(expected)


def test_the_saved_state_is_what_a_checkpoint_may_load() -> None:
    """Plain values and tensors: `torch.load(weights_only=True)` takes it, no pickle of ours."""
    import io

    model = mlp()
    optimizer = adam(model.parameters())
    health = GradientHealth(model, optimizer, every_steps=2)
    trained(model, optimizer, health, range(6))
    kept = io.BytesIO()
    torch.save(health.state_dict(), kept)
    kept.seek(0)

    assert health.state_dict()["judge"] == torch.load(kept, weights_only=True)["judge"]


def test_a_skipped_step_is_one_in_which_the_optimizer_did_not_step(seen: list[StepStats | DeepStats]) -> None:
    """A GradScaler tells nobody (pytorch#67590): the absence of a step does."""
    model = mlp()
    optimizer = adam(model.parameters())
    health = GradientHealth(model, optimizer, every_steps=50, light_every_steps=1)
    for step in range(3):
        images, labels = data(step)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        health.step(loss)
        if step != 1:
            optimizer.step()
    health.flush()

    steps = [one for one in seen if isinstance(one, StepStats)]
    assert [False, True, False] == [one.was_skipped for one in steps]


def test_an_evaluation_between_two_steps_is_not_measured(seen: list[StepStats | DeepStats]) -> None:
    """The hooks of the next deep step are on already; without gradients they look away."""
    model = mlp()
    optimizer = adam(model.parameters())
    health = GradientHealth(model, optimizer, every_steps=50)
    with torch.no_grad():
        model(1e6 * data(0)[0])
    trained(model, optimizer, health, range(1))

    deep = next(one for one in seen if isinstance(one, DeepStats))
    assert max(layer.std for layer in deep.layers) < 100.0


def test_the_rate_that_a_scheduler_began_from_is_the_base(seen: list[StepStats | DeepStats]) -> None:
    """torch's schedulers note it beside the rate of now; without one, that is all there is."""
    model, (inputs, labels) = mlp(), data(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    health = GradientHealth(model, optimizer, every_steps=1, light_every_steps=1)
    for step in range(2):
        functional.cross_entropy(model(inputs), labels).backward()
        health.step(1.0)
        optimizer.step()
        if step == 0:
            torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1)
    health.flush()

    rates = [(one.lr, one.base_lr) for one in seen if isinstance(one, StepStats)]
    assert [(0.5, 0.5), (0.05, 0.5)] == rates


def test_a_nan_sample_is_traced_to_its_batch_and_place(seen: list[StepStats | DeepStats]) -> None:
    model = mlp()
    optimizer = adam(model.parameters())
    health = GradientHealth(model, optimizer, every_steps=1, config=HealthConfig(run="runs/demo"))
    asked = []
    for step in range(3):
        images, labels = data(step)
        if step == 2:
            images[5] = math.nan
        losses_N = functional.cross_entropy(model(images), labels, reduction="none")
        optimizer.zero_grad()
        losses_N.mean().backward()

        def losses(losses_N: torch.Tensor = losses_N, step: int = step) -> torch.Tensor:
            asked.append(step)
            return losses_N.detach()

        health.step(
            losses_N.mean(), inputs=images, batch=lambda: {"sample_ids": list(range(100, 132))}, sample_losses=losses
        )
    health.flush()

    verdict = next(one for one in health.verdicts if one.id == "NONFINITE")
    assert [2] == asked
    assert {"index": 5, "loss": "nan", "id": "105"} == verdict.traces[0]["worst_samples"][0]
    assert "headrace replay runs/demo --step 2" in verdict.fix
    deep = [one for one in seen if isinstance(one, DeepStats)]
    assert [0, 0, 5] == [len(one.worst_samples) for one in deep], "what layers show in that step is traced to them too"
    assert health.is_nonfinite_pending


def test_huge_finite_gradients_are_not_called_non_finite(seen: list[StepStats | DeepStats]) -> None:
    """float32's squares overflow from 1e19 on: the norm is measured again in float64."""
    model = mlp()
    optimizer = adam(model.parameters())
    health = GradientHealth(model, optimizer)
    loss = model(data(0)[0]).sum()
    loss.backward()
    for one in model.parameters():
        one.grad = torch.full_like(one, 1e25)
    health.step(loss)
    health.flush()

    step = next(one for one in seen if isinstance(one, StepStats))
    num_elements = sum(one.numel() for one in model.parameters())
    assert step.grad_norm == pytest.approx(1e25 * math.sqrt(num_elements), rel=1e-6)
    assert "NONFINITE" not in {one.id for one in health.verdicts}


def test_the_observer_measures_what_the_loop_alone_measures(seen: list[StepStats | DeepStats]) -> None:
    """Two fronts, one truth; a non-finite step computed again by the stepper leaves the next deep step alone."""
    told: list[VerdictEvent] = []
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    health = GradientHealth(model, optimizer, every_steps=50, light_every_steps=1, is_told=True)
    stepper = Stepper(model, optimizer, clip=ClipSection(kind="norm", threshold=0.1), accumulate=2)
    stepper.observer = HealthObserver(health, told.append, clip_threshold=0.1)
    for step in range(6):
        images, labels = data(step)
        if step == 4:
            images[3, 2] = math.nan
        stepper.step(a_batch(step, images, labels), lr=0.1)
    health.flush()
    observed, seen[:] = list(seen), []
    alone = mlp()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    trained(alone, optimizer, GradientHealth(alone, optimizer, every_steps=50), range(3), max_norm=0.1)

    steps = [one for one in observed if isinstance(one, StepStats)]
    deep = [one for one in observed if isinstance(one, DeepStats)]
    expected = [one for one in seen if isinstance(one, StepStats)]
    assert [False] * 4 + [True, False] == [one.was_skipped for one in steps]
    assert [0, 1, 2, 4, 5] == [one.step for one in deep], "a deep step follows the bad one"
    assert [32 * one.step for one in deep] == [one.batch["start"] for one in deep]
    for one, other in zip(steps, expected, strict=False):
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
        assert one.clipped_norm == pytest.approx(other.clipped_norm, rel=1e-4)
    assert all(layer.is_finite for layer in deep[-1].layers)
    critical = [event.verdict for event in told if event.verdict.severity is Severity.CRITICAL]
    assert ["NONFINITE"] == [one.id for one in critical]
    assert [1003] == [int(one["id"]) for one in critical[0].traces[0]["worst_samples"] if one["loss"] == "nan"]


def stepped(health: GradientHealth, stepper: Stepper, steps: range, spoiled: dict[int, float]) -> list[VerdictEvent]:
    """Steps through the observer; the images of some are multiplied by what spoils them."""
    told: list[VerdictEvent] = []
    stepper.observer = HealthObserver(health, told.append, clip_threshold=1.0)
    for step in steps:
        images, labels = data(step)
        stepper.step(a_batch(step, images * spoiled.get(step, 1.0), labels), lr=0.01)
    return told + health.flush()


@pytest.mark.parametrize("light_every", [1, 20])
def test_what_is_said_of_steps_does_not_depend_on_how_many_are_measured(light_every: int) -> None:
    """A spike and a NaN between two measured steps: both are seen and traced, and resolved after as many steps."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    health = GradientHealth(model, optimizer, every_steps=10**6, light_every_steps=light_every, is_told=True)
    stepper = Stepper(model, optimizer, clip=ClipSection(kind="norm", threshold=1.0))
    told = stepped(health, stepper, range(240), {85: 300.0, 147: math.nan})

    changes = [(event.step, event.verdict.id, event.change.value) for event in told]
    assert changes == [
        (85, "EXPLODE", "opened"),
        (105, "EXPLODE", "resolved"),
        (147, "NONFINITE", "opened"),
        (197, "NONFINITE", "resolved"),
    ]
    spike = health.verdicts[0]
    assert (85, 32 * 85) == (spike.traces[0]["step"], spike.traces[0]["batch"]["start"])
    assert 5 == len(spike.traces[0]["worst_samples"])
    assert "not measured" not in spike.fix


def test_a_step_in_bf16_is_measured_as_float64_would_within_its_eight_bits(seen: list[StepStats | DeepStats]) -> None:
    """autocast's activations are rounded, gradients of float32 weights are not: norms agree to a few hundredths."""
    model = mlp(num_hidden=6)
    before = copy.deepcopy(model).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    health = GradientHealth(model, optimizer, every_steps=50, is_told=True, config=HealthConfig(num_classes=4))
    stepper = Stepper(model, optimizer, precision="bf16", accumulate=2, observer=HealthObserver(health, lambda _: None))
    images, labels = data(0)
    stepper.step(a_batch(0, images, labels), lr=0.1)
    health.flush()

    functional.cross_entropy(before(images.double()), labels).backward()
    norms = [float(one.grad.norm()) for one in before.parameters() if one.grad is not None]
    step, deep = seen
    assert isinstance(step, StepStats)
    assert isinstance(deep, DeepStats)
    assert step.grad_norm == pytest.approx(math.hypot(*norms), rel=0.02)
    assert step.parameter_norms == pytest.approx(norms, rel=0.05)
    assert [one.grad_norm for one in deep.parameters] == pytest.approx(norms, rel=0.05)
    assert step.parameter_norms != pytest.approx(norms, rel=1e-6), "it was computed in bf16"
    assert () == health.verdicts


def a_batch(step: int, images: torch.Tensor, labels: torch.Tensor) -> Batch:
    return Batch(
        step=step,
        epoch=0,
        start=32 * step,
        stop=32 * (step + 1),
        recipe="r",
        digest="d",
        images=images,
        labels=labels,
        sample_ids=torch.arange(1000, 1032),
    )


def test_the_interval_is_chosen_so_that_the_cost_stays_below_its_bounds() -> None:
    """Steps of 10 ms, 30 ms for a deep one and 0.3 ms for a light one, and a margin of a fifth."""
    pace = Pace()
    for step in range(100):
        is_deep = pace.is_deep(step)
        pace.ended(step_s=0.010, own_s=0.030 if is_deep else 3e-4, is_deep=is_deep, is_light=True, is_plain=not is_deep)
    overhead = pace.overhead()

    assert (125, 4) == (overhead.deep_every, overhead.light_every)
    assert overhead.deep_share <= 0.03
    assert overhead.light_share <= 0.01


def test_a_given_interval_stays() -> None:
    pace = Pace(deep_every=7, is_deep_fixed=True, light_every=1, is_light_fixed=True)
    for _ in range(600):
        pace.ended(step_s=1e-4, own_s=1.0, is_deep=True, is_light=True, is_plain=True)

    assert (7, 1) == (pace.deep_every, pace.light_every)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_no_step_waits_for_the_device() -> None:
    """Deep and light steps alike; what was measured arrives all the same."""
    model = mlp().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, foreach=True)
    batches = [tuple(one.cuda() for one in data(step)) for step in range(12)]
    health = GradientHealth(model, optimizer, every_steps=5, light_every_steps=1)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            health.step(loss, inputs=images, labels=labels)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    health.flush()

    assert health._judge.progress.loss.count == len(batches)
