"""The pictures of a study as a whole: profiles along depth, heat maps of its two largest axes.

In:  the study's fields, the records of its runs.
Out: figures (`trainer/figures.py` turns them into SVG or PNG).
Every number in a picture is a record's, or a mean or spread over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.study import StudyConfig
from trainer.figures import COLORS, FAINT, INK, new_figure
from trainer.study_claims import gets_nothing, has_blown_up, mean_and_spread, measured
from trainer.study_records import RunRecord

LINE_COLORS = (*COLORS, INK, FAINT)
NO_NUMBER = "#e9ecef"
"""Behind the cells of a heat map that have words instead."""
STEEP = 1.0
"""Decades a layer at which the heat map's colour is full; a factor of ten a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the whole-study pictures show: two axes, the others at their first setting."""

    lines: str
    """The axis with the most settings: lines of a profile, rows of a heat map."""
    panels: str
    """The one with the most after it."""
    fixed: dict[str, str]


def view_of(study: StudyConfig) -> View | None:
    """None for a study of one axis, which its claims show."""
    axes = sorted(study.axes, key=lambda axis: -len(study.axes[axis]))  # stable: equal ones in the file's order
    if len(axes) < 2:
        return None
    fixed = {axis: next(iter(study.axes[axis])) for axis in study.axes if axis not in axes[:2]}
    return View(lines=axes[0], panels=axes[1], fixed=fixed)


def shown(view: View, records: Sequence[RunRecord], **cell: str) -> list[RunRecord]:
    """The runs of one cell of the view, a seed each."""
    wanted = {**view.fixed, **cell}
    return [run for run in records if all(run.cell[axis] == name for axis, name in wanted.items())]


def profile_of(runs: Iterable[RunRecord], at: Any = "first") -> list[float]:
    """Mean over runs of log10 of the backward signal's rms, layer by layer; NaN where a run has none above zero."""
    depths = [depth for run in runs if (depth := measured(run, at)) is not None]
    return [
        fmean(math.log10(value) if value else math.nan for value in values)
        for values in zip(*(depth.delta_rms for depth in depths), strict=True)
    ]


def draw_profiles(study: StudyConfig, view: View, records: Sequence[RunRecord]) -> Any:
    """A panel for each setting of one axis, a line for each of the other: the gradient on its way to the input."""
    panels, lines = list(study.axes[view.panels]), list(study.axes[view.lines])
    num_columns = 2 if len(panels) > 1 else 1
    num_rows = math.ceil(len(panels) / num_columns)
    figure, axes = new_figure(9.6, 0.5 + 2.6 * num_rows, num_rows=num_rows, num_columns=num_columns)
    profiles = {
        (panel, line): profile_of(shown(view, records, **{view.panels: panel, view.lines: line}))
        for panel in panels
        for line in lines
    }
    finite = [value for profile in profiles.values() for value in profile if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (-1.0, 1.0)
    for ax, panel in zip(axes, panels, strict=False):
        absent = []
        for color, line in zip(_repeated(LINE_COLORS), lines, strict=False):
            profile = profiles[panel, line]
            if not any(map(math.isfinite, profile[:-1])):
                absent.append(study.label(view.lines, line))
            layers = range(1, len(profile) + 1)
            ax.plot(layers, profile, color=color, marker="o", markersize=3, label=study.label(view.lines, line))
        ax.set_title(study.label(view.panels, panel))
        ax.set_ylim(low - 1, high + 1)
        if absent:
            ax.text(0.5, 0.03, f"{', '.join(absent)}: exactly 0", transform=ax.transAxes, color=FAINT, fontsize=8)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[-num_columns:]:
        ax.set_xlabel("layer, from input (1) to output")
    for ax in axes[::num_columns]:
        ax.set_ylabel("log10 rms of gradient")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def draw_heat_maps(study: StudyConfig, view: View, records: Sequence[RunRecord], chance_loss: float) -> Any:
    """Slope of the gradient at the first step, loss and held-out accuracy at the end, for each pair of settings."""
    rows, columns = list(study.axes[view.lines]), list(study.axes[view.panels])
    cells = [[shown(view, records, **{view.lines: row, view.panels: column}) for column in columns] for row in rows]
    figure, axes = new_figure(10.4, 1.1 + 0.42 * len(rows), num_columns=3)

    def blown_up(runs: Sequence[RunRecord]) -> int:
        return sum(has_blown_up(run, study, chance_loss) for run in runs)

    maps: list[tuple[str, str, tuple[float, float], Callable[[list[RunRecord]], tuple[float, str]]]] = [
        ("slope of the gradient, decades a layer", "RdBu_r", (-STEEP, STEEP), _slope),
        ("training loss at the end", "viridis", (-3.0, 1.0), lambda runs: _loss(runs, blown_up(runs))),
        ("held-out accuracy at the end, %", "YlGn", (0.0, 1.0), lambda runs: _accuracy(runs, blown_up(runs))),
    ]
    for number, (ax, (title, colors, limits, read)) in enumerate(zip(axes, maps, strict=True)):
        values = [[read(runs) for runs in row] for row in cells]
        numbers = [[value for value, _ in row] for row in values]
        image: Any = ax.imshow(numbers, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
        ax.set_facecolor(NO_NUMBER)
        for y, row in enumerate(values):
            for x, (value, text) in enumerate(row):
                shade = image.cmap(image.norm(value)) if math.isfinite(value) else (0.9, 0.9, 0.9)
                is_dark = 0.3 * shade[0] + 0.59 * shade[1] + 0.11 * shade[2] < 0.5
                ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color="white" if is_dark else INK)
        ax.set_title(title, fontsize=9)
        ax.set_xticks(range(len(columns)), [study.label(view.panels, column) for column in columns])
        ax.set_yticks(
            range(len(rows)), [study.label(view.lines, row) for row in rows] if number == 0 else [""] * len(rows)
        )
        ax.tick_params(length=0)
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure


def _slope(runs: list[RunRecord]) -> tuple[float, str]:
    depths = [depth for run in runs if (depth := measured(run, "first")) is not None]
    if depths and all(gets_nothing(depth) for depth in depths):
        return math.nan, "no gradient"
    mean, spread = mean_and_spread([depth.backward_slope for depth in depths if depth.backward_slope is not None])
    return mean, _spelled(mean, spread, "+.2f")


def _loss(runs: list[RunRecord], num_blown_up: int) -> tuple[float, str]:
    losses = [run.last_loss for run in runs if run.last_loss is not None]
    if num_blown_up or not losses:
        return math.nan, f"{num_blown_up} of {len(runs)}\nblew up"
    mean, _ = mean_and_spread(losses)
    return math.log10(max(mean, 1e-12)), f"{mean:.2g}"


def _accuracy(runs: list[RunRecord], num_blown_up: int) -> tuple[float, str]:
    if num_blown_up == len(runs):
        return math.nan, "blew up"
    mean, spread = mean_and_spread([run.judged[-1].held_out_accuracy for run in runs])
    return mean, _spelled(100 * mean, 100 * spread, ".0f")


def _spelled(mean: float, spread: float, form: str) -> str:
    if not math.isfinite(mean):
        return "-"
    return f"{mean:{form}}" + (f" ±{spread:{form.lstrip('+')}}" if math.isfinite(spread) else "")


def _repeated(colors: Sequence[str]) -> Iterable[str]:
    while True:
        yield from colors
