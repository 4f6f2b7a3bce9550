"""Gradient health as the stepper's observer: nothing is measured twice.

In:  what `trainer.step` tells at its three places.
Out: the events of each step, to a callable; the health object itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.health.monitor import GradientHealth
from trainer.health.records import VerdictEvent
from trainer.step import Measured, StepResult

Tell = Callable[[VerdictEvent], None]


class HealthObserver:
    """A `StepObserver`; `health` must have been made with `is_told=True`."""

    def __init__(self, health: GradientHealth, tell: Tell, *, clip_threshold: float | None = None) -> None:
        """`clip_threshold`: a fixed global one; None: clipping chooses its own, or none."""
        self.health = health
        self._tell, self._clip_threshold = tell, clip_threshold

    def before_forward(self, step: int) -> None:
        self.health.before_forward(step)

    def measured(self, measured: Measured) -> None:
        events = self.health.step(
            measured.loss,
            inputs=measured.batch.images,
            labels=measured.batch.labels,
            batch=lambda: coordinates(measured),
            # 1 stands for no loss scale.
            scale=measured.loss_scale if measured.loss_scale > 1.0 else None,
            grad_norm=measured.grad_norm,
            norms_P=measured.norms_P,
            names_P=measured.names_P,
            clip_threshold=self._clip_threshold,
            sample_losses=measured.sample_losses,
            step=measured.batch.step,
        )
        if measured.is_finite:
            self.health.before_update()
        for event in events:
            self._tell(event)

    def stepped(self, result: StepResult) -> None:
        self.health.after_update(
            was_skipped=result.was_skipped, clipped_norm=result.clipped_norm, was_clipped=result.was_clipped
        )


def coordinates(measured: Measured) -> dict[str, Any]:
    """Where a step's samples came from: enough to make them again."""
    batch = measured.batch
    return {
        "step": batch.step,
        "epoch": batch.epoch,
        "start": batch.start,
        "stop": batch.stop,
        "recipe": batch.recipe,
        "digest": batch.digest,
        "micro_batch_losses": [repr(loss) for loss in measured.losses],
        "sample_ids": batch.sample_ids.tolist(),
    }
