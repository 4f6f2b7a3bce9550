"""matplotlib's one home: pictures for pages and files, drawn without a display.

In:  what to draw, by the caller, on axes.
Out: an SVG text that stands in a page, or a PNG file.
Never uses pyplot, whose global state leaks figures and may look for a screen.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes as Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Figure

INK, FAINT, GRID = "#1d2733", "#66727f", "#dde3e8"
BLUE, ORANGE, GREEN, RED, VIOLET, BROWN = "#0b6fb8", "#d9730d", "#2e8540", "#c0392b", "#7a4fb5", "#8c6239"
COLORS = (BLUE, ORANGE, GREEN, VIOLET, BROWN, RED)
"""For the lines of one picture, in this order; told apart also by who does not tell red from green (red comes last)."""

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.fonttype": "none",  # text stays text: it can be searched and copied, and the page is smaller
    "svg.hashsalt": "headrace",  # equal pictures are equal bytes
}


def new_figure(
    width_in: float,
    height_in: float,
    *,
    num_rows: int = 1,
    num_columns: int = 1,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """(figure, its axes row by row), in this project's look; axes of a column share their x.

    `height_ratios`: one number a row; None: all rows are equally high.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        axes = figure.subplots(num_rows, num_columns, sharex="col", squeeze=False, height_ratios=height_ratios)
    return figure, [each for row in axes for each in row]


def log_y(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, those between the decades too where few decades are seen."""
    axes.set_yscale("log", nonpositive="clip")

    def between(value: float, place: float) -> str:
        low, high = axes.get_ylim()
        if low <= 0.0 or high / low > 100.0:
            return ""
        return f"{value:g}" if f"{value:.0e}"[0] in ("25" if high / low > 10.0 else "2346") else ""

    axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.yaxis.set_minor_formatter(between)


def drawing() -> AbstractContextManager[None]:
    """A context in which titles and legends, too, have this project's look: axes take it at creation, those later."""
    return matplotlib.rc_context(_SETTINGS)


def svg_of(figure: Figure, name: str) -> str:
    """The picture as one `<svg>` element for a page; `name`: its own in that page, since ids must not meet."""
    out = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)


def write_png(figure: Figure, path: Path, *, dots_per_inch: int = 110) -> None:
    """The picture as a PNG file."""
    with matplotlib.rc_context(_SETTINGS):
        FigureCanvasAgg(figure)
        figure.savefig(path, format="png", dpi=dots_per_inch)


def mark_steps(axes: Iterable[Axes], steps: Iterable[float], color: str = FAINT) -> None:
    """A thin upright line at each step, on all the axes."""
    for each in axes:
        for step in steps:
            each.axvline(step, color=color, linewidth=0.8, linestyle=(0, (3, 2)))
