"""K-fold cross-validation of learning rates: who is in which fold, and what the folds' scores recommend.

In:  sample ids; the losses and accuracies of one model a rate and fold.
Out: each sample's fold; a rate, and why that one.
Pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a rate did on each held-out fold; a loss of inf means that it diverged there."""

    lr: float
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def num_diverged(self) -> int:
        """Folds without a finite loss."""
        return sum(not math.isfinite(loss) for loss in self.losses)

    @property
    def mean_loss(self) -> float:
        """Over the folds; inf if it diverged in any."""
        return statistics.fmean(self.losses) if not self.num_diverged else math.inf

    @property
    def std_loss(self) -> float:
        """Between folds, with K - 1 in the denominator; NaN where the mean is inf."""
        return statistics.stdev(self.losses) if not self.num_diverged else math.nan

    @property
    def standard_error(self) -> float:
        """Of the mean loss: std / sqrt(K)."""
        return self.std_loss / math.sqrt(len(self.losses))

    @property
    def mean_accuracy(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std_accuracy(self) -> float:
        return statistics.stdev(self.accuracies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A rate, the reason, and what a reader should doubt."""

    chosen: Score
    best: Score
    reason: str
    doubts: tuple[str, ...]


def folds_of(sample_ids_N: NDArray[np.int64], num_folds: int) -> NDArray[np.int64]:
    """Each sample's fold, 0 to num_folds - 1: a function of its id alone, so all its copies are in one fold."""
    mixed = sample_ids_N.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64 (public domain)
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(num_folds)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Rows of the samples in memory: no sample is in both, by its id."""

    trained_rows: NDArray[np.int64]
    judged_rows: NDArray[np.int64]


def split_into_folds(
    trained_ids_N: NDArray[np.int64], judged_ids_M: NDArray[np.int64], num_folds: int
) -> tuple[Fold, ...]:
    """Fold k is judged on the ids of fold k, each once, and trained on all rows of the others."""
    trained, judged = folds_of(trained_ids_N, num_folds), folds_of(judged_ids_M, num_folds)
    is_first = np.zeros(len(judged_ids_M), dtype=bool)
    is_first[np.unique(judged_ids_M, return_index=True)[1]] = True
    return tuple(
        Fold(trained_rows=np.flatnonzero(trained != fold), judged_rows=np.flatnonzero((judged == fold) & is_first))
        for fold in range(num_folds)
    )


def recommend(scores: Sequence[Score], num_classes: int) -> Recommendation | None:
    """The largest rate whose mean loss is within one standard error of the best; None if none is better than guessing.

    The one-standard-error rule (Breiman et al. 1984, "Classification and regression trees", section 3.4.3; Hastie et
    al. 2009, "Elements of statistical learning", section 7.10): the lowest mean is the lowest partly by luck, so what
    the folds can't tell from it counts as equal, and another reason chooses among equals. Here: short trainings
    flatter small rates (Wu et al. 2018, "Understanding short-horizon bias"), and the job's is longer. With few folds
    the standard error itself is rough.

    Rates that diverged in a fold are no choice, and neither are those that did not get below ln K, the loss of
    guessing: a model whose units have all died is there, whatever the rate.
    """
    usable = [score for score in scores if score.mean_loss < math.log(num_classes)]
    if not usable:
        return None
    best = min(usable, key=lambda score: score.mean_loss)
    bound = best.mean_loss + best.standard_error
    chosen = max((score for score in usable if score.mean_loss <= bound), key=lambda score: score.lr)
    if chosen is best:
        reason = (
            f"{chosen.lr:g} has the lowest mean loss, {best.mean_loss:.4g}, and no larger rate is within one standard "
            f"error ({best.standard_error:.2g}) of it"
        )
    else:
        reason = (
            f"{chosen.lr:g} is the largest rate whose mean loss ({chosen.mean_loss:.4g}) is within one standard error "
            f"({best.standard_error:.2g}) of the lowest ({best.mean_loss:.4g}, at {best.lr:g})"
        )
    return Recommendation(chosen=chosen, best=best, reason=reason, doubts=_doubts(scores, chosen))


def why_none(scores: Sequence[Score], num_classes: int) -> str:
    """What to say where nothing is recommended, and how to go on."""
    if all(score.num_diverged for score in scores):
        return "every candidate diverged\n  to go on: give smaller rates with --candidates"
    guess = f"guessing, whose loss is ln {num_classes} = {math.log(num_classes):.3g}"
    return f"no candidate is better than {guess}\n  to go on: train longer with --steps, or give other --candidates"


def leading_rate(scores: Sequence[Score], num_classes: int) -> float | None:
    """The recommended rate; without one that of the lowest mean loss; None if every rate diverged."""
    if (found := recommend(scores, num_classes)) is not None:
        return found.chosen.lr
    finite = [score for score in scores if not score.num_diverged]
    return min(finite, key=lambda score: score.mean_loss).lr if finite else None


def _doubts(scores: Sequence[Score], chosen: Score) -> tuple[str, ...]:
    lrs = [score.lr for score in scores]
    if len(lrs) > 1 and chosen.lr == max(lrs):
        return ("it is the largest rate that was tried: a larger one may be better; try it with --candidates",)
    if len(lrs) > 1 and chosen.lr == min(lrs):
        return ("it is the smallest rate that was tried: a smaller one may be better; try it with --candidates",)
    return ()
