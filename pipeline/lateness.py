"""Lateness: when a leased slice is late enough to be leased once more.

In:  how long slices of each recipe took from grant to arrival.
Out: the age at which a slice of that recipe is late.
Pure; bounded by the number of recipes that its stream keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container

NUM_REMEMBERED = 64
"""Arrivals a recipe is judged by: few enough to follow a machine that becomes busier."""
MIN_ARRIVALS = 8
"""Before so many, a percentile says nothing."""
UNKNOWN_LATE_S = 1.0
"""Late before enough is known: building a chain for the first time takes a few tenths."""
LATE_FACTOR = 3.0
MIN_LATE_S = 0.1
"""Beats and ticks have a grain of some 20 to 100 ms; less would hedge what has arrived already."""


class Lateness:
    """Late is three times the 95th percentile of the last arrivals under the same recipe."""

    def __init__(self) -> None:
        self._took_s: dict[str, deque[float]] = {}

    def arrived(self, recipe: str, took_s: float) -> None:
        """A slice arrived so long after it was granted."""
        self._took_s.setdefault(recipe, deque(maxlen=NUM_REMEMBERED)).append(took_s)

    def late_s(self, recipe: str) -> float:
        """The age from which a slice of this recipe is late."""
        took_s = sorted(self._took_s.get(recipe, ()))
        if len(took_s) < MIN_ARRIVALS:
            return UNKNOWN_LATE_S
        return max(MIN_LATE_S, LATE_FACTOR * took_s[int(0.95 * len(took_s))])

    def keep(self, recipes: Container[str]) -> None:
        """Forget all others."""
        self._took_s = {recipe: took_s for recipe, took_s in self._took_s.items() if recipe in recipes}
