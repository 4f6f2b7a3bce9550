"""Healthy and faulty trainings, as data: what detectors are calibrated and tested with.

In:  a `Case` and a seed.
Out: an `Outcome`: verdicts, losses, the monitor's own cost.
A healthy case must raise no WARN or CRITICAL; a faulty one must raise its detector within its number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from pipeline.job import DigitsSource, ModelSection
from pipeline.sources.digits import open_digits
from trainer.health.detectors import HealthConfig
from trainer.health.monitor import GradientHealth
from trainer.health.overhead import Overhead
from trainer.health.records import Severity, Verdict
from trainer.models import build_model

NUM_CLASSES = 10
Tensors = tuple[torch.Tensor, torch.Tensor]
Spoil = Callable[["Run", int], None]
"""(run, step): changes something right before that step's forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training and what should be said of it."""

    name: str
    model: Mapping[str, object] = field(default_factory=dict)
    """Fields of the job's `model` section."""
    build: Callable[[], nn.Module] | None = None
    """Instead of `model`: any module from digits (N, 1, 8, 8) to logits."""
    optimizer: str = "adamw"
    lr: float = 1e-3
    clip: float = 0.0
    """Global norm; 0: none."""
    batch_size: int = 64
    num_steps: int = 300
    prepare: Callable[[Run], None] | None = None
    """Changes the run before its first step."""
    spoil: Spoil | None = None
    scale: float = 0.0
    """A constant loss scale with fp16 rounding of the gradients, as in fp16 training; 0: none."""
    expected: tuple[str, ...] = ()
    """Detectors of which one must find the fault; empty: healthy."""
    within: int = 300
    """... opened at this step at the latest."""


@dataclass(slots=True)
class Run:
    """What a case's functions may change."""

    case: Case
    model: nn.Module
    optimizer: Optimizer
    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    health: GradientHealth
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case."""

    case: Case
    verdicts: tuple[Verdict, ...]
    losses: tuple[float, ...]
    overhead: Overhead

    @property
    def alarms(self) -> tuple[Verdict, ...]:
        return tuple(one for one in self.verdicts if one.severity >= Severity.WARN)

    @property
    def detection(self) -> Verdict | None:
        """The first alarm of an expected detector."""
        return next((one for one in self.alarms if one.id in self.case.expected), None)


def digits() -> Tensors:
    """(1797, 1, 8, 8) images with mean 0 and deviation 1, and their labels."""
    source = open_digits(DigitsSource())
    samples = [source.read(index) for index in range(len(source))]
    images = torch.stack([torch.as_tensor(sample.data).float() for sample in samples]).reshape(-1, 1, 8, 8)
    labels = torch.tensor([sample.label for sample in samples])
    return (images - images.mean()) / images.std(), labels


OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], float], Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "plain_sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
}


def begin(case: Case, seed: int, data: Tensors) -> Run:
    """The case's run before its first step; equal seeds give equal runs."""
    torch.manual_seed(seed)
    images, labels = data
    if case.build is not None:
        model = case.build()
    else:
        model = build_model(ModelSection.model_validate(dict(case.model)), (1, 8, 8), NUM_CLASSES)
    optimizer = OPTIMIZERS[case.optimizer]([one for one in model.parameters() if one.requires_grad], case.lr)
    config = HealthConfig(num_classes=NUM_CLASSES)
    health = GradientHealth(model, optimizer, every_steps=50, light_every_steps=1, config=config)
    run = Run(
        case=case, model=model, optimizer=optimizer, images_NCHW=images.clone(), labels_N=labels.clone(), health=health
    )
    if case.prepare is not None:
        case.prepare(run)
        # The optimizer may be another one now, and hooks hold the model as it was.
        run.health.detach()
        run.health = GradientHealth(run.model, run.optimizer, every_steps=50, light_every_steps=1, config=config)
    return run


def watch(case: Case, seed: int, data: Tensors) -> Outcome:
    """Trains the case on shuffled digits and listens."""
    run = begin(case, seed, data)
    generator = torch.Generator().manual_seed(seed)
    for step in range(case.num_steps):
        if case.spoil is not None:
            case.spoil(run, step)
        rows = torch.randint(len(run.labels_N), (case.batch_size,), generator=generator)
        train(run, run.images_NCHW[rows], run.labels_N[rows], {"step": step, "sample_ids": rows.tolist()})
    run.health.flush()
    return Outcome(case=case, verdicts=run.health.verdicts, losses=tuple(run.losses), overhead=run.health.overhead)


def train(run: Run, images: torch.Tensor, labels: torch.Tensor, batch: dict[str, object]) -> None:
    """One step in the only right order: backward, unscale, measure, clip, step; a non-finite one is skipped."""
    case = run.case
    run.model.train()
    run.optimizer.zero_grad(set_to_none=True)
    logits = run.model(images)
    losses_N = functional.cross_entropy(logits, labels, reduction="none")
    loss = losses_N.mean()
    (loss * (case.scale or 1.0)).backward()  # type: ignore[no-untyped-call]
    parameters = [one for one in run.model.parameters() if one.grad is not None]
    if case.scale:
        for one in parameters:
            assert one.grad is not None
            one.grad = one.grad.half().float() / case.scale
    run.health.step(
        loss,
        inputs=images,
        labels=labels,
        batch=batch,
        scale=case.scale or None,
        clip_threshold=case.clip or None,
        sample_losses=lambda: losses_N.detach(),
    )
    run.losses.append(loss.item())
    is_finite = all(bool(torch.isfinite(one.grad).all()) for one in parameters if one.grad is not None)
    if is_finite and math.isfinite(run.losses[-1]):
        if case.clip:
            nn.utils.clip_grad_norm_(parameters, case.clip)
        run.optimizer.step()
