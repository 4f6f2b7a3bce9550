"""Healthy and faulty trainings, as data: what detectors are calibrated and tested with.

In:  a `Case`, a seed, material to train on: digits, or batches that a stream has delivered.
Out: an `Outcome`: verdicts, when the fault was named, losses, the monitor's own cost.
A healthy case must raise no WARN or CRITICAL; a faulty one must raise its detector within its number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from pipeline.job import DigitsSource, ModelSection, ScheduleSection
from pipeline.job_clip import ClipSection
from pipeline.sources.digits import open_digits
from trainer.batch import Batch
from trainer.clipping import Clipper
from trainer.health.detectors import HealthConfig
from trainer.health.monitor import GradientHealth
from trainer.health.overhead import Overhead
from trainer.health.records import Severity, Verdict, VerdictEvent
from trainer.lsuv import scale_to_unit
from trainer.models import build_model
from trainer.norms import global_norm, gradient_norms
from trainer.schedules import learning_rate

Spoil = Callable[["Run", int], None]
"""(run, step): changes something right before that step's forward pass."""
Build = Callable[[tuple[int, int, int], int], nn.Module]
"""(shape of an image CHW, number of classes) -> a module from images to logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training and what should be said of it."""

    name: str
    data: Literal["digits", "stream"] = "digits"
    model: Mapping[str, object] = field(default_factory=dict)
    """Fields of the job's `model` section."""
    build: Build | None = None
    """Instead of `model`: anybody's module."""
    optimizer: str = "adamw"
    lr: float = 1e-3
    is_cosine: bool = False
    """The rate climbs for 30 steps and then falls to zero by the last one; else it is constant."""
    clip: Mapping[str, object] = field(default_factory=dict)
    """Fields of the job's `clip` section; empty: none."""
    batch_size: int = 64
    num_steps: int = 300
    prepare: Callable[[Run], None] | None = None
    """Changes the run before its first step."""
    spoil: Spoil | None = None
    scale: float = 0.0
    """A constant loss scale with fp16 rounding of the gradients, as in fp16 training; 0: none."""
    is_bfloat16: bool = False
    """Gradients are rounded as in bf16 training."""
    expected: tuple[str, ...] = ()
    """Detectors of which one must find the fault; empty: healthy."""
    since: int = 0
    """The fault's first step."""
    within: int = 300
    """Steps from there to the verdict, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a case is trained on."""

    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    num_classes: int
    is_stream: bool = False
    """Batches are taken in the order in which they came; else they are drawn at random."""
    transforms: tuple[str, ...] = ()


@dataclass(slots=True)
class Run:
    """What a case's functions may change."""

    case: Case
    seed: int
    model: nn.Module
    optimizer: Optimizer
    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    health: GradientHealth
    light_every: int
    losses: list[float] = field(default_factory=list)

    def renew_health(self) -> None:
        """Watches the model and optimizer as they are now, from nothing: hooks hold on to what they were made for."""
        config = self.health.config
        self.health.detach()
        self.health = GradientHealth(
            self.model, self.optimizer, every_steps=50, light_every_steps=self.light_every, config=config
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case."""

    case: Case
    verdicts: tuple[Verdict, ...]
    losses: tuple[float, ...]
    overhead: Overhead
    detection: Verdict | None
    """The first alarm of an expected detector, as it was when it was raised."""
    detected_at: int | None

    @property
    def alarms(self) -> tuple[Verdict, ...]:
        return tuple(one for one in self.verdicts if one.severity >= Severity.WARN)

    @property
    def has_learned(self) -> bool:
        """The last losses are a tenth below the first: or a healthy case's silence would say nothing."""
        last = self.losses[-10:]
        return sum(last) < 0.9 * len(last) * self.losses[0]

    @property
    def delay(self) -> int | None:
        """Steps from the fault to the alarm."""
        return None if self.detected_at is None else self.detected_at - self.case.since

    @property
    def is_in_time(self) -> bool:
        return self.delay is not None and self.delay <= self.case.within


def digits() -> Material:
    """1,797 images (1, 8, 8) with mean 0 and deviation 1, and their labels."""
    source = open_digits(DigitsSource())
    samples = [source.read(index) for index in range(len(source))]
    images = torch.stack([torch.as_tensor(sample.data).float() for sample in samples]).reshape(-1, 1, 8, 8)
    labels = torch.tensor([sample.label for sample in samples])
    return Material(images_NCHW=(images - images.mean()) / images.std(), labels_N=labels, num_classes=10)


def gathered(
    batches: Iterator[Batch], num_batches: int, num_classes: int, transforms: tuple[str, ...] = ()
) -> Material:
    """The first batches of a stream, so that several models can be trained on the same ones; memory is for these only.

    Batches are a function of their coordinates, so what is kept is what every model would have been sent.
    """
    images_NCHW: torch.Tensor | None = None
    labels_N = torch.empty(0, dtype=torch.int64)
    stop = 0
    for _, batch in zip(range(num_batches), batches, strict=False):
        size = len(batch.labels)
        if images_NCHW is None:
            images_NCHW = torch.empty((num_batches * size, *batch.images.shape[1:]))
            labels_N = torch.empty(num_batches * size, dtype=torch.int64)
        images_NCHW[stop : stop + size] = batch.images
        labels_N[stop : stop + size] = batch.labels
        stop += size
    assert images_NCHW is not None, "a stream without a batch"
    return Material(
        images_NCHW=images_NCHW[:stop],
        labels_N=labels_N[:stop],
        num_classes=num_classes,
        is_stream=True,
        transforms=transforms,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Small models are fastest so, and equal seeds give equal runs whatever else the machine does."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], float], Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "plain_sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01),
}


def new_optimizer(case: Case, model: nn.Module) -> Optimizer:
    return OPTIMIZERS[case.optimizer]([one for one in model.parameters() if one.requires_grad], case.lr)


def begin(case: Case, seed: int, material: Material, *, light_every: int = 1) -> Run:
    """The case's run before its first step; equal seeds give equal runs."""
    torch.manual_seed(seed)
    shape = (material.images_NCHW.shape[1], material.images_NCHW.shape[2], material.images_NCHW.shape[3])
    if case.build is not None:
        model = case.build(shape, material.num_classes)
    else:
        section = ModelSection.model_validate(dict(case.model))
        model = build_model(section, shape, material.num_classes)
        if section.init.law == "lsuv":
            scale_to_unit(model, material.images_NCHW[:128])
    optimizer = new_optimizer(case, model)
    config = HealthConfig(num_classes=material.num_classes, transforms=material.transforms)
    health = GradientHealth(model, optimizer, every_steps=50, light_every_steps=light_every, config=config)
    run = Run(
        case=case,
        seed=seed,
        model=model,
        optimizer=optimizer,
        images_NCHW=material.images_NCHW,
        labels_N=material.labels_N,
        health=health,
        light_every=light_every,
    )
    if case.prepare is not None:
        case.prepare(run)
        run.renew_health()
    return run


def watch(case: Case, seed: int, material: Material, *, stops: bool = False, light_every: int = 1) -> Outcome:
    """Trains the case and listens; `stops`: no further than the first alarm of an expected detector. `light_every`:
    steps between those whose norms are measured, which this loop doesn't give by itself."""
    run = begin(case, seed, material, light_every=light_every)
    schedule = ScheduleSection(kind="cosine", warmup_steps=30)
    clipper = Clipper(ClipSection.model_validate(dict(case.clip)), run.model)
    generator = torch.Generator().manual_seed(seed)
    detection, detected_at = None, None
    for step in range(case.num_steps):
        if case.spoil is not None:
            case.spoil(run, step)
        if case.is_cosine:
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(schedule, case.lr, step, case.num_steps)
        if material.is_stream:
            rows = torch.arange(step * case.batch_size, (step + 1) * case.batch_size) % len(run.labels_N)
        else:
            rows = torch.randint(len(run.labels_N), (case.batch_size,), generator=generator)
        batch = {"step": step, "sample_ids": rows.tolist()}
        events = train(run, clipper, run.images_NCHW[rows], run.labels_N[rows], batch)
        if step == case.num_steps - 1:
            events += run.health.flush()
        if detection is None:
            detection, detected_at = _detected(events, case.expected)
        if stops and detection is not None:
            break
    return Outcome(
        case=case,
        verdicts=run.health.verdicts,
        losses=tuple(run.losses),
        overhead=run.health.overhead,
        detection=detection,
        detected_at=detected_at,
    )


def _detected(events: list[VerdictEvent], expected: tuple[str, ...]) -> tuple[Verdict | None, int | None]:
    for event in events:
        if event.verdict.id in expected and event.verdict.severity >= Severity.WARN:
            return event.verdict, event.step
    return None, None


def train(
    run: Run, clipper: Clipper, images: torch.Tensor, labels: torch.Tensor, batch: dict[str, object]
) -> list[VerdictEvent]:
    """One step in the only right order: backward, unscale, measure, clip, step; a non-finite one is skipped."""
    case = run.case
    run.model.train()
    run.optimizer.zero_grad(set_to_none=True)
    logits = run.model(images)
    losses_N = functional.cross_entropy(logits, labels, reduction="none")
    loss = losses_N.mean()
    (loss * (case.scale or 1.0)).backward()  # type: ignore[no-untyped-call]
    gradients = {name: one.grad for name, one in run.model.named_parameters() if one.grad is not None}
    if case.scale:
        for gradient in gradients.values():
            gradient.copy_(gradient.half().float() / case.scale)
    elif case.is_bfloat16:
        for gradient in gradients.values():
            gradient.copy_(gradient.bfloat16().float())
    is_norm = case.clip.get("kind") == "norm"
    events = run.health.step(
        loss,
        inputs=images,
        labels=labels,
        batch=batch,
        scale=case.scale or None,
        clip_threshold=float(str(case.clip["threshold"])) if is_norm else None,
        sample_losses=lambda: losses_N.detach(),
    )
    run.losses.append(loss.item())
    norms_P = gradient_norms(list(gradients.values()))
    norm = global_norm(norms_P)
    if math.isfinite(norm.item()) and math.isfinite(run.losses[-1]):
        numbers = clipper.prepare(tuple(gradients), norms_P, norm)
        clipper.clip(norm.item(), [number.item() for number in numbers])
        run.optimizer.step()
    return events
