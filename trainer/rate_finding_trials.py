"""Trials: fresh models trained for a few steps, each at its own learning rate.

In:  a job, samples of its train stream, samples to be judged on.
Out: a range test's curve; a rate's `Score` over the folds.
Never writes a file, never reads a stream. Leaves all random generators as they were; torch's threads and determinism
are then as the job has them.

Each trial begins as the job's first step would: the same seed, so the same weights and the same dropout. The job's
model, activation, law, optimizer, clipping, precision, micro-batches and batch size are used; its schedule is not, the
rate is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.errors import ConfigError, Problem
from pipeline.factory import load_factory
from trainer.device import choose_device, prepare_torch
from trainer.evaluation import evaluate
from trainer.lsuv import scale_to_unit
from trainer.models import build_model, check_output
from trainer.optimizers import build_optimizer
from trainer.random_state import random_state_kept
from trainer.rate_finding import RangeTest, run_range_test
from trainer.rate_finding_folds import Fold, Score, split_into_folds
from trainer.rate_finding_samples import Samples
from trainer.step import Stepper
from trainer.trainable import require_trainable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config_job import Job

MIN_JUDGED = 10
"""Samples that a fold must have to be judged on; fewer say nothing. Chosen."""
MAX_SKIPPED = 0.1
"""A trial of which more steps than this share were not finite has diverged. The rest may be a bad sample's."""
_JUDGED_BATCH = 128


class Trials:
    """Trains models that nobody keeps."""

    def __init__(self, job: Job, samples: Samples, judged: Samples, classes: tuple[str, ...]) -> None:
        """`judged`: samples of the same source, with the same ids; a fold's model is judged on those of its fold."""
        require_trainable(job, samples.spec, classes)
        self._job, self._config, self._classes = job, job.config, classes
        self._samples, self._judged = samples, judged
        self._device = choose_device(job.config.device)
        self._factory = load_factory(job)
        self._batch_size = job.config.train.batch_size

    def range_test(self, lrs: Sequence[float], on_step: Callable[[], None] = lambda: None) -> RangeTest:
        """One model, a batch a rate."""
        self._require_batch(len(self._samples), "a range test")
        with random_state_kept():
            rows = torch.arange(len(self._samples))
            _, stepper = self._fresh(rows)
            batches = self._samples.endless(rows, self._batch_size, self._device)

            def loss_at(lr: float) -> float:
                on_step()
                return stepper.step(next(batches), lr=lr).loss

            return run_range_test(lrs, loss_at)

    def score(self, lr: float, num_folds: int, num_steps: int, on_step: Callable[[], None] = lambda: None) -> Score:
        """A model a fold: trained on the other folds' samples, judged on its own's.

        All rates' models of a fold begin with equal weights and see equal batches.
        """
        results = []
        for number, fold in enumerate(self._folds(num_folds), start=1):
            self._require_batch(len(fold.trained_rows), f"the training without fold {number} of {num_folds}")
            with random_state_kept():
                results.append(self._score_once(lr, fold, num_steps, on_step))
        losses, accuracies = zip(*results, strict=True)
        return Score(lr=lr, losses=losses, accuracies=accuracies)

    def require_folds(self, num_folds: int) -> None:
        """ConfigError unless every fold has enough samples to be judged on."""
        counts = [len(fold.judged_rows) for fold in self._folds(num_folds)]
        if min(counts) < MIN_JUDGED:
            raise ConfigError(
                Problem(
                    file="command line",
                    line=0,
                    path="--folds",
                    expected=f"folds of at least {MIN_JUDGED} samples, of the {len(self._judged)} to be judged on",
                    got=f"{num_folds} folds, the smallest of {min(counts)}",
                    way_out="lower --folds, or name a larger source",
                )
            )

    def _folds(self, num_folds: int) -> tuple[Fold, ...]:
        return split_into_folds(self._samples.sample_ids_N.numpy(), self._judged.sample_ids_N.numpy(), num_folds)

    def _score_once(self, lr: float, fold: Fold, num_steps: int, on_step: Callable[[], None]) -> tuple[float, float]:
        """(held-out loss, accuracy); a loss of inf if it diverged."""
        rows, judged_rows = torch.from_numpy(fold.trained_rows), torch.from_numpy(fold.judged_rows)
        model, stepper = self._fresh(rows)
        batches = self._samples.endless(rows, self._batch_size, self._device)
        num_skipped = 0
        for _ in range(num_steps):
            on_step()
            fault = stepper.step(next(batches), lr=lr).maybe_fault
            num_skipped += fault is not None and fault.cause != "loss_scale"  # a scale that settles skips some
            if num_skipped > MAX_SKIPPED * num_steps:
                return math.inf, math.nan
        evaluation = evaluate(model, self._judged.batches(judged_rows, _JUDGED_BATCH, self._device))
        if not math.isfinite(evaluation.loss):
            return math.inf, math.nan
        return evaluation.loss, evaluation.accuracy

    def _fresh(self, rows: torch.Tensor) -> tuple[nn.Module, Stepper]:
        """The model as the job begins with it; `rows`: what it will be trained on, which LSUV looks at."""
        config, section = self._config, self._config.model
        prepare_torch(config)
        height, width, num_channels = self._samples.spec.fields[0].shape
        shape_CHW, num_classes = (num_channels, height, width), len(self._classes)
        model = build_model(section, shape_CHW, num_classes, self._factory).to(self._device)
        check_output(model, section, shape_CHW, num_classes)
        if section.init.law == "lsuv":
            images = next(self._samples.endless(rows, self._batch_size, self._device)).images
            scale_to_unit(model, images, tolerance=section.init.tolerance, max_tries=section.init.max_tries)
        model.train()
        stepper = Stepper(
            model,
            build_optimizer(config.optimizer, model),
            clip=config.clip,
            precision=config.precision,
            accumulate=config.train.accumulate,
        )
        return model, stepper

    def _require_batch(self, num_samples: int, what: str) -> None:
        if num_samples < self._batch_size:
            raise ConfigError(
                Problem(
                    file=str(self._job.path),
                    line=0,
                    path="train.batch_size",
                    expected=f"at most {num_samples}, the samples in memory for {what}",
                    got=str(self._batch_size),
                    way_out="lower it (--set train.batch_size=...), or name a larger source",
                )
            )
