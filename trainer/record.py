"""The record of a training run: what each step and evaluation came to.

In:  step results, evaluations, the seconds waited for data.
Out: lines of metrics.jsonl and journal.jsonl; `Progress` while it runs, `Summary` at its end.
Never computes with tensors.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

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
    """Steps done, in all attempts."""
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
    """The newest one."""
    first_step: int = 0
    """The first step of this attempt; speeds and times are of this attempt only, counts of the whole run."""
    planned_steps: int = 0
    """Up to the end of the last epoch."""
    stopped_by: str = ""
    """What asked it to stop before its end, such as SIGTERM."""
    num_checkpoints: int = 0
    """Written in this attempt."""
    stall_s: float = 0.0
    """Seconds the loop was kept by checkpoints."""
    gradients: str = ""
    """The worst open verdict and how many more, or `healthy`; "" where nothing watched them."""
    num_open_verdicts: int = 0


class RunRecord:
    """Counts, times and writes down; its clock starts when it is made and stops during evaluations."""

    def __init__(
        self,
        folder: RunFolder,
        num_steps: int,
        keep_best: Literal["held_out_accuracy", "held_out_loss"] | None = None,
    ) -> None:
        self.epoch = 0
        """Of the last batch trained on."""
        self.position = 0
        """One past the last position trained on."""
        self.num_steps_done = 0
        self.num_samples = 0
        """Trained on, in all attempts."""
        self.evaluated_step = -1
        """Steps that were done at the latest evaluation; -1 before the first."""
        self.best_step: int | None = None
        """Steps that were done at the best evaluation so far, by `keep_best`."""
        self._folder = folder
        self._num_steps = num_steps
        self._keep_best = keep_best
        self._best_value = math.nan
        self._first_step = 0
        self._num_samples_before = 0
        self._skipped_steps = 0
        self._loss = math.nan
        self._last_losses: deque[float] = deque(maxlen=_NUM_FINAL_STEPS)
        self._maybe_evaluation: Evaluation | None = None
        self._started_s = time.perf_counter()
        self._evaluated_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values; `load_state_dict` of them goes on counting from here."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "num_steps_done": self.num_steps_done,
            "evaluated_step": self.evaluated_step,
            "num_samples": self.num_samples,
            "skipped_steps": self._skipped_steps,
            "loss": self._loss,
            "last_losses": list(self._last_losses),
            "evaluation": asdict(self._maybe_evaluation) if self._maybe_evaluation else None,
            "best_metric": self._keep_best,
            "best_step": self.best_step,
            "best_value": self._best_value,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counts go on, clocks do not: speeds are of this attempt."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.num_steps_done = self._first_step = state["num_steps_done"]
        self.evaluated_step = state["evaluated_step"]
        self.num_samples = self._num_samples_before = state["num_samples"]
        self._skipped_steps = state["skipped_steps"]
        self._loss = state["loss"]
        self._last_losses.extend(state["last_losses"])
        self._maybe_evaluation = Evaluation(**state["evaluation"]) if state["evaluation"] else None
        if state["best_metric"] == self._keep_best:  # else the job has chosen another one since
            self.best_step, self._best_value = state["best_step"], state["best_value"]

    def evaluation_state(self) -> dict[str, Any] | None:
        """The latest evaluation, for state.json."""
        evaluation = self._maybe_evaluation
        if evaluation is None:
            return None
        return {
            "step": self.evaluated_step,
            "loss": json_number(evaluation.loss),
            "accuracy": evaluation.accuracy,
            "num_samples": evaluation.num_samples,
        }

    def best_state(self) -> dict[str, Any] | None:
        """The best evaluation, for state.json."""
        if self.best_step is None:
            return None
        return {"metric": self._keep_best, "step": self.best_step, "value": self._best_value}

    def add_step(self, batch: Batch, result: StepResult) -> None:
        """One line of metrics.jsonl, with the batch's coordinates and digest; one of journal.jsonl if skipped."""
        self.epoch, self.position = batch.epoch, batch.stop
        self.num_steps_done = batch.step + 1
        self.num_samples += result.num_samples
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
                "clipped_norm": json_number(result.clipped_norm),
                "loss_scale": result.loss_scale,
                "skipped": result.was_skipped,
                "num_samples": result.num_samples,
                "num_correct": result.num_correct,
            }
        )
        if result.maybe_fault is not None:
            self._skipped_steps += 1
            self._folder.append_event(
                "step_skipped",
                step=batch.step,
                why="loss or gradient not finite",
                fault=asdict(result.maybe_fault),
                **numbers,
            )
        else:
            self._last_losses.append(result.loss)

    def add_evaluation(self, step: int, evaluation: Evaluation, took_s: float) -> bool:
        """One line of journal.jsonl; `took_s` is not counted as training. True: the best so far, by `keep_best`."""
        self._maybe_evaluation = evaluation
        self.evaluated_step = step
        self._evaluated_s += took_s
        self._folder.append_event(
            "evaluated",
            step=step,
            loss=json_number(evaluation.loss),
            accuracy=evaluation.accuracy,
            num_samples=evaluation.num_samples,
            took_s=round(took_s, 3),
        )
        if self._keep_best is None:
            return False
        value = evaluation.accuracy if self._keep_best == "held_out_accuracy" else evaluation.loss
        is_better = value > self._best_value if self._keep_best == "held_out_accuracy" else value < self._best_value
        if math.isnan(value) or not (self.best_step is None or is_better):
            return False
        self.best_step, self._best_value = step, value
        return True

    def progress(self, waited_s: float) -> Progress:
        """Where the run stands now."""
        trained_s = self._trained_s()
        return Progress(
            num_steps_done=self.num_steps_done,
            num_steps=self._num_steps,
            epoch=self.epoch,
            loss=self._loss,
            samples_per_s=(self.num_samples - self._num_samples_before) / trained_s,
            waited_fraction=waited_s / trained_s,
            maybe_evaluation=self._maybe_evaluation,
        )

    def summary(
        self,
        waited_s: float,
        checkpoint: Path,
        *,
        stopped_by: str,
        num_checkpoints: int,
        stall_s: float,
        gradients: str,
        num_open_verdicts: int,
    ) -> Summary:
        """Call it right after the last evaluation: its clock runs."""
        trained_s = self._trained_s()
        evaluation = self._maybe_evaluation
        return Summary(
            num_steps=self.num_steps_done,
            num_samples=self.num_samples,
            skipped_steps=self._skipped_steps,
            samples_per_s=(self.num_samples - self._num_samples_before) / trained_s,
            waited_s=waited_s,
            waited_fraction=waited_s / trained_s,
            final_loss=sum(self._last_losses) / len(self._last_losses) if self._last_losses else math.nan,
            held_out_loss=evaluation.loss if evaluation else None,
            held_out_accuracy=evaluation.accuracy if evaluation else None,
            run_folder=self._folder.path,
            checkpoint=checkpoint,
            first_step=self._first_step,
            planned_steps=self._num_steps,
            stopped_by=stopped_by,
            num_checkpoints=num_checkpoints,
            stall_s=stall_s,
            gradients=gradients,
            num_open_verdicts=num_open_verdicts,
        )

    def _trained_s(self) -> float:
        return time.perf_counter() - self._started_s - self._evaluated_s


def json_number(value: float) -> float | str:
    """A JSON number, or `nan`, `inf`, `-inf` as text: JSON has no such numbers, and null would hide which it was."""
    return value if math.isfinite(value) else str(value)
