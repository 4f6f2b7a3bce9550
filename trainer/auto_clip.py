"""A clipping bound from the norms so far: their percentile over a window.

In:  the job's `clip` section or one of its groups, the finite norms before clipping, one a step.
Out: the bound for the next step; the whole state as plain numbers.
Pure. Never takes in what is not finite: one NaN in such a window would decide every later bound.

After AutoClip (Seetharaman et al. 2020, "AutoClip: Adaptive Gradient Clipping for Source Separation Networks"), with
a bounded window, a warm-up and bounds of its own, and without the step's own norm: a bound that the spike itself has
raised is the wrong one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.job_clip import ClipRule


def percentile_of(ascending: Sequence[float], percentile: float) -> float:
    """The percentile (0 to 100] of sorted numbers, linear between neighbours, as `numpy.percentile` has it."""
    place = (len(ascending) - 1) * percentile / 100.0
    below = math.floor(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


class AutoBound:
    """`bound()` before a step, `observe(norm)` after it, unless it was skipped."""

    def __init__(self, rule: ClipRule) -> None:
        self._rule = rule
        self._norms: deque[float] = deque()
        """Oldest first."""
        self._ascending: list[float] = []

    def bound(self) -> float:
        """Between floor and cap; during the warm-up the cap; infinite where there is neither."""
        cap = self._rule.cap or math.inf
        if len(self._norms) < self._rule.warmup_steps:
            return cap
        return min(cap, max(self._rule.floor, percentile_of(self._ascending, self._rule.percentile)))

    def observe(self, norm: float) -> None:
        """Passed over if it is not finite; else the oldest of a full window makes room for it."""
        if not math.isfinite(norm):
            return
        self._norms.append(norm)
        insort(self._ascending, norm)
        while len(self._norms) > self._rule.window:
            del self._ascending[bisect_left(self._ascending, self._norms.popleft())]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; `load_state_dict` of them gives the same bounds from here on."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A window that has become shorter keeps the newest norms."""
        self._norms.clear()
        self._ascending.clear()
        for norm in state["norms"]:
            self.observe(float(norm))
