"""Gradient health in a loop of one's own: it takes the models and optimizers that there are, and leaves them whole."""

from __future__ import annotations

import copy
import gc
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from tests.health_fixtures import one_thread, seen
from trainer.health.detectors import HealthConfig
from trainer.health.measure_weights import adam_roots
from trainer.health.monitor import GradientHealth
from trainer.health.records import DeepStats, LayerStats, StepStats, VerdictEvent
from trainer.health.rules_step import Progress, rate_text
from trainer.norms import exact_norms, gradient_norms

__all__ = ["one_thread", "seen"]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(32, 8, generator=generator), torch.randint(4, (32,), generator=generator)


def trained(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    health: GradientHealth,
    num_steps: int,
    *,
    bad: int = -1,
    after: Callable[[], object] = lambda: None,
) -> list[VerdictEvent]:
    """Each optimizer in turn steps in each step; at step `bad` the loss is NaN, and none does."""
    events = []
    for step in range(num_steps):
        inputs, labels = data(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels) * (math.nan if step == bad else 1.0)
        loss.backward()
        events += health.step(loss, inputs=inputs, labels=labels)
        for optimizer in optimizers if step != bad else ():
            optimizer.step()
        after()
    return events


def num_optimizers() -> int:
    gc.collect()
    return sum(issubclass(type(one), Optimizer) for one in gc.get_objects())


def test_a_model_can_be_saved_whole_and_copied_while_hooks_are_on(seen: list[StepStats | DeepStats]) -> None:
    """Hooks for a deep step are on before it: copies get none that do anything, and nothing of ours in their file."""
    model = mlp()
    health = GradientHealth(model, torch.optim.SGD(model.parameters(), lr=0.1), every_steps=50)
    assert model[0]._forward_hooks
    num_before = num_optimizers()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), AveragedModel(model), torch.load(file, weights_only=False)]
    inputs = data(0)[0]
    for each in copies:
        assert torch.equal(model.eval()(inputs), each.eval()(inputs))
        each(1e6 * inputs).sum().backward()
    model.train()
    for one in model.parameters():
        one.grad = torch.ones_like(one)
    health.step(1.0)
    health.detach()

    assert num_before == num_optimizers(), "what a hook holds on to was copied with it"
    assert b"trainer" not in file.getvalue()
    (deep,) = [one for one in seen if isinstance(one, DeepStats)]
    assert 3 == len(deep.layers)
    assert max(layer.std for layer in deep.layers) < 100.0, "a copy's pass was measured"


@pytest.mark.parametrize(
    "gradient",
    [
        torch.sparse_coo_tensor(
            torch.tensor([[1, 3, 1]]), torch.tensor([[3.0], [12.0], [1.0]]), (5, 1), check_invariants=True
        ),
        torch.tensor([3.0 + 4.0j, 0.0 - 12.0j]),
        torch.tensor([3.0 + 4.0j, 0.0 - 12.0j]).conj(),
    ],
    ids=["sparse, a row twice", "complex", "conjugated"],
)
def test_norms_are_of_every_kind_of_gradient(gradient: torch.Tensor) -> None:
    """nn.Embedding(sparse=True) and Fourier layers have such, beside ordinary ones."""
    expected = math.hypot(4.0, 12.0) if gradient.is_sparse else 13.0
    gradients = [torch.full((4,), 2.0), gradient]

    assert [4.0, pytest.approx(expected)] == gradient_norms(gradients).tolist()
    assert [4.0, pytest.approx(expected)] == exact_norms(gradients).tolist()
    assert [2.0, 12.0] == gradient_norms(gradients, math.inf).tolist()
    assert torch.float64 == gradient_norms([gradient.to(torch.complex128)]).dtype


def test_norms_of_several_devices_meet_on_the_first() -> None:
    """A model in parts: one vector of norms all the same. (The meta device is one that every machine has.)"""
    norms = gradient_norms([torch.ones(3, device="meta"), torch.ones(3)])

    assert ((2,), "meta") == (tuple(norms.shape), norms.device.type)


class Words(nn.Module):
    """An embedding with sparse gradients, and a weight of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 8, sparse=True)
        self.waves = nn.Parameter(torch.randn(5, 5, dtype=torch.complex64) / 5)
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        vectors = self.words((inputs[:, 0].abs() * 10).long())
        return self.head(torch.fft.irfft(torch.fft.rfft(vectors) @ self.waves, n=8))


def test_a_model_with_sparse_and_complex_gradients_is_watched(seen: list[StepStats | DeepStats]) -> None:
    """Under the optimizers that such models have: one for the embedding, one for the rest."""
    model = Words()
    rest = [one for name, one in model.named_parameters() if name != "words.weight"]
    optimizers = [torch.optim.SparseAdam([model.words.weight], lr=1e-2), torch.optim.Adam(rest, lr=1e-2)]
    health = GradientHealth(model, optimizers, every_steps=1, light_every_steps=1)
    trained(model, optimizers, health, 4)
    health.detach()

    last = [one for one in seen if isinstance(one, DeepStats)][-1]
    assert 4 == sum(isinstance(one, StepStats) for one in seen)
    for one in last.parameters:
        assert math.isfinite(one.weight_norm), one.name
        assert 0.0 < one.update_norm < one.weight_norm, one.name
        assert one.num_dims < 2 or 0.0 < one.adam_root_v < 1.0, one.name
    assert not [one for one in health.verdicts if one.id in ("FROZEN", "NONFINITE")]


class Counted(torch.optim.Adam):
    """Adam that counts in its groups, as timm's Lamb and apex' FusedAdam do."""

    key = "step"

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                if one in self.state:
                    self.state[one]["step"] = torch.tensor(float(group[self.key]))
        super().step()
        for group in self.param_groups:
            group[self.key] = group.get(self.key, 0) + 1
            for one in group["params"]:
                del self.state[one]["step"]


class Uncounted(Counted):
    """... or where nobody looks."""

    key = "num_steps"


def roots(make: Callable[[Any], Optimizer]) -> dict[str, float]:
    """What `adam_roots` says after three steps."""
    model = mlp()
    optimizer = make(model.parameters())
    trained(model, [optimizer], GradientHealth(model, optimizer, every_steps=1), 3)
    groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    found = adam_roots(model.named_parameters(), [optimizer], groups)
    return {name: float(value) for names, values in found for name, value in zip(names, values, strict=True)}


def test_steps_are_counted_where_the_optimizer_counts_them() -> None:
    """Without a count v_hat is not known: nothing is said of it, and nothing fails."""
    expected = roots(torch.optim.Adam)

    assert 3 == len(expected)
    assert expected == pytest.approx(roots(Counted))
    assert {} == roots(Uncounted)


def test_a_count_of_zero_steps_is_none() -> None:
    """1 - beta^0 is zero, and v_hat then anything."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    for one in model.parameters():
        optimizer.state[one] = {"step": torch.tensor(0.0), "exp_avg_sq": torch.zeros_like(one)}
    groups = {id(one): optimizer.param_groups[0] for one in model.parameters()}

    assert [] == list(adam_roots(model.named_parameters(), [optimizer], groups))


class OwnRate(Optimizer):
    """Finds its own rate, and has two eps: Hugging Face's Adafactor."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": None, "eps": (1e-30, 1e-3)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for one in self.param_groups[0]["params"]:
            one.sub_(one.grad, alpha=0.1)


def test_an_optimizer_needs_no_rate(seen: list[StepStats | DeepStats]) -> None:
    model = mlp()
    optimizer = OwnRate(model.parameters())
    health = GradientHealth(model, optimizer, every_steps=1)
    trained(model, [optimizer], health, 3)
    health.detach()

    assert [(0.0, 0.0)] * 3 == [(one.lr, one.base_lr) for one in seen if isinstance(one, StepStats)]
    assert "the learning rate by 0.1" == rate_text(0.1, Progress(), HealthConfig())


def test_two_optimizers_are_one_step(seen: list[StepStats | DeepStats]) -> None:
    """Matrices to one, the rest to another: nothing is frozen, a step is skipped if both are, all movement is seen."""
    model = mlp()
    matrices = torch.optim.SGD([one for one in model.parameters() if one.ndim > 1], lr=0.1, momentum=0.9)
    rest = torch.optim.AdamW([one for one in model.parameters() if one.ndim == 1], lr=1e-3)
    health = GradientHealth(model, [matrices, rest], every_steps=1, light_every_steps=1)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    trained(model, [matrices, rest], health, 1)
    health.flush()
    moved = {name: float((one.detach() - before[name]).norm()) for name, one in model.named_parameters()}
    (first,) = [one for one in seen if isinstance(one, DeepStats)]
    trained(model, [rest, matrices], health, 6, bad=3)
    health.detach()

    steps = [one for one in seen if isinstance(one, StepStats)]
    assert moved == pytest.approx({one.name: one.update_norm for one in first.parameters}, rel=1e-4)
    assert [0.1] * 7 == [one.lr for one in steps]
    assert [0, *[len(list(model.parameters()))] * 6] == [one.optimizer_entries for one in steps]
    assert [False, False, False, False, True, False, False] == [one.was_skipped for one in steps]
    assert not any(one.id == "FROZEN" for one in health.verdicts)
    assert not matrices._optimizer_step_pre_hooks
    assert not rest._optimizer_step_post_hooks


def test_a_step_that_one_of_two_optimizers_takes_is_no_skipped_one(seen: list[StepStats | DeepStats]) -> None:
    """As where one of them steps every other time."""
    model = mlp()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:3], model[3:]))
    health = GradientHealth(model, [first, second], light_every_steps=1)
    trained(model, [first], health, 3)
    health.detach()

    assert [False] * 3 == [one.was_skipped for one in seen if isinstance(one, StepStats)]


def test_saving_the_state_at_each_step_changes_no_events() -> None:
    """What a flush finds waits for the next call of `step`, once."""
    found = []
    for is_saved in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        health = GradientHealth(model, optimizer, every_steps=50, light_every_steps=1)
        events = trained(model, [optimizer], health, 8, bad=2, after=health.state_dict if is_saved else lambda: None)
        health.detach()
        found.append([repr(one) for one in [*events, *health.flush()]])

    assert found[0]
    assert found[0] == found[1]


class Checkpointed(nn.Module):
    """Ten layers in five segments that keep no activations, the last without."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.use_reentrant = use_reentrant
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Sigmoid())
            for _ in range(5)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values = inputs.requires_grad_()
        for part in self.parts:
            values = checkpoint(part, values, use_reentrant=self.use_reentrant)
        return self.head(values)


def test_a_reentrant_checkpoint_leaves_the_profile_in_order(seen: list[StepStats | DeepStats]) -> None:
    """Its layers are called twice: first in order and without gradients, then in the backward pass from the end on."""
    profiles: list[list[LayerStats]] = []
    for use_reentrant in (False, True):
        model = Checkpointed(use_reentrant)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        health = GradientHealth(model, optimizer, every_steps=50)
        trained(model, [optimizer], health, 1)
        health.detach()
        (deep,) = [one for one in seen if isinstance(one, DeepStats)]
        profiles.append(list(deep.layers))
        seen.clear()

    assert ["parts.0.0", "parts.0.3", "parts.1.0"] == [one.name for one in profiles[1][:3]]
    assert [0, 1, 1, 2, 2] == [one.stretch for one in profiles[1][:5]]
    assert 11 == len(profiles[1])
    for expected, actual in zip(*profiles, strict=True):
        assert repr(expected) == repr(actual)


def test_who_names_one_of_two_optimizers_is_told_to_name_both() -> None:
    """To give the other's parameters to this one would train them twice."""
    model = mlp()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:3], model[3:]))
    health = GradientHealth(model, first, every_steps=1)
    trained(model, [first, second], health, 3)
    health.detach()

    (frozen,) = [one for one in health.verdicts if one.id == "FROZEN"]
    assert "give GradientHealth both" in frozen.fix
