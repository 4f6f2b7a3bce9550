"""One run of a study: a model, stepped on batches that it shares with its neighbours.

In:  the job of its cell, batches, the images that it is judged on.
Out: a `RunRecord`.
A run that blows up is a result: nothing it computes raises, and it ends after a few steps without a finite gradient.
Each run has random generators of its own, so what a model draws (dropout) is what it would draw alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import process_time

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.job import JobConfig
from pipeline.study import Cell
from pipeline.study_formula import formula_value
from trainer.batch import Batch
from trainer.evaluation import evaluate
from trainer.first_look import scale
from trainer.health.detectors import HealthConfig
from trainer.health.measure import DeepProbe
from trainer.health.monitor import GradientHealth
from trainer.health.observer import HealthObserver
from trainer.health.records import DeepStats, Severity
from trainer.health.rules_depth import backward_profile, profile
from trainer.init_layers import weighted_layers
from trainer.models import Factory, build_model
from trainer.optimizers import build_optimizer
from trainer.random_state import put_random_state, random_state_kept, seed_random_state, take_random_state
from trainer.schedules import Schedule
from trainer.step import Measured, Stepper, StepResult
from trainer.study_records import Depth, Judged, RunRecord, finite

NUM_LAST = 10
"""Steps that `last_loss` is the mean of: one batch's loss is noise."""
HEALTH_EVERY = 25
"""Steps between gradient health's looks through all layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all runs of a study have in common."""

    num_steps: int
    measured_steps: Collection[int]
    evaluate_every: int
    stop_after_skipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What a model is judged on; without augmentation."""

    train: Sequence[Batch]
    held_out: Sequence[Batch]
    num_classes: int


@dataclass(slots=True)
class _Counts:
    losses: list[float] = field(default_factory=list)
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0
    first_skipped: int | None = None
    num_clipped: int = 0
    max_grad_norm: float = -math.inf
    cpu_s: float = 0.0


class StudyRun:
    """Begins with the weights of its job's seed; equal jobs and batches give equal records, but for `cpu_s`."""

    def __init__(
        self,
        config: JobConfig,
        cell: Cell,
        plan: Plan,
        images: Images,
        *,
        weights_std: str = "",
        factory: Factory | None = None,
        file: str = "the job",
    ) -> None:
        """`factory`: what `config.model.factory` names, for kind `factory`; `file`: the job's, for errors."""
        self._config, self._cell, self._plan, self._images, self._file = config, cell, plan, images, file
        shape = images.train[0].images.shape[1:]
        seed_random_state(config.seed)
        self._model = build_model(config.model, (shape[0], shape[1], shape[2]), images.num_classes, factory)
        if weights_std:
            draw_by_formula(self._model, weights_std)
        self._is_scaled = config.model.init.law == "lsuv" and not weights_std
        self._random = take_random_state()
        self._model.to(images.train[0].images.device)
        self._optimizer = build_optimizer(config.optimizer, self._model)
        self._watcher = _Watcher(self._model, self._optimizer, plan.measured_steps, images.num_classes)
        self._stepper = Stepper(
            self._model,
            self._optimizer,
            clip=config.clip,
            precision=config.precision,
            accumulate=config.train.accumulate,
            observer=self._watcher,
        )
        self._schedule = Schedule(config.schedule, config.optimizer.lr, plan.num_steps)
        self._counts = _Counts()
        self._judged: list[Judged] = []

    @property
    def is_over(self) -> bool:
        """No further step is wanted."""
        counts = self._counts
        is_given_up = counts.num_skipped_in_a_row >= self._plan.stop_after_skipped
        return is_given_up or len(counts.losses) >= self._plan.num_steps

    def step(self, batch: Batch) -> None:
        """One training step on the batch; nothing once the run is over. ConfigError if LSUV can't work with the first
        batch."""
        if self.is_over:
            return
        start_s = process_time()
        put_random_state(self._random)
        if not self._judged:
            self._begin(batch)
        self._step(batch)
        self._random = take_random_state()
        self._counts.cpu_s += process_time() - start_s

    def _begin(self, batch: Batch) -> None:
        """What needs a batch before the first step."""
        if self._is_scaled:
            scale(self._config.model.init, self._model, batch, self._file)
        self._judge()

    def _step(self, batch: Batch) -> None:
        counts = self._counts
        result = self._stepper.step(batch, lr=self._schedule.lr(len(counts.losses)))
        counts.losses.append(result.loss)
        if result.was_skipped:
            counts.num_skipped += 1
            counts.num_skipped_in_a_row += 1
            if counts.first_skipped is None:
                counts.first_skipped = batch.step
        else:
            counts.num_skipped_in_a_row = 0
            counts.num_clipped += result.was_clipped
            counts.max_grad_norm = max(counts.max_grad_norm, result.grad_norm)
        num_steps, every = len(counts.losses), self._plan.evaluate_every
        if self.is_over or (every and num_steps % every == 0):
            self._judge()

    def record(self) -> RunRecord:
        """What came of the run so far."""
        counts = self._counts
        num_steps = len(counts.losses)
        is_whole = num_steps >= self._plan.num_steps
        last = counts.losses[-NUM_LAST:]
        return RunRecord(
            cell=dict(self._cell),
            seed=self._config.seed,
            first_loss=finite(counts.losses[0]) if counts.losses else None,
            last_loss=finite(sum(last) / len(last)) if last and is_whole else None,
            depths=tuple(self._watcher.depths),
            judged=tuple(self._judged),
            num_steps=num_steps,
            num_skipped=counts.num_skipped,
            first_skipped=counts.first_skipped,
            clipped_share=counts.num_clipped / max(1, num_steps - counts.num_skipped),
            max_grad_norm=finite(counts.max_grad_norm),
            verdicts=self._watcher.verdicts(),
            num_classes=self._images.num_classes,
            num_train_images=sum(len(batch.labels) for batch in self._images.train),
            num_held_out_images=sum(len(batch.labels) for batch in self._images.held_out),
            cpu_s=counts.cpu_s,
        )

    def _judge(self) -> None:
        with random_state_kept():  # how often a run is judged must not change what it learns
            train = evaluate(self._model, self._images.train)
            held_out = evaluate(self._model, self._images.held_out)
        judged = Judged(
            step=len(self._counts.losses),
            train_loss=finite(train.loss),
            train_accuracy=train.accuracy,
            held_out_loss=finite(held_out.loss),
            held_out_accuracy=held_out.accuracy,
        )
        self._judged.append(judged)


def draw_by_formula(model: nn.Module, formula: str) -> None:
    """Every layer's weights become normal with the formula's standard deviation, every bias zero."""
    with torch.no_grad():
        for layer in weighted_layers(model):
            std = formula_value(formula, fan_in=layer.shape.fan_in, fan_out=layer.shape.fan_out)
            layer.weight.normal_(0.0, std)
            for bias in layer.biases:
                bias.zero_()


class _Watcher:
    """Looks through all layers at the study's own steps, and lets gradient health look as it does in a job."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, measured_steps: Collection[int], num_classes: int
    ) -> None:
        self._model, self._optimizer, self._measured_steps = model, optimizer, measured_steps
        self._health = GradientHealth(
            model,
            optimizer,
            every_steps=HEALTH_EVERY,
            light_every_steps=1,
            config=HealthConfig(num_classes=num_classes),
            is_told=True,
        )
        self._observer = HealthObserver(self._health, lambda event: None)
        self._probe: DeepProbe | None = None
        self._step = 0
        self.depths: list[Depth] = []

    def before_forward(self, step: int) -> None:
        self._step = step
        if step in self._measured_steps:
            self._probe = DeepProbe(self._model, [self._optimizer], {}, 1)
        self._observer.before_forward(step)

    def measured(self, measured: Measured) -> None:
        if self._probe is not None:
            norms = dict(zip(measured.names_P, measured.norms_P.unbind(), strict=True))
            self._probe.gradients(norms, None, None, None)
        self._observer.measured(measured)

    def stepped(self, result: StepResult) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            numbers = torch.cat([tensor.detach().double().reshape(-1).cpu() for tensor in probe.parcel.tensors])
            stats = probe.reader(self._step, None, result.was_skipped)(numbers.tolist())
            self.depths.append(_depth(stats, result.grad_norm))
        self._observer.stepped(result)

    def verdicts(self) -> tuple[str, ...]:
        self._health.flush()
        alarms = [one.id for one in self._health.verdicts if one.severity >= Severity.WARN]
        return tuple(dict.fromkeys(alarms))


def _depth(stats: DeepStats, grad_norm: float) -> Depth:
    hidden = stats.layers[:-1]  # the head's scale is the loss's business
    forward = profile(hidden, [layer.std for layer in hidden], 2)
    backward = backward_profile(stats, 2)
    return Depth(
        step=stats.step,
        grad_norm=finite(grad_norm),
        forward_std=tuple(finite(layer.std) for layer in stats.layers),
        delta_rms=tuple(finite(layer.delta_rms) for layer in stats.layers),
        forward_slope=finite(forward.slope),
        # A profile is told in the order of the layers; the gradient goes the other way.
        backward_slope=finite(-backward.slope),
    )
