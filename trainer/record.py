"""The record of a training run: what each step and evaluation came to.

In:  step results, evaluations, the seconds waited for data.
Out: lines of metrics.jsonl and journal.jsonl; `Progress` while it runs, `Summary` at its end.
Never computes with tensors.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from pipeline.run_folder import RunFolder
from trainer.batch import Batch
from trainer.evaluation import Evaluation
from trainer.step import StepResult

_NUM_FINAL_STEPS = 20
"""Steps the summary's final loss is a mean over: one batch's loss is too noisy to compare. Chosen, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, after a step."""

    num_steps_done: int
    num_steps: int
    epoch: int
    loss: float
    """The last step's."""
    samples_per_s: float
    """Over the whole run so far, without the time of evaluations."""
    waited_fraction: float
    """Share of that time in which the loop waited for batches."""
    maybe_evaluation: Evaluation | None
    """The latest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a finished run came to."""

    num_steps: int
    num_samples: int
    skipped_steps: int
    """Steps not taken because their loss or gradient was not finite."""
    samples_per_s: float
    """Training samples by seconds of training, waiting included, evaluations left out."""
    waited_s: float
    """Seconds the loop waited for training batches."""
    waited_fraction: float
    final_loss: float
    """Mean training loss of the last steps taken (at most 20); NaN if none was."""
    held_out_loss: float | None
    """The final model's on the held-out source; None without an `eval` section."""
    held_out_accuracy: float | None
    run_folder: Path
    checkpoint: Path


class RunRecord:
    """Counts, times and writes down; its clock starts when it is made and stops during evaluations."""

    def __init__(self, folder: RunFolder, num_steps: int) -> None:
        self.epoch = 0
        self.position = 0
        """One past the last position trained on."""
        self._folder = folder
        self._num_steps = num_steps
        self._num_steps_done = 0
        self._num_samples = 0
        self._skipped_steps = 0
        self._loss = math.nan
        self._last_losses: deque[float] = deque(maxlen=_NUM_FINAL_STEPS)
        self._maybe_evaluation: Evaluation | None = None
        self._started_s = time.perf_counter()
        self._evaluated_s = 0.0

    def add_step(self, batch: Batch, result: StepResult) -> None:
        """One line of metrics.jsonl, with the batch's coordinates and digest; one of journal.jsonl if skipped."""
        self.epoch, self.position = batch.epoch, batch.stop
        self._num_steps_done = batch.step + 1
        self._num_samples += result.num_samples
        self._loss = result.loss
        numbers = {"loss": json_number(result.loss), "grad_norm": json_number(result.grad_norm), "lr": result.lr}
        self._folder.append_metrics(
            {
                "step": batch.step,
                "position": batch.start,
                "epoch": batch.epoch,
                "recipe": batch.recipe,
                "digest": batch.digest,
                **numbers,
                "clipped": result.was_clipped,
                "skipped": result.was_skipped,
                "num_samples": result.num_samples,
                "num_correct": result.num_correct,
            }
        )
        if result.was_skipped:
            self._skipped_steps += 1
            self._folder.append_event("step_skipped", step=batch.step, why="loss or gradient not finite", **numbers)
        else:
            self._last_losses.append(result.loss)

    def add_evaluation(self, step: int, evaluation: Evaluation, took_s: float) -> None:
        """One line of journal.jsonl; `took_s` is not counted as training."""
        self._maybe_evaluation = evaluation
        self._evaluated_s += took_s
        self._folder.append_event(
            "evaluated",
            step=step,
            loss=json_number(evaluation.loss),
            accuracy=evaluation.accuracy,
            num_samples=evaluation.num_samples,
            took_s=round(took_s, 3),
        )

    def progress(self, waited_s: float) -> Progress:
        """Where the run stands now."""
        trained_s = self._trained_s()
        return Progress(
            num_steps_done=self._num_steps_done,
            num_steps=self._num_steps,
            epoch=self.epoch,
            loss=self._loss,
            samples_per_s=self._num_samples / trained_s,
            waited_fraction=waited_s / trained_s,
            maybe_evaluation=self._maybe_evaluation,
        )

    def summary(self, waited_s: float, checkpoint: Path) -> Summary:
        """Call it right after the last evaluation: its clock runs."""
        trained_s = self._trained_s()
        evaluation = self._maybe_evaluation
        return Summary(
            num_steps=self._num_steps_done,
            num_samples=self._num_samples,
            skipped_steps=self._skipped_steps,
            samples_per_s=self._num_samples / trained_s,
            waited_s=waited_s,
            waited_fraction=waited_s / trained_s,
            final_loss=sum(self._last_losses) / len(self._last_losses) if self._last_losses else math.nan,
            held_out_loss=evaluation.loss if evaluation else None,
            held_out_accuracy=evaluation.accuracy if evaluation else None,
            run_folder=self._folder.path,
            checkpoint=checkpoint,
        )

    def _trained_s(self) -> float:
        return time.perf_counter() - self._started_s - self._evaluated_s


def json_number(value: float) -> float | str:
    """A JSON number, or `nan`, `inf`, `-inf` as text: JSON has no such numbers, and null would hide which it was."""
    return value if math.isfinite(value) else str(value)
