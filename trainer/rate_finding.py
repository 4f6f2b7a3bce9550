"""A learning-rate range test: which rates it tries, where it ends, what its curve suggests.

In:  the lowest and the highest rate; the loss that each step of a training under rising rates gave.
Out: `RangeTest`, the curve; its `Marks`; rates to be compared by cross-validation.
Pure: no model, no tensor; a test drives it with any function from rate to loss.

The test is Smith's (2017, "Cyclical learning rates for training neural networks", section 3.3): a fresh model is
trained while the rate rises, and the loss says from where on it learns and from where on it is thrown out. The rate
rises exponentially and the test ends at four times the best smoothed loss, as in fastai's `lr_find`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

_MEMORY = 1 / 15
"""Share of the test's steps that the moving average remembers: half a decade of the default seven. fastai's decay of
0.98 remembers half of its whole test."""
DIVERGED_FACTOR = 4.0
"""The test ends when the smoothed loss is this many times its best; fastai's number."""
_RISE = 0.25
"""The loss rises again once a quarter of its fall is undone, and by more than noise. What comes later says nothing: a
model that was thrown out falls steeply, too, on its way back. Chosen."""
_MIN_WINDOW = 5
_LADDER = tuple(float(f"{step}e{decade}") for decade in range(-12, 9) for step in (1, 3))
"""Candidates are of these: about half a decade apart, and easily remembered."""

_NEAR = 5.0
"""Rates within this factor are neighbours: a little more than a step of the ladder."""

Ending = Literal["the highest rate", "diverged", "not finite"]
Edge = Literal["rises again", "diverged", "not finite", "lowest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeTest:
    """The curve; one entry a step in each tuple, the loss being that before the step with its rate."""

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    ending: Ending
    maybe_ended_lr: float | None
    """The rate at which it diverged, or the loss was not finite; None: neither happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a curve suggests."""

    maybe_steepest_lr: float | None
    """Where the loss falls fastest over log(rate); None: it never fell by more than its own noise."""
    lowest_lr: float
    """Where the smoothed loss is lowest, before it rises again."""
    edge_lr: float
    """Where it rises again, or where the test ended early; the rate of the lowest loss if neither happened."""
    edge: Edge

    @property
    def below_edge_lr(self) -> float:
        """A decade below the edge, the customary distance."""
        return self.edge_lr / 10.0


def exponential_rates(lowest: float, highest: float, num_steps: int) -> tuple[float, ...]:
    """`num_steps` rates from lowest to highest, both included, each the same factor above the one before."""
    factor = math.log(highest / lowest) / (num_steps - 1)
    return (*(lowest * math.exp(factor * step) for step in range(num_steps - 1)), highest)


class Smoother:
    """A moving average that is not biased towards its start: of equal losses it is that loss from the first on."""

    def __init__(self, num_steps: int) -> None:
        """`num_steps`: of the whole test."""
        self._average = self._weight = 0.0
        self._decay = 1.0 - 1.0 / max(2.0, _MEMORY * num_steps)

    def add(self, loss: float) -> float:
        """The average with this loss in it (Kingma & Ba 2015, section 3, have the correction)."""
        self._average = self._decay * self._average + (1.0 - self._decay) * loss
        self._weight = self._decay * self._weight + (1.0 - self._decay)
        return self._average / self._weight


def run_range_test(lrs: Sequence[float], loss_at: Callable[[float], float]) -> RangeTest:
    """Asks for the losses of rising rates, until one is not finite or the smoothed loss has diverged.

    Diverged: above four times its best and above the loss at the start; the second, since four times a loss near zero
    is nothing yet. A loss that is not finite is left out of the curve.
    """
    smoother, losses, smoothed = Smoother(len(lrs)), list[float](), list[float]()
    ending: Ending = "the highest rate"
    maybe_ended_lr = None
    for lr in lrs:
        loss = loss_at(lr)
        if not math.isfinite(loss):
            ending, maybe_ended_lr = "not finite", lr
            break
        losses.append(loss)
        smoothed.append(smoother.add(loss))
        if smoothed[-1] > max(DIVERGED_FACTOR * min(smoothed), smoothed[0]):
            ending, maybe_ended_lr = "diverged", lr
            break
    return RangeTest(
        lrs=tuple(lrs[: len(losses)]),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        ending=ending,
        maybe_ended_lr=maybe_ended_lr,
    )


def marks_of(test: RangeTest) -> Marks:
    """The curve's marks; it has at least one loss.

    Slopes are least-squares lines through an eighth of the raw losses: a moving average's slope comes late, by half a
    decade with the defaults.
    """
    maybe_turn = _turn(test)
    lowest = int(np.argmin(test.smoothed[:maybe_turn]))
    edge_lr, edge = test.lrs[lowest], "lowest"
    if maybe_turn is not None:
        edge_lr, edge = test.lrs[maybe_turn], "rises again"
    elif test.maybe_ended_lr is not None:
        edge_lr, edge = test.maybe_ended_lr, test.ending
    return Marks(
        maybe_steepest_lr=_steepest(test, lowest),
        lowest_lr=test.lrs[lowest],
        edge_lr=edge_lr,
        edge=cast(Edge, edge),
    )


def _turn(test: RangeTest) -> int | None:
    """The first step at which the smoothed loss has clearly risen from its lowest."""
    # The median difference of neighbours so far: neither the fall nor a blow-up is taken for noise, and the noise of a
    # large loss at the start is not judged by that of a small one at the end. 0.6745 makes it a standard deviation.
    differences = np.abs(np.diff(test.losses)) / (0.6745 * math.sqrt(2.0))
    start, best = float(np.mean(test.losses[:_MIN_WINDOW])), math.inf
    for step, loss in enumerate(test.smoothed):
        best = min(best, loss)
        noise = float(np.median(differences[: max(step, _MIN_WINDOW)])) if len(differences) else 0.0
        if loss - best > max(3.0 * noise, _RISE * (start - best)):
            return step
    return None


def _steepest(test: RangeTest, lowest: int) -> float | None:
    losses, logs = np.array(test.losses), np.log10(test.lrs)
    width = max(_MIN_WINDOW, len(losses) // 8)
    noise = float(np.std(losses[: lowest + 1] - np.array(test.smoothed[: lowest + 1])))
    start = float(losses[:width].mean())
    if lowest + 1 < width or start - test.smoothed[lowest] <= noise:
        return None
    starts = range(lowest + 2 - width)
    slopes = [np.polyfit(logs[first : first + width], losses[first : first + width], 1)[0] for first in starts]
    first = int(np.argmin(slopes))
    return float(10.0 ** logs[first : first + width].mean()) if slopes[first] < 0.0 else None


def candidate_rates(marks: Marks, own_lr: float, num_candidates: int = 4) -> tuple[float, ...]:
    """The rates of the ladder 1, 3, 10, 30, ... nearest to what the curve suggests, and the job's own; rising.

    All of the ladder's lie below the edge. What the curve suggests is the geometric mean of its steepest point and
    the rate a decade below the edge.
    """
    suggested = [marks.below_edge_lr, *([marks.maybe_steepest_lr] if marks.maybe_steepest_lr else [])]
    centre = float(np.mean(np.log10(suggested)))
    below = [lr for lr in _LADDER if lr < marks.edge_lr]
    nearest = sorted(below, key=lambda lr: abs(math.log10(lr) - centre))[:num_candidates]
    is_there = any(math.isclose(lr, own_lr, rel_tol=0.05) for lr in nearest)
    return tuple(sorted([*nearest, *([] if is_there else [own_lr])]))


def further_rate(lrs: Sequence[float], maybe_leading_lr: float | None) -> float | None:
    """The ladder's next rate above or below the leading one, if none near it on that side was tried yet; else None.

    So the leading rate ends up between two that are worse. Without a leading one (all diverged) it is the next below
    the smallest.
    """
    leading = min(lrs) if maybe_leading_lr is None else maybe_leading_lr
    # A rate of the user's or the job's own may lie beside a step of the ladder: that step would tell nothing new.
    above = next((lr for lr in _LADDER if lr > 1.5 * leading), None)
    below = next((lr for lr in reversed(_LADDER) if lr < leading / 1.5), None)
    if maybe_leading_lr is not None and not any(leading < lr <= _NEAR * leading for lr in lrs):
        return above
    return None if any(leading / _NEAR <= lr < leading for lr in lrs) else below
