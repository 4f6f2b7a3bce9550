"""The picture of a learning-rate search: the range test's curve, and the candidates' held-out losses below it.

In:  a range test with its marks, the candidates' scores, the recommendation.
Out: a figure, and the same numbers as plain values for a JSON file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainer.figures import BLUE, FAINT, GREEN, INK, ORANGE, RED, Axes, Figure, drawing, new_figure
from trainer.rate_finding import Marks, RangeTest
from trainer.rate_finding_folds import Recommendation, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """All that a search found."""

    job: str
    own_lr: float
    """The job's own rate."""
    test: RangeTest
    marks: Marks
    scores: tuple[Score, ...]
    maybe_recommendation: Recommendation | None
    why_none: str
    """Why there is no recommendation; "" where there is one."""


def draw(search: Search) -> Figure:
    """Two panels over one axis of rates."""
    figure, (curve, folds) = new_figure(7.6, 5.8, num_rows=2)
    with drawing():
        _draw_curve(curve, search)
        _draw_scores(folds, search)
        folds.set_xscale("log")
        folds.set_xlabel("learning rate")
        if search.maybe_recommendation is not None:
            chosen = search.maybe_recommendation.chosen
            for axes in (curve, folds):
                axes.axvline(chosen.lr, color=ORANGE, linewidth=7, alpha=0.22, zorder=0)
    return figure


def _draw_curve(axes: Axes, search: Search) -> None:
    test, marks = search.test, search.marks
    axes.set_title(f"{search.job}: range test, {len(test.lrs)} steps at a rising rate")
    axes.plot(test.lrs, test.losses, color=FAINT, linewidth=0.7, alpha=0.7, label="loss of a step")
    axes.plot(test.lrs, test.smoothed, color=BLUE, linewidth=1.8, label="smoothed")
    lines = [(marks.maybe_steepest_lr, GREEN, "falls fastest"), (marks.lowest_lr, INK, "lowest")]
    lines += [(marks.edge_lr, RED, marks.edge)] if marks.edge != "lowest" else []
    for maybe_lr, color, label in lines:
        if maybe_lr is not None:
            axes.axvline(maybe_lr, color=color, linewidth=1.0, linestyle=(0, (3, 2)), label=f"{label}: {maybe_lr:.2g}")
    # What a model that is thrown out makes of its loss would press the rest of the curve flat.
    low, start = min(test.smoothed), max(test.smoothed[:5])
    axes.set_ylim(low - 0.15 * (start - low + 1e-9), max(1.6 * start, start + 0.3))
    axes.set_ylabel("training loss")
    axes.legend(loc="upper left", ncols=2)


def _draw_scores(axes: Axes, search: Search) -> None:
    finite = [score for score in search.scores if not score.num_diverged]
    num_folds = len(search.scores[0].losses)
    axes.set_title(f"held-out loss over {num_folds} folds: mean ± standard deviation")
    axes.errorbar(
        [score.lr for score in finite],
        [score.mean_loss for score in finite],
        [score.std_loss for score in finite],
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=3,
        label="candidates",
    )
    if search.maybe_recommendation is not None:
        best = search.maybe_recommendation.best
        axes.axhspan(
            best.mean_loss,
            best.mean_loss + best.standard_error,
            color=GREEN,
            alpha=0.15,
            label="within one standard error of the best",
        )
        axes.plot([], [], color=ORANGE, linewidth=7, alpha=0.3, label=f"recommended: {_lr_of(search)}")
    for score in search.scores:
        if score.num_diverged:
            axes.plot(score.lr, 0.94, "x", color=RED, transform=axes.get_xaxis_transform())
            text = f"diverged in {score.num_diverged}"
            axes.annotate(
                text, (score.lr, 0.94), xycoords=axes.get_xaxis_transform(), xytext=(6, -3), textcoords="offset points"
            )
    axes.set_ylabel("held-out loss")
    axes.legend(loc="best")


def _lr_of(search: Search) -> str:
    assert search.maybe_recommendation is not None
    return f"{search.maybe_recommendation.chosen.lr:g}"


def as_plain(search: Search) -> dict[str, Any]:
    """Plain values; a loss or accuracy of a fold that diverged is None."""
    test, marks, chosen = search.test, search.marks, search.maybe_recommendation
    return {
        "job": search.job,
        "job_lr": search.own_lr,
        "range_test": {
            "lrs": list(test.lrs),
            "losses": list(test.losses),
            "smoothed": list(test.smoothed),
            "ending": test.ending,
            "ended_lr": test.maybe_ended_lr,
            "steepest_lr": marks.maybe_steepest_lr,
            "lowest_lr": marks.lowest_lr,
            "edge": marks.edge,
            "edge_lr": marks.edge_lr,
            "decade_below_edge_lr": marks.below_edge_lr,
        },
        "candidates": [
            {
                "lr": score.lr,
                "losses": [_number(loss) for loss in score.losses],
                "accuracies": [_number(accuracy) for accuracy in score.accuracies],
                "mean_loss": _number(score.mean_loss),
                "std_loss": _number(score.std_loss),
                "num_diverged": score.num_diverged,
            }
            for score in search.scores
        ],
        "recommended_lr": chosen.chosen.lr if chosen else None,
        "reason": chosen.reason if chosen else search.why_none.splitlines()[0],
        "doubts": list(chosen.doubts) if chosen else [],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
