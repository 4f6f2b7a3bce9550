"""A trial: a job's first steps, taken for comparison and thrown away.

In:  a job, batches, the shape of its stream.
Out: `Trial`: lint of its model, losses, norms, profiles at the first and the last step, verdicts.
Writes nothing; the random generators are as they were, torch's threads and determinism as the job has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING

from torch import nn

from pipeline.factory import load_factory
from pipeline.recipe import BatchSpec
from trainer.batch import Batch
from trainer.device import choose_device, prepare_torch
from trainer.first_look import lint_job, scale
from trainer.health.detectors import HealthConfig
from trainer.health.monitor import GradientHealth
from trainer.health.observer import HealthObserver
from trainer.health.records import DeepStats, Verdict, open_verdicts
from trainer.health.robust import quantile
from trainer.lint_report import LintReport, Slopes, slopes_of
from trainer.models import build_model, check_output
from trainer.optimizers import build_optimizer
from trainer.random_state import random_state_kept
from trainer.schedules import Schedule
from trainer.step import Stepper, StepResult

if TYPE_CHECKING:
    from pipeline.config_job import Job

NUM_LAST = 5
"""Losses that the last one is a mean over: a single batch's is too noisy to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a few first steps came to."""

    lint: LintReport
    settings: str
    """Initial weights, activation and clipping, as they were."""
    results: tuple[StepResult, ...]
    first: Slopes
    last: Slopes
    update_ratio: float
    """Median over layers of how far the last step moved a weight, in shares of itself; NaN: it was skipped."""
    verdicts: tuple[Verdict, ...]
    """WARN and CRITICAL that were open at the end."""

    @property
    def first_loss(self) -> float:
        return self.results[0].loss

    @property
    def last_loss(self) -> float:
        """Mean over the last steps; not finite if one of them was not."""
        last = [result.loss for result in self.results[-NUM_LAST:]]
        return sum(last) / len(last)

    @property
    def norms(self) -> tuple[float, ...]:
        """Of the gradients before clipping, finite ones."""
        return tuple(result.grad_norm for result in self.results if math.isfinite(result.grad_norm))

    @property
    def p90(self) -> float:
        """90th percentile of the norms; NaN without any."""
        return quantile(self.norms, 0.9) if self.norms else math.nan

    @property
    def num_skipped(self) -> int:
        return sum(result.was_skipped for result in self.results)

    @property
    def num_clipped(self) -> int:
        return sum(result.was_clipped for result in self.results)


def run_trial(
    job: Job, batches: Iterable[Batch], *, spec: BatchSpec, num_classes: int, num_planned_steps: int
) -> Trial:
    """The job's own first steps, on these batches (at least one): losses are those that `headrace train` would have.

    `num_planned_steps`: of the whole run, which the schedule goes by.
    """
    with random_state_kept():
        return _run(job, batches, spec, num_classes, num_planned_steps)


def _run(job: Job, batches: Iterable[Batch], spec: BatchSpec, num_classes: int, num_planned_steps: int) -> Trial:
    config = job.config
    prepare_torch(config)
    model = _model(job, spec, num_classes)
    schedule = Schedule(config.schedule, config.optimizer.lr, num_planned_steps)
    waiting = iter(batches)
    first = next(waiting)
    if config.model.init.law == "lsuv":
        scale(config.model.init, model, first, str(job.path))
    report = lint_job(job, model, first, num_classes=num_classes)
    deep: list[DeepStats] = []
    stepper, health = _watched(job, model.train(), num_classes, deep.append)
    results = [stepper.step(batch, lr=schedule.lr(batch.step)) for batch in chain([first], waiting)]
    health.flush()
    return Trial(
        lint=report,
        settings=describe_settings(job),
        results=tuple(results),
        first=slopes_of(deep[0] if deep else None),
        last=slopes_of(deep[-1] if deep else None),
        update_ratio=_update_ratio(deep[-1] if deep else None),
        verdicts=tuple(open_verdicts(health.verdicts)),
    )


def _model(job: Job, spec: BatchSpec, num_classes: int) -> nn.Module:
    """With the weights of the job's first step; LSUV has only its start."""
    section = job.config.model
    height, width, num_channels = spec.fields[0].shape
    shape_CHW = (num_channels, height, width)
    factory = load_factory(job)
    model = build_model(section, shape_CHW, num_classes, factory).to(choose_device(job.config.device))
    check_output(model, section, shape_CHW, num_classes)
    return model


def _watched(
    job: Job, model: nn.Module, num_classes: int, on_deep: Callable[[DeepStats], None]
) -> tuple[Stepper, GradientHealth]:
    """A stepper of which every step is looked at in depth."""
    config = job.config
    optimizer = build_optimizer(config.optimizer, model)
    health = GradientHealth(
        model,
        optimizer,
        every_steps=1,
        light_every_steps=1,
        config=HealthConfig(
            thresholds=config.health.thresholds,
            off=config.health.off,
            num_classes=num_classes,
            base_lr=config.optimizer.lr,
        ),
        is_told=True,
        on_deep=on_deep,
    )
    stepper = Stepper(
        model,
        optimizer,
        clip=config.clip,
        precision=config.precision,
        accumulate=config.train.accumulate,
        observer=HealthObserver(health, lambda event: None),
    )
    return stepper, health


def describe_settings(job: Job) -> str:
    """Such as `init auto, activation relu, lr 0.003, clip norm at 0.31`."""
    model, clip = job.config.model, job.config.clip
    threshold = f" at {clip.threshold:.3g}" if clip.kind in ("norm", "value") else ""
    lr = f"{job.config.optimizer.lr:.3g}"
    return f"init {model.init.law}, activation {model.activation.name}, lr {lr}, clip {clip.kind}{threshold}"


def _update_ratio(deep: DeepStats | None) -> float:
    if deep is None or deep.was_skipped:
        return math.nan
    ratios = [layer.update_norm / layer.weight_norm for layer in deep.layers if layer.weight_norm > 0.0]
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return median(finite) if finite else math.nan
