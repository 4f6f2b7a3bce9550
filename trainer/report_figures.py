"""The pictures of a run over its steps: curves, and below them what happened, on one axis.

In:  `History`.
Out: a figure; nothing is read or written.
Every panel has the same steps from left to right, and a mark in one of them stands in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.figures import BLUE, COLORS, FAINT, GREEN, INK, ORANGE, RED, Axes, Figure, log_y, mark_steps, new_figure
from trainer.report_history import History, worst_first
from trainer.report_series import Bins, StepSeries

WIDTH_IN = 10.6
MAX_VERDICT_ROWS = 14
"""Of the timeline, for the worst; the others are in the cards and in health.json."""
MAX_MARKED_SWAPS = 60
"""More upright lines than that would be a grey area."""
SEVERITY_COLORS = {"CRITICAL": RED, "WARN": ORANGE, "INFO": BLUE}

_PANEL_IN = 1.55
_ROW_IN = 0.21
_LOG_FROM = 30.0
"""Greatest over typical value from which an axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class _Panel:
    height_in: float
    draw: Callable[[Axes], None]


def step_figure(history: History, series: StepSeries) -> Figure:
    """Loss, accuracy, gradient norms, clipping, learning rate; recipes, resumes, skipped steps and verdicts."""
    panels = _panels(history, series)
    figure, axes = new_figure(
        WIDTH_IN,
        sum(panel.height_in for panel in panels) + 0.45,
        num_rows=len(panels),
        height_ratios=[panel.height_in for panel in panels],
    )
    for panel, each in zip(panels, axes, strict=True):
        panel.draw(each)
    curves = axes[:-1]
    swaps = [use.entry.step for use in history.recipes[1:] if use.num_steps]
    if len(swaps) <= MAX_MARKED_SWAPS:
        mark_steps(curves, swaps)
    for step in _resumes(series):
        for each in curves:
            each.axvline(step, color=GREEN, linewidth=0.9, linestyle=(0, (1, 1.5)))
    for verdict in _shown(history):
        start, stop = _verdict_span(verdict, series)
        for each in curves if verdict.get("severity") != "INFO" else ():
            each.axvspan(start, stop, color=_color_of(verdict), alpha=0.07, linewidth=0)
    extent = series.extent
    margin = max(0.5, 0.005 * (extent.last_step - extent.first_step))
    # One more than the last step: the last evaluation is of the model after it.
    axes[-1].set_xlim(extent.first_step - margin, extent.last_step + 1 + margin)
    axes[-1].set_xlabel("step")
    return figure


def _panels(history: History, series: StepSeries) -> list[_Panel]:
    bins = series.bins
    panels = [_Panel(_PANEL_IN, lambda axes: _draw_loss(axes, history, series))]
    if history.events.evaluated or not bins["accuracy"].is_empty:
        panels.append(_Panel(_PANEL_IN * 0.8, lambda axes: _draw_accuracy(axes, history, series)))
    if not bins["grad_norm"].is_empty:
        panels.append(_Panel(_PANEL_IN, lambda axes: _draw_norms(axes, series)))
    if series.clipped_share > 0:
        panels.append(_Panel(_PANEL_IN * 0.55, lambda axes: _draw_clipping(axes, series)))
    if not bins["lr"].is_empty:
        panels.append(_Panel(_PANEL_IN * 0.6, lambda axes: _draw_rate(axes, series)))
    rows = _timeline_rows(history, series)
    panels.append(
        _Panel(0.35 + _ROW_IN * len(rows), lambda axes: _draw_timeline(axes, rows, series.extent.last_step + 0.5))
    )
    return panels


def _draw_loss(axes: Axes, history: History, series: StepSeries) -> None:
    bins = series.bins["loss"]
    evaluated = [each for each in history.events.evaluated.values() if math.isfinite(each.loss)]
    _curve(axes, series, bins, BLUE, "training batch")
    if evaluated:
        _dots(axes, [each.step for each in evaluated], [each.loss for each in evaluated], "held out")
    scale = _scale(axes, [bins.greatest, np.array([each.loss for each in evaluated])], bins.mean)
    axes.set_title(f"Loss{scale}")
    _mark_nonfinite(axes, series, bins)
    _legend(axes)


def _draw_accuracy(axes: Axes, history: History, series: StepSeries) -> None:
    _curve(axes, series, series.bins["accuracy"], BLUE, "training batch")
    evaluated = [each for each in history.events.evaluated.values() if math.isfinite(each.accuracy)]
    if evaluated:
        _dots(axes, [each.step for each in evaluated], [each.accuracy for each in evaluated], "held out")
    axes.set_title("Accuracy, share of samples")
    axes.set_ylim(-0.03, 1.03)
    _legend(axes)


def _draw_norms(axes: Axes, series: StepSeries) -> None:
    before, after = series.bins["grad_norm"], series.bins["clipped_norm"]
    _curve(axes, series, before, BLUE, "before clipping" if series.clipped_share > 0 else "norm")
    if series.clipped_share > 0:
        _curve(axes, series, after, ORANGE, "after clipping")
    if (before.greatest[np.isfinite(before.greatest)] > 0).any():
        log_y(axes)
    nothing = "" if series.clipped_share > 0 else ", nothing clipped"
    axes.set_title(f"Gradient norm, all parameters{nothing} (log)")
    _mark_nonfinite(axes, series, before)
    _legend(axes)


def _draw_clipping(axes: Axes, series: StepSeries) -> None:
    """Over at least ten steps a point: a share of one step is a yes or no."""
    clipped = series.bins["clipped"]
    window = max(1, -(-20 // series.steps_per_bin))
    share = _smoothed(clipped.mean, window)
    axes.fill_between(series.steps, 0, share, color=ORANGE, alpha=0.35, linewidth=0)
    axes.plot(series.steps, share, color=ORANGE)
    axes.set_ylim(0, 1.03)
    axes.set_title(f"Share of steps whose gradient was clipped, over {window * series.steps_per_bin} steps")


def _draw_rate(axes: Axes, series: StepSeries) -> None:
    bins = series.bins["lr"]
    axes.plot(series.steps, bins.mean, color=GREEN)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    axes.set_title("Learning rate")


def _legend(axes: Axes) -> None:
    """On the title's line, where no curve is."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, borderaxespad=0.1)


def _curve(axes: Axes, series: StepSeries, bins: Bins, color: str, label: str) -> None:
    """The mean of each bin as a line; its least and greatest value as a band."""
    mean = bins.mean
    if series.steps_per_bin > 1:
        is_known = np.isfinite(mean)
        axes.fill_between(series.steps, bins.least, bins.greatest, where=is_known, color=color, alpha=0.18, linewidth=0)
    # A point between two gaps is no line; as a marker it can be seen.
    is_sparse = np.count_nonzero(np.isfinite(mean)) <= 2
    axes.plot(series.steps, mean, color=color, label=label, linewidth=1.1, marker="o" if is_sparse else None)


def _dots(axes: Axes, steps: Sequence[float], values: Sequence[float], label: str) -> None:
    marker = "o" if len(steps) <= 80 else None
    axes.plot(steps, values, color=INK, label=label, marker=marker, markersize=4, linewidth=1.0)


def _mark_nonfinite(axes: Axes, series: StepSeries, bins: Bins) -> None:
    """Red crosses at the panel's top where a value was NaN or infinite, which no curve can show."""
    places = series.steps[bins.num_nonfinite > 0]
    if len(places):
        label = f"not finite ({int(bins.num_nonfinite.sum()):,})"
        transform = axes.get_xaxis_transform()
        heights = [0.96] * len(places)
        axes.plot(places, heights, "x", color=RED, transform=transform, label=label, markersize=5, clip_on=False)


def _scale(axes: Axes, values: Sequence[np.ndarray], typical: np.ndarray) -> str:
    """A logarithmic axis where a linear one would show the largest values and a flat line; what to call it."""
    known = np.concatenate([each[np.isfinite(each)] for each in values])
    usual = typical[np.isfinite(typical)]
    if not len(known) or not len(usual) or usual.min() <= 0:
        return ""
    if known.max() / max(float(np.median(usual)), 1e-300) < _LOG_FROM:
        axes.set_ylim(bottom=0)
        return ""
    log_y(axes)
    return " (log)"


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` neighbours, of those that are there."""
    is_known = np.isfinite(values)
    kernel = np.ones(min(window, len(values)))
    total = np.convolve(np.where(is_known, values, 0.0), kernel, mode="same")
    count = np.convolve(is_known.astype(float), kernel, mode="same")
    mean = np.full(len(total), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the timeline: bars (start, stop, color, text), or single steps."""

    label: str
    color: str
    bars: tuple[tuple[float, float, str, str], ...] = ()
    points: tuple[float, ...] = ()
    marker: str = "|"
    is_open: bool = False
    """A thin line runs on to the end."""


def _timeline_rows(history: History, series: StepSeries) -> list[_Row]:
    rows = [_Row("recipe", INK, bars=tuple(_recipe_bars(history, series)))] if history.recipes else []
    if resumes := _resumes(series):
        rows.append(_Row("resumed", GREEN, points=tuple(resumes), marker="^"))
    if series.skipped_steps:
        rows.append(_Row("skipped steps", RED, points=tuple(series.skipped_steps), marker="x"))
    for verdict in _shown(history):
        start, stop = _verdict_span(verdict, series)
        name = f"{verdict['id']}/{verdict['kind']}" if verdict.get("kind") else str(verdict["id"])
        text = str(verdict.get("severity", "")) + ("" if verdict.get("resolved_at") is None else ", resolved")
        color = _color_of(verdict)
        is_open = verdict.get("resolved_at") is None
        rows.append(_Row(name, color, bars=((start, stop, _pale(color), text),), is_open=is_open))
    left = len(history.verdicts) - MAX_VERDICT_ROWS
    if left > 0:
        rows.append(_Row(f"and {left} more", FAINT))
    return rows or [_Row("nothing", FAINT)]


def _shown(history: History) -> list[Mapping[str, Any]]:
    """The worst, in the order they were opened in."""
    return sorted(worst_first(history.verdicts)[:MAX_VERDICT_ROWS], key=lambda each: int(each.get("number", 0)))


def _draw_timeline(axes: Axes, rows: Sequence[_Row], end: float) -> None:
    for height, row in enumerate(rows):
        for start, stop, color, text in row.bars:
            if row.is_open:
                axes.barh(height, end - stop, left=stop, height=0.1, color=color, linewidth=0)
            axes.barh(height, stop - start, left=start, height=0.62, color=color, linewidth=0)
            # Clipped to its bar's axes only: a short bar's text runs on to the right of it, and stays readable.
            axes.annotate(
                text, (start, height), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5, color=INK
            )
        if row.points:
            axes.plot(row.points, [height] * len(row.points), row.marker, color=row.color, markersize=5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(row.color)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        "What happened: recipes, interruptions, verdicts (bar: while there was evidence; thin line: still open)"
    )


def _recipe_bars(history: History, series: StepSeries) -> list[tuple[float, float, str, str]]:
    """One color a recipe, so that one that comes back is known again; texts only where there is room for them."""
    extent = series.extent
    span = extent.last_step - extent.first_step + 1
    tints = {digest: _pale(COLORS[number % len(COLORS)]) for number, digest in enumerate(history.chain_order)}
    bars = []
    for use in history.recipes:
        if not use.num_steps:
            continue
        start, stop = use.entry.step - 0.5, use.entry.step + use.num_steps - 0.5
        name = use.entry.file.rpartition("/")[2] or use.entry.recipe[:8]
        bars.append((start, stop, tints[use.entry.recipe], name if use.num_steps > 0.12 * span else ""))
    return bars


def _pale(color: str) -> str:
    """Dark text stands on it."""
    mixed = [round(int(color[at : at + 2], 16) * 0.35 + 255 * 0.65) for at in (1, 3, 5)]
    return "#" + "".join(f"{each:02x}" for each in mixed)


def _resumes(series: StepSeries) -> list[int]:
    """First step of each attempt but the first."""
    return sorted(set(list(series.extent.attempts.values())[1:]))


def _verdict_span(verdict: Mapping[str, Any], series: StepSeries) -> tuple[float, float]:
    """From its first evidence to its end, or to its last evidence so far; at least wide enough to be seen."""
    extent = series.extent
    start = float(verdict.get("first_step", extent.first_step))
    stop = float(verdict.get("resolved_at") or verdict.get("last_step", start))
    return start - 0.5, max(stop + 0.5, start + 0.004 * (extent.last_step - extent.first_step))


def _color_of(verdict: Mapping[str, Any]) -> str:
    return SEVERITY_COLORS.get(str(verdict.get("severity")), FAINT)
