"""NONFINITE: what is not finite, and the first thing that was not.

In:  `StepStats` of a step; `DeepStats` of the sampled step after it.
Out: findings that name input, weight, loss, gradient or module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.health.detectors import HealthConfig
from trainer.health.records import DeepStats, Finding, Number, Severity, StepNumbers, StepStats, spelled
from trainer.health.rules_step import Progress, place_of, replay_words, shares, trace_of

FINITE, NO_OVERFLOW = Finding(id="NONFINITE"), Finding(id="NONFINITE", kind="amp")
"""Of nearly every step, so made once."""


@dataclass(slots=True)
class NonFinite:
    """NONFINITE: names the first thing in the order input, weights, loss, gradients."""

    num_in_a_row: int = 0
    bad_step: int = -1
    """The last one that was not finite, or was skipped for another reason than a loss scale being found; -1: none."""
    last_step: int = -1
    """The last one that was seen."""
    explained_step: int = -1
    """The last one whose cause came before the model: a module's bad output is then no news."""

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if math.isfinite(stats.loss) and math.isfinite(stats.grad_norm):
            self.remember(stats)
            yield FINITE
            yield NO_OVERFLOW
            return
        self.num_in_a_row += 1
        self.last_step = stats.step
        limit = config.limit("NONFINITE", "scaler_skips")
        is_calibrating = stats.scaler_scale is not None and math.isfinite(stats.loss) and self.num_in_a_row <= limit
        if not is_calibrating:
            self.bad_step = stats.step
        culprit, layers, advice = _culprit(stats)
        if stats.is_input_finite is False or stats.bad_weights:
            self.explained_step = stats.step
        evidence: dict[str, Number] = {
            "loss": spelled(stats.loss),
            "grad_norm": spelled(stats.grad_norm),
            "lr": spelled(stats.lr),
            "steps in a row": self.num_in_a_row,
            "first bad": culprit,
        }
        if stats.scaler_scale is not None:
            evidence["scale"] = spelled(stats.scaler_scale)
        yield Finding(
            id="NONFINITE",
            kind="amp" if is_calibrating else "",
            severity=Severity.INFO if is_calibrating else Severity.CRITICAL,
            layers=layers,
            evidence=evidence,
            words={
                "culprit": culprit,
                "advice": advice,
                "scale": stats.scaler_scale or 1.0,
                "limit": limit,
                **replay_words(config, stats.step),
            },
            trace=trace_of(stats),
        )

    def remember(self, stats: StepNumbers) -> None:
        """Of a finite step."""
        self.num_in_a_row, self.last_step = 0, stats.step
        if stats.was_skipped:
            self.bad_step = stats.step

    def is_pending(self, num_steps: int) -> bool:
        """A bad step has not been left behind by so many others; known whether or not anything is said of it."""
        return 0 <= self.bad_step and self.last_step - self.bad_step < num_steps

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        """Names the first module, in forward order, whose output is not finite."""
        bad = tuple(layer.name for layer in stats.layers if not layer.is_finite)
        if bad and stats.step != self.explained_step:
            self.bad_step = stats.step
            yield Finding(
                id="NONFINITE",
                severity=Severity.CRITICAL,
                layers=bad[:1],
                evidence={"first bad": f"the output of {bad[0]}", "bad layers": len(bad), "lr": spelled(progress.lr)},
                words={
                    "culprit": f"the output of {bad[0]}",
                    "advice": "See its weights and what feeds it; lower the learning rate, or train in bf16",
                    **replay_words(config, stats.step),
                },
                trace=place_of(stats),
            )


def _culprit(stats: StepStats) -> tuple[str, tuple[str, ...], str]:
    """(what, where, what to do), the earliest cause that was seen."""
    if stats.is_input_finite is False:
        return "the input batch", (), "Look at the samples with a NaN loss and at the transforms that made them"
    if stats.bad_weights:
        where = stats.bad_weights[:3]
        return f"the weight {where[0]}", where, "Go back to a checkpoint before this step; lower the learning rate"
    if not math.isfinite(stats.loss):
        worst = [sample for sample in stats.worst_samples if not math.isfinite(sample.loss)]
        who = f" (sample {worst[0].index} of the batch)" if worst else ""
        return f"the loss{who}", (), "Look for a log or a division near zero in the loss, or activations that overflow"
    where = tuple(name for name, share in shares(stats) if math.isnan(share))
    what = f"the gradient of {where[0]}" if where else "a gradient"
    if stats.scaler_scale is not None:
        return what, where, "Train in bf16, or look for activations near 65504: the loss scale can't fall fast enough"
    return what, where, "Look for the derivative of sqrt, norm or log at zero; lower the learning rate or clip"
