"""One step, its optimizer, schedule and clipping; evaluation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import RunFailed
from pipeline.job import ClipSection, OptimizerSection, ScheduleSection
from tests.sizes import cases
from trainer.batch import Batch
from trainer.evaluation import evaluate
from trainer.optimizers import build_optimizer
from trainer.schedules import Schedule, learning_rate
from trainer.step import Stepper

NO_CLIP = ClipSection()


def make_batch(images, labels, step=0):
    return Batch(
        step=step,
        epoch=0,
        start=0,
        stop=len(labels),
        recipe="r",
        digest="d",
        images=images,
        labels=torch.as_tensor(labels),
        sample_ids=torch.arange(len(labels)),
    )


def random_batch(num_samples=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_samples, 3, 4, 4, generator=generator)
    return make_batch(images, torch.randint(0, 5, (num_samples,), generator=generator))


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def everything_in(model):
    return [tensor.clone() for tensor in model.state_dict().values()]


def are_equal(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


# --- the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_step_is_what_torch_does_by_hand(kind):
    section = OptimizerSection(kind=kind, lr=0.5, weight_decay=0.1)
    model, by_hand = make_model(), make_model()
    optimizer, optimizer_by_hand = build_optimizer(section, model), build_optimizer(section, by_hand)
    for seed in range(3):
        batch = random_batch(seed=seed)
        result = Stepper(model, optimizer, clip=NO_CLIP).step(batch, lr=0.01)
        for group in optimizer_by_hand.param_groups:
            group["lr"] = 0.01
        optimizer_by_hand.zero_grad()
        logits = by_hand(batch.images)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(by_hand.parameters(), 1e9)
        optimizer_by_hand.step()
        assert result.loss == pytest.approx(loss.item())
        assert result.grad_norm == pytest.approx(norm.item())
        assert result.num_correct == (logits.argmax(1) == batch.labels).sum()
        assert (result.lr, result.num_samples, result.was_clipped, result.was_skipped) == (0.01, 6, False, False)
    assert are_equal(everything_in(model), everything_in(by_hand))


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_job_chooses_what_adam_adds_to_the_root(kind):
    """ADAM_FLOOR's fix says to set it; where nobody does, it is torch's."""
    torchs = torch.optim.Adam(make_model().parameters()).defaults["eps"]
    for fields, eps in (({}, torchs), ({"eps": 1e-12}, 1e-12)):
        optimizer = build_optimizer(OptimizerSection(kind=kind, **fields), make_model())
        assert {eps} == {group["eps"] for group in optimizer.param_groups}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clip", [NO_CLIP, ClipSection(kind="value"), ClipSection(kind="norm")])
def test_a_batch_with_a_non_finite_pixel_leaves_no_trace(bad, clip):
    """Not in the weights, the optimizer's moments or the batch-norm statistics: the next steps are as without it."""
    model, undisturbed = make_model(), make_model()
    optimizer = build_optimizer(OptimizerSection(kind="adam"), model)
    optimizer_undisturbed = build_optimizer(OptimizerSection(kind="adam"), undisturbed)
    poisoned = random_batch(seed=9)
    poisoned.images[0, 0, 0, 0] = bad
    for seed in range(3):
        result = Stepper(model, optimizer, clip=clip).step(poisoned, lr=0.1)
        assert result.was_skipped
        assert not result.was_clipped
        Stepper(model, optimizer, clip=clip).step(random_batch(seed=seed), lr=0.1)
        Stepper(undisturbed, optimizer_undisturbed, clip=clip).step(random_batch(seed=seed), lr=0.1)
    assert are_equal(everything_in(model), everything_in(undisturbed))


def test_huge_finite_gradients_are_clipped_not_skipped():
    """Their float32 norm overflows: torch's own clipping would make them all zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5, bias=False))
    optimizer = build_optimizer(OptimizerSection(kind="sgd", momentum=0.0), model)
    batch = random_batch()
    with torch.no_grad():
        model[1].weight.zero_()
    batch.images.mul_(1e25)
    result = Stepper(model, optimizer, clip=ClipSection(kind="norm", threshold=0.5)).step(batch, lr=1.0)
    assert math.isfinite(result.grad_norm)
    assert result.grad_norm > 1e20
    assert result.was_clipped
    assert not result.was_skipped
    assert model[1].weight.norm().item() == pytest.approx(0.5, rel=1e-4)


# --- optimizers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_weight_decay_is_for_weights_only(kind):
    """With zero gradients decay alone moves a parameter: never a bias or a norm layer's."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = build_optimizer(OptimizerSection(kind=kind, lr=0.1, weight_decay=0.1), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, torch.ones_like(parameter))
    }
    assert moved == {"0.weight", "4.weight"}


def test_frozen_parameters_are_not_the_optimizers():
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = build_optimizer(OptimizerSection(), model)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_full_batch_gradient_descent_is_the_textbooks_loop():
    """`sgd` without momentum on the whole data set as one batch: theta -= lr * 2/n * X^T (X theta - y), the gradient
    of the mean of squares, 1,000 times."""
    X, y = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0], [1.0, 4.0]]), np.array([1.0, 2.0, 3.0, 4.0])
    theta = np.zeros(2)
    for _ in range(1000):
        theta -= 0.01 * 2.0 / len(X) * X.T @ (X @ theta - y)

    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = build_optimizer(OptimizerSection(kind="sgd", momentum=0.0), model)
    stepper = Stepper(model, optimizer, criterion=nn.functional.mse_loss)
    batch = make_batch(torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None])
    for _ in range(1000):
        result = stepper.step(batch, lr=0.01)
    assert model.weight.detach().numpy()[0] == pytest.approx(theta, abs=1e-6)
    assert result.loss < 0.01
    assert result.num_correct == 0


# --- schedules --------------------------------------------------------------------------------------------------


def rates(section, num_steps, base_lr=1.0):
    return [learning_rate(section, base_lr, step, num_steps) for step in range(num_steps)]


def test_the_curves_at_their_known_points():
    assert rates(ScheduleSection(kind="constant"), 3) == [1.0, 1.0, 1.0]
    assert rates(ScheduleSection(kind="step", step_every=2, gamma=0.5), 5) == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert rates(ScheduleSection(kind="cosine", min_lr=0.2), 5) == pytest.approx([1.0, 0.8828427, 0.6, 0.3171573, 0.2])
    assert rates(ScheduleSection(warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@given(
    kind=st.sampled_from(["constant", "step", "cosine", "plateau"]),
    warmup_steps=st.integers(0, 30),
    num_steps=st.integers(1, 60),
    min_lr=st.floats(0.0, 2.0),
)
def test_every_rate_lies_between_zero_and_the_larger_of_base_and_minimum(kind, warmup_steps, num_steps, min_lr):
    section = ScheduleSection(kind=kind, warmup_steps=warmup_steps, min_lr=min_lr, step_every=7)
    for rate in rates(section, num_steps):
        assert 0.0 <= rate <= max(1.0, min_lr) * (1 + 1e-12)


def test_a_cosine_ends_at_its_minimum_also_after_a_warm_up():
    section = ScheduleSection(kind="cosine", warmup_steps=10, min_lr=0.01)
    assert rates(section, 100)[-1] == pytest.approx(0.01)
    assert rates(section, 100)[9] == rates(section, 100)[10] == 1.0


def test_a_plateau_drops_after_patience_evaluations_without_a_lower_loss_and_never_below_its_minimum():
    schedule = Schedule(ScheduleSection(kind="plateau", patience=1, gamma=0.1, min_lr=0.05), 1.0, 100)
    seen = []
    for loss in (1.0, 0.9, 0.9, math.nan, 0.8, 0.9, 0.9, 0.9, 0.9):
        schedule.observe(loss)
        seen.append(schedule.lr(0))
    assert seen == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05]


@given(losses=st.lists(st.floats(0, 10), max_size=20), cut=st.integers(0, 20))
def test_a_schedule_resumed_from_its_state_gives_the_same_rates(losses, cut):
    section = ScheduleSection(kind="plateau", patience=1)
    whole, first = Schedule(section, 1.0, 50), Schedule(section, 1.0, 50)
    for loss in losses[:cut]:
        first.observe(loss)
    second = Schedule(section, 1.0, 50)
    second.load_state_dict(first.state_dict())
    for loss in losses[cut:]:
        second.observe(loss)
    for loss in losses:
        whole.observe(loss)
    assert second.state_dict() == whole.state_dict()
    assert second.lr(7) == whole.lr(7)


# --- evaluation -------------------------------------------------------------------------------------------------


@settings(max_examples=cases(20))
@given(cuts=st.lists(st.integers(1, 19), max_size=5, unique=True))
def test_an_evaluation_does_not_depend_on_how_samples_are_cut_into_batches(cuts):
    whole = random_batch(num_samples=20)
    edges = [0, *sorted(cuts), 20]
    pieces = [make_batch(whole.images[a:b], whole.labels[a:b]) for a, b in itertools.pairwise(edges)]
    expected, actual = evaluate(make_model(), [whole]), evaluate(make_model(), pieces)
    assert actual.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (actual.accuracy, actual.num_samples) == (expected.accuracy, 20)


def test_an_evaluation_changes_nothing_in_the_model():
    model = make_model().train()
    before = everything_in(model)
    evaluate(model, [random_batch()])
    assert are_equal(before, everything_in(model))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_accuracy_is_the_share_of_right_answers():
    logits = torch.eye(4).reshape(4, 4, 1, 1)
    assert evaluate(nn.Flatten(), [make_batch(logits, [0, 1, 2, 0])]).accuracy == 0.75


def test_an_evaluation_of_nothing_is_a_failure():
    with pytest.raises(RunFailed, match="no sample"):
        evaluate(make_model(), [])
