"""The picture of each claim: every pair of runs that it compares.

In:  a judgement, the study's fields, the records of its runs.
Out: a figure of two panels; None where there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from pipeline.study import StudyConfig
from trainer.figures import BLUE, FAINT, GREEN, INK, ORANGE, RED, new_figure
from trainer.study_claims import Judgement, Pair, gets_nothing, has_blown_up, mean_and_spread, measured, pairs_of
from trainer.study_figures import profile_of
from trainer.study_records import Judged, RunRecord

WIDTH_IN, HEIGHT_IN = 9.0, 3.1
NO_GRADIENT = -2.5
"""Where a gradient of exactly zero, which has no slope, is drawn: below every slope that was met."""


def draw_claim(study: StudyConfig, one: Judgement, records: Sequence[RunRecord], chance_loss: float) -> Any:
    """What the claim's kind is about; None if none of its pairs was run."""
    pairs = list(pairs_of(one.claim, records))
    if not pairs:
        return None
    if one.claim.kind == "cures_vanishing":
        return _draw_vanishing(study, one, pairs)
    if one.claim.kind == "cures_explosion":
        return _draw_explosion(study, one, pairs, chance_loss)
    return _draw_generalisation(study, one, pairs)


def _labels(study: StudyConfig, one: Judgement) -> tuple[str, str]:
    claim = one.claim
    return study.label(claim.axis, claim.before), " or ".join(study.label(claim.axis, name) for name in claim.after)


def _draw_vanishing(study: StudyConfig, one: Judgement, pairs: Sequence[Pair]) -> Any:
    claim = one.claim
    before, after = _labels(study, one)
    figure, (left, right) = new_figure(WIDTH_IN, HEIGHT_IN, num_columns=2)
    styles: tuple[dict[str, Any], ...] = ({"linewidth": 3.5, "alpha": 0.35}, {"linewidth": 0.9, "alpha": 0.9})
    # The first ones broad and pale: where nothing was changed, the second ones lie on them.
    for color, runs, name, style in (
        (ORANGE, [pair.before for pair in one.pairs], before, styles[0]),
        (BLUE, [pair.after for pair in one.pairs], after, styles[1]),
    ):
        for number, cell in enumerate({tuple(run.cell.items()): run.cell for run in runs}.values()):
            profile = profile_of([run for run in _distinct(runs) if run.cell == cell], claim.at)
            left.plot(range(1, len(profile) + 1), profile, color=color, label="" if number else name, **style)
    left.set_title(f"gradient along depth, {claim.at} step")
    left.set_xlabel("layer, from input (1) to output")
    left.set_ylabel("log10 rms of gradient")
    if one.pairs:
        left.legend(loc="lower right", frameon=False)

    limit = -study.vanishing_slope
    slopes = [(_slope(pair.before, claim.at), _slope(pair.after, claim.at)) for pair in pairs]
    points = [(x, y) for x, y in slopes if not (math.isnan(x) or math.isnan(y))] or [(0.0, 0.0)]
    low = min(NO_GRADIENT if NO_GRADIENT in {x for point in points for x in point} else -0.3, *map(min, points)) - 0.1
    high = max(0.3, *map(max, points)) + 0.1
    right.axhspan(low, limit, color=RED, alpha=0.07, linewidth=0)
    right.axvspan(low, limit, color=RED, alpha=0.07, linewidth=0)
    right.plot([low, high], [low, high], color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
    colors = [GREEN if x < limit <= y else RED if y < limit else FAINT for x, y in points]
    _scatter(right, points, colors)
    right.set_xlim(low, high)
    right.set_ylim(low, high)
    right.locator_params(nbins=6)
    right.set_title("slope, decades a layer; a point a pair")
    right.set_xlabel(f"with {before}")
    right.set_ylabel(f"with {_shortened(after)}")
    right.text(low + 0.03 * (high - low), limit - 0.02 * (high - low), "vanishing", va="top", color=RED, fontsize=8)
    if low < NO_GRADIENT:
        right.axhline(NO_GRADIENT, color=FAINT, linewidth=0.5)
        right.axvline(NO_GRADIENT, color=FAINT, linewidth=0.5)
        right.text(high, NO_GRADIENT, "no gradient at all ", ha="right", va="bottom", color=FAINT, fontsize=7.5)
    return figure


def _draw_explosion(study: StudyConfig, one: Judgement, pairs: Sequence[Pair], chance_loss: float) -> Any:
    claim = one.claim
    figure, (left, right) = new_figure(WIDTH_IN, HEIGHT_IN, num_columns=2)
    groups = [(claim.before, _distinct([pair.before for pair in pairs]))]
    groups += [(name, [pair.after for pair in pairs if pair.after.cell[claim.axis] == name]) for name in claim.after]
    shares = [fmean(has_blown_up(run, study, chance_loss) for run in runs) for _, runs in groups]
    names = [study.label(claim.axis, name) for name, _ in groups]
    left.bar(names, [100 * share for share in shares], color=[RED, *[BLUE] * (len(groups) - 1)], width=0.6)
    for place, (share, (_, runs)) in enumerate(zip(shares, groups, strict=True)):
        left.text(
            place, 100 * share, f"{round(share * len(runs))} of {len(runs)}", ha="center", va="bottom", fontsize=8
        )
    left.set_ylabel("runs that blow up, %")
    left.set_title("how many")
    left.set_ylim(0, max(5.0, 115 * max(shares)))
    left.grid(visible=False, axis="x")

    finite = [run.last_loss for pair in pairs for run in (pair.before, pair.after) if run.last_loss]
    top = 10 ** math.ceil(math.log10(max([*finite, 1.0])) + 2)
    points = [(pair.before.last_loss or top, pair.after.last_loss or top) for pair in pairs]
    right.set_xscale("log")
    right.set_yscale("log")
    colors = [RED if has_blown_up(pair.before, study, chance_loss) else FAINT for pair in pairs]
    _scatter(right, points, colors)
    ends = [min(min(point) for point in points) / 3, top * 5]
    right.plot(ends, ends, color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
    right.axvline(top, color=RED, linewidth=0.8)
    right.text(top / 2, ends[0], "not finite ", rotation=90, ha="right", va="bottom", color=RED, fontsize=8)
    right.set_title("training loss at the end; a point a pair")
    right.set_xlabel(f"with {_labels(study, one)[0]}")
    right.set_ylabel(f"with clipping {_labels(study, one)[1]}" if claim.axis == "clip" else _labels(study, one)[1])
    return figure


def _draw_generalisation(study: StudyConfig, one: Judgement, pairs: Sequence[Pair]) -> Any:
    before, after = _labels(study, one)
    figure, (left, right) = new_figure(WIDTH_IN, HEIGHT_IN, num_columns=2)
    for color, runs, name in (
        (ORANGE, [pair.before for pair in one.pairs], before),
        (BLUE, [pair.after for pair in one.pairs], after),
    ):
        _curve(left, _distinct(runs), lambda judged: judged.train_accuracy, f"training images, {name}", color, "--")
        _curve(left, _distinct(runs), lambda judged: judged.held_out_accuracy, f"held-out images, {name}", color, "-")
    left.set_ylim(0, 103)
    left.set_xlabel("step")
    left.set_ylabel("accuracy, %")
    left.set_title("mean of the pairs that count; band: over seeds")
    if one.pairs:
        left.legend(loc="lower right", fontsize=7, frameon=False)
    points = [
        (100 * pair.before.judged[-1].held_out_accuracy, 100 * pair.after.judged[-1].held_out_accuracy)
        for pair in one.pairs
    ]
    if points:
        _scatter(right, points, [BLUE] * len(points))
        ends = [min(map(min, points)) - 3, max(map(max, points)) + 3]
        right.plot(ends, ends, color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
        num_better = sum(y > x for x, y in points)
        right.text(ends[0], ends[1], f" {num_better} of {len(points)} better", va="top", color=INK, fontsize=8)
    right.set_title("held-out accuracy at the end, %; a point a pair")
    right.set_xlabel(f"with {before}")
    right.set_ylabel(f"with {after}")
    return figure


def _curve(
    ax: Any, runs: Sequence[RunRecord], read: Callable[[Judged], float], name: str, color: str, style: str
) -> None:
    """The mean over runs at each evaluation, and how far the seeds' means lie apart."""
    whole = [run for run in runs if run.num_skipped == 0]
    if not whole:
        return
    steps = [judged.step for judged in whole[0].judged]
    means, spreads = [], []
    for place in range(len(steps)):
        by_seed = [
            fmean(100 * read(run.judged[place]) for run in whole if run.seed == seed)
            for seed in sorted({run.seed for run in whole})
        ]
        mean, spread = mean_and_spread(by_seed)
        means.append(mean)
        spreads.append(spread if math.isfinite(spread) else 0.0)
    ax.plot(steps, means, color=color, linestyle=style, label=name)
    band = [[mean + sign * spread for mean, spread in zip(means, spreads, strict=True)] for sign in (-1, 1)]
    ax.fill_between(steps, *band, color=color, alpha=0.15, linewidth=0)


def _scatter(ax: Any, points: Sequence[tuple[float, float]], colors: Sequence[str]) -> None:
    ax.scatter([x for x, _ in points], [y for _, y in points], c=colors, s=16, alpha=0.7, linewidths=0, zorder=3)


def _slope(run: RunRecord, at: Any) -> float:
    """NaN where there is none to tell: nothing was measured, or a loss of exactly zero has no gradient anywhere."""
    depth = measured(run, at)
    if depth is None or (depth.backward_slope is None and not gets_nothing(depth)):
        return math.nan
    return NO_GRADIENT if depth.backward_slope is None else max(NO_GRADIENT, depth.backward_slope)


def _distinct(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Each run once: one without the remedy stands in a pair for each kind of it."""
    return list({id(run): run for run in runs}.values())


def _shortened(text: str) -> str:
    return text if len(text) <= 34 else text[:33] + "…"
