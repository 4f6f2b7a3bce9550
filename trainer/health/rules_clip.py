"""CLIP: how often gradients are clipped, and how far above the threshold they are.

In:  `StepNumbers` of every step whose norm is known, the run's `Progress`, the configuration.
Out: findings, every `JUDGED_STEPS` steps; `severity` None where it looked and found nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from trainer.health.detectors import HealthConfig
from trainer.health.records import Finding, Number, Severity, StepNumbers, spelled
from trainer.health.robust import Recent, quantile
from trainer.health.rules_step import SMALLEST, Progress

SAME_NORM = 0.01
"""Norms this close are one threshold: a norm estimated from a sample of gradients is off by rounding only."""
JUDGED_STEPS = 50
"""Sorting 500 norms takes longer than all else that a step is judged by, and a rate over so many moves slowly."""


@dataclass(slots=True)
class Clip:
    """CLIP: how often, and how far above the threshold."""

    norms: Recent = field(default_factory=lambda: Recent(size=500))
    clipped: Recent = field(default_factory=lambda: Recent(size=500))
    steps: Recent = field(default_factory=lambda: Recent(size=500))
    """Of these norms."""
    began: int = -1
    """The first of all of them; -1: none yet."""
    next_step: int = 0
    """To be judged."""
    bound: float | None = None
    """The last threshold known."""
    after: Recent = field(default_factory=lambda: Recent(size=5))
    """Norms after clipping of the last clipped steps, where nobody says what the threshold is."""

    def see_step(self, stats: StepNumbers, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if not math.isfinite(stats.grad_norm) or stats.was_skipped or stats.clipped_norm is None:
            return
        if stats.clip_threshold is not None:
            self.bound = stats.clip_threshold
        elif stats.was_clipped and stats.clipped_norm:
            self.bound = self._bound_of(stats.clipped_norm)
        self.began = stats.step if self.began < 0 else self.began
        self.norms.add(stats.grad_norm)
        self.clipped.add(float(stats.was_clipped))
        self.steps.add(float(stats.step))
        num_steps = stats.step - self.began + 1
        if self.bound is None or num_steps < config.limit("CLIP", "min_early") or stats.step < self.next_step:
            return
        self.next_step = stats.step + JUDGED_STEPS
        num_steps = min(num_steps, int(config.limit("CLIP", "window")))
        yield from self._judged(stats, num_steps, self.bound, progress, config)

    def _judged(
        self, stats: StepNumbers, num_steps: int, bound: float, progress: Progress, config: HealthConfig
    ) -> Iterator[Finding]:
        first = bisect_right(self.steps.values, stats.step - num_steps)
        norms, clipped = sorted(self.norms.values[first:]), self.clipped.values[first:]
        rate, bound = sum(clipped) / len(clipped), max(bound, SMALLEST)
        overshoot = median(norms) / bound
        is_enough = num_steps >= config.limit("CLIP", "min_steps")
        is_frequent = is_enough and rate > config.limit("CLIP", "warn_rate")
        is_early = rate > config.limit("CLIP", "early_rate") and overshoot > config.limit("CLIP", "early_overshoot")
        is_harmful = not progress.has_learned(config.limit("CLIP", "loss_share"))
        is_aggressive = is_early or (is_frequent and is_harmful and overshoot > config.limit("CLIP", "warn_overshoot"))
        evidence: dict[str, Number] = {
            "rate": spelled(rate),
            "median before": spelled(median(norms)),
            "threshold": spelled(bound),
            "steps": num_steps,
        }
        words: dict[str, Number] = {
            "p90": quantile(norms, 0.9),
            "threshold": bound,
            "num_steps": num_steps,
        }
        severity = Severity.WARN if is_aggressive else Severity.INFO if is_frequent else None
        yield Finding(id="CLIP", kind="aggressive", severity=severity, evidence=evidence, words=words)
        is_idle = is_enough and rate == 0.0 and bound > config.limit("CLIP", "idle_factor") * quantile(norms, 0.99)
        yield Finding(
            id="CLIP", kind="idle", severity=Severity.INFO if is_idle else None, evidence=evidence, words=words
        )

    def _bound_of(self, clipped_norm: float) -> float | None:
        """Nobody said, but a norm that is the same after each clipping is the threshold.

        Where it differs, elements or units are bounded, each by itself, as by value or AGC: then every step may well
        be clipped, and there is no threshold of the norm to judge.
        """
        self.after.add(clipped_norm)
        is_same = max(self.after.values) <= (1 + SAME_NORM) * min(self.after.values)
        return clipped_norm if is_same and len(self.after.values) == self.after.size else None
