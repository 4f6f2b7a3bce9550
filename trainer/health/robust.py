"""Slopes and running levels that a few wild values don't move.

In:  finite numbers, one at a time or as a list.
Out: slopes, z-scores, quantiles; each running one is a dataclass of plain fields, so that its state is a dict.
Never takes a number that is not finite: callers leave those out, and a test holds that they do no harm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar, get_type_hints

NUM_POINTS = 64
"""A profile of more layers is reduced to medians of so many blocks: pairs grow with the square."""

Kept = TypeVar("Kept")


def theil_sen(values: Sequence[float]) -> float:
    """The median slope over all pairs of (index, value): up to 29 % of the values may be anything (Sen 1968).

    NaN for fewer than two values. Above `NUM_POINTS` values, blocks of neighbours enter as their medians.
    """
    points = _blocks(values) if len(values) > NUM_POINTS else [(float(index), v) for index, v in enumerate(values)]
    slopes = [
        (later - value) / (place - index)
        for position, (index, value) in enumerate(points)
        for place, later in points[position + 1 :]
    ]
    return median(slopes) if slopes else math.nan


def _blocks(values: Sequence[float]) -> list[tuple[float, float]]:
    edges = [round(block * len(values) / NUM_POINTS) for block in range(NUM_POINTS + 1)]
    return [((first + last - 1) / 2, median(values[first:last])) for first, last in pairwise(edges)]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(slots=True)
class Level:
    """Level and spread of a drifting, heavy-tailed series; a spike of any size moves both by a bounded amount.

    An exponential average whose steps are clipped at three spreads (Huber 1964), begun from the exact median and MAD
    of the first `num_first` values. O(1) a value, and its state is a few numbers: a window's exact median is neither.
    """

    rate: float = 0.05
    """Half of the level's memory is 14 values old."""
    floor: float = 0.05
    """Smallest spread believed, in the series' unit."""
    num_first: int = 20
    first: list[float] = field(default_factory=list)
    level: float = 0.0
    spread: float = 0.0
    count: int = 0

    def z(self, value: float) -> float:
        """Spreads above the level; 0 until there are enough values to say."""
        if self.count < self.num_first:
            return 0.0
        return (value - self.level) / max(self.spread, self.floor)

    def add(self, value: float) -> None:
        self.count += 1
        if self.count <= self.num_first:
            self.first.append(value)
            self.level = median(self.first)
            # 1.4826 and 1.2533: from a Gaussian's median and mean absolute deviation to its standard deviation.
            self.spread = 1.4826 * median(abs(old - self.level) for old in self.first)
            if self.count == self.num_first:
                self.first = []
            return
        bound = 3.0 * max(self.spread, self.floor)
        step = max(-bound, min(bound, value - self.level))
        self.level += self.rate * step
        self.spread += self.rate * (1.2533 * abs(step) - self.spread)


@dataclass(slots=True)
class Recent:
    """The last `size` values, oldest first."""

    size: int
    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)
        if len(self.values) > self.size:
            del self.values[0]


def to_state(kept: Any) -> dict[str, Any]:
    """All fields of a dataclass, nested ones too, as a dict of its own."""
    return dataclasses.asdict(kept)


def from_state(kind: type[Kept], state: Mapping[str, Any]) -> Kept:
    """`from_state(type(x), to_state(x)) == x`; a field that is a dataclass is made again from its dict."""
    hints = get_type_hints(kind)
    values = {
        name: from_state(hints[name], value) if dataclasses.is_dataclass(hints[name]) else _copied(value)
        for name, value in state.items()
    }
    return kind(**values)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value
