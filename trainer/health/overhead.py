"""What watching costs, measured by itself, and how often the costly part may run.

In:  seconds of our own code, and of whole steps.
Out: shares; the interval that keeps them under their bounds.
Numbers in, numbers out. On CUDA own seconds are those of the host: what the device does for us is not in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from trainer.health.robust import Recent

LIGHT_SHARE = 0.01
"""Of step time, for what every measured step costs. ModernBERT#108: up to 1 % is merged without debate."""
DEEP_SHARE = 0.03
MARGIN = 0.8
"""Intervals are chosen for this part of the bounds: medians of a busy machine are off by a tenth and more, and what
torch takes to call 1,000 hooks is not in own seconds (`headrace bench --health` compares both with the outside)."""
LEAST_DEEP_STEPS = 20
"""A deep step more often than this would tell the same twice."""
MOST_DEEP_STEPS = 1000
MOST_LIGHT_STEPS = 100
FIRST_CHOICES = (40, 100)
"""Steps done when `auto` chooses its intervals; then every CHOICE_EVERY."""
CHOICE_EVERY = 500
EARLY_STEPS = frozenset({0, 1, 2, 4, 8, 16, 32})
"""Deep whatever they cost: what is wrong at initialization should be said within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Shares of training time; `print` it."""

    num_steps: int
    num_deep_steps: int
    step_s: float
    """Median time from step to step, without deep ones."""
    light_s: float
    """Median own time in a step that is measured lightly."""
    idle_s: float
    """... in a step whose parameters are not measured: to know that, and to judge its loss and norm where they are
    known."""
    deep_s: float
    """... and in a deep one, hooks included."""
    light_every: int
    deep_every: int
    measured_light_share: float
    """Own seconds in light steps over all seconds so far."""
    measured_deep_share: float
    """As above for deep steps; the early ones weigh heavily in a short run."""
    measured_told_share: float = 0.0
    """As above for telling: files, lines, exporters. Rare and uneven, so there is no median of it."""
    is_light_fixed: bool = False
    """The interval is a person's number; else `auto` chooses it."""
    is_deep_fixed: bool = False

    @property
    def light_share(self) -> float:
        """In the long run, at these intervals: of measured steps and of those between them."""
        own_s = (self.light_s + (self.light_every - 1) * self.idle_s) / self.light_every
        return own_s / self.step_s if self.step_s else 0.0

    @property
    def deep_share(self) -> float:
        return self.deep_s / self.deep_every / self.step_s if self.step_s else 0.0

    def __str__(self) -> str:
        is_early = self.step_s and self.measured_deep_share > self.deep_share
        early = " (the first steps are looked into more often)" if is_early else ""
        so_far = (
            f"So far, in {self.num_steps} steps, it was {self.measured_light_share:.2%} for norms, "
            f"{self.measured_deep_share:.2%} for looks{early} and {self.measured_told_share:.2%} for telling of it"
        )
        if not self.step_s:
            # With looks in every step or two there is none that tells how long a step takes without.
            is_much = self.is_deep_fixed and self.measured_deep_share > DEEP_SHARE
            todo = f". More than the {DEEP_SHARE:.0%} meant for looks: set health.every_steps higher, or to auto"
            unknown = "what gradient health costs in the long run is not known: no step without looks was timed"
            return f"{unknown}. {so_far}{todo if is_much else ''}"
        return (
            f"gradient health costs {self.light_share + self.deep_share:.2%} of the training time in the long run: "
            f"{self.light_share:.2%} for gradient norms ({self.light_s * 1e6:.0f} us, {_each(self.light_every)}) and "
            f"{self.deep_share:.2%} for a look into each layer ({self.deep_s * 1e3:.1f} ms, {_each(self.deep_every)}), "
            f"where a step takes {self.step_s * 1e3:.1f} ms. {so_far}{self._missed()}"
        )

    def _missed(self) -> str:
        """Which bounds do not hold, and what to do about it; an interval can't save what every step costs."""
        missed = ""
        if self.light_share > LIGHT_SHARE:
            bound_s = LIGHT_SHARE * self.step_s - self.idle_s
            if bound_s > 0.0:
                needed = math.ceil((self.light_s - self.idle_s) / bound_s)
                todo = self._what_to_do("light_every_steps", needed, is_fixed=self.is_light_fixed)
            else:
                todo = (
                    f"a step that is not measured costs {self.idle_s * 1e6:.0f} us too, and steps are short, so no "
                    "interval helps: leave it, or switch it off (health.enabled: false in a job)"
                )
            missed += f". More than the {LIGHT_SHARE:.0%} meant for norms: {todo}"
        if self.deep_share > DEEP_SHARE:
            needed = math.ceil(self.deep_s / (DEEP_SHARE * self.step_s))
            todo = self._what_to_do("every_steps", needed, is_fixed=self.is_deep_fixed)
            missed += f". More than the {DEEP_SHARE:.0%} meant for looks into layers: {todo}"
        return missed

    def _what_to_do(self, setting: str, needed: int, *, is_fixed: bool) -> str:
        if is_fixed:
            return f"set health.{setting} to {needed} or more, or to auto"
        longest = MOST_LIGHT_STEPS if setting == "light_every_steps" else MOST_DEEP_STEPS
        if needed > longest:
            return f"once in {longest} steps is the longest that auto takes; set health.{setting} to {needed} or more"
        return f"nothing to do, the interval is auto and widens itself after {_next_choice(self.num_steps)} steps"


@dataclass(slots=True)
class Pace:
    """Chooses the intervals from medians of what was measured. Fixed ones stay as they are."""

    light_every: int = 1
    deep_every: int = 50
    is_light_fixed: bool = False
    is_deep_fixed: bool = False
    num_steps: int = 0
    num_deep_steps: int = 0
    total_s: float = 0.0
    total_light_s: float = 0.0
    total_deep_s: float = 0.0
    total_told_s: float = 0.0
    step_s: Recent = field(default_factory=lambda: Recent(size=51))
    light_s: Recent = field(default_factory=lambda: Recent(size=51))
    idle_s: Recent = field(default_factory=lambda: Recent(size=51))
    deep_s: Recent = field(default_factory=lambda: Recent(size=15))

    def is_deep(self, step: int) -> bool:
        return step in EARLY_STEPS or step % self.deep_every == 0

    def is_light(self, step: int) -> bool:
        return step < 20 or step % self.light_every == 0

    def ended(self, *, step_s: float | None, own_s: float, is_deep: bool, is_light: bool, is_plain: bool) -> None:
        """A step has ended; `step_s` None: nobody knows how long it took. `is_plain`: no hooks were on in that time."""
        self.num_steps += 1
        self.num_deep_steps += is_deep
        self.total_s += step_s or 0.0
        if is_deep:
            self.total_deep_s += own_s
            self.deep_s.add(own_s)
        else:
            self.total_light_s += own_s
            (self.light_s if is_light else self.idle_s).add(own_s)
            if step_s is not None and is_plain:
                self.step_s.add(step_s)
        # Rarely, so that a busy moment of the machine changes nothing; the early deep steps are over by the first.
        if self.num_steps in FIRST_CHOICES or self.num_steps % CHOICE_EVERY == 0:
            self._choose()

    def _choose(self) -> None:
        if not self.step_s.values or not self.deep_s.values or not self.light_s.values:
            return
        step_s = median(self.step_s.values)
        if not self.is_deep_fixed:
            wanted = math.ceil(median(self.deep_s.values) / (MARGIN * DEEP_SHARE * step_s))
            self.deep_every = min(MOST_DEEP_STEPS, max(LEAST_DEEP_STEPS, wanted))
        if not self.is_light_fixed:
            # Steps between measured ones cost something too, which no interval saves: where that alone is too much, the
            # longest one is the best there is, and the summary says that the bound is missed.
            idle_s = _median(self.idle_s)
            bound_s = max(MARGIN * LIGHT_SHARE * step_s - idle_s, 1e-9)
            wanted = math.ceil((median(self.light_s.values) - idle_s) / bound_s)
            self.light_every = min(MOST_LIGHT_STEPS, max(1, wanted))

    def overhead(self) -> Overhead:
        total_s = self.total_s or math.inf
        return Overhead(
            num_steps=self.num_steps,
            num_deep_steps=self.num_deep_steps,
            step_s=_median(self.step_s),
            light_s=_median(self.light_s),
            idle_s=_median(self.idle_s),
            deep_s=_median(self.deep_s),
            light_every=self.light_every,
            deep_every=self.deep_every,
            measured_light_share=self.total_light_s / total_s,
            measured_deep_share=self.total_deep_s / total_s,
            measured_told_share=self.total_told_s / total_s,
            is_light_fixed=self.is_light_fixed,
            is_deep_fixed=self.is_deep_fixed,
        )


def _next_choice(num_steps: int) -> int:
    later = (num_steps // CHOICE_EVERY + 1) * CHOICE_EVERY
    return next((step for step in FIRST_CHOICES if step > num_steps), later)


def _each(every: int) -> str:
    return "each step" if every == 1 else f"once in {every} steps"


def _median(recent: Recent) -> float:
    return median(recent.values) if recent.values else 0.0
