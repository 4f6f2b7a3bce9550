"""The pictures of a run along the depth of its model: three profiles, three maps of layers by time, a table.

In:  `LayerHistory`.
Out: figures; rows of text for the last sampled step.
One ratio between first and last layer would be blind (a shrinking signal hides in the weights' gradients), so forward,
backward and update are shown side by side, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.figures import COLORS, RED, Axes, Figure, log_y, new_figure
from trainer.health.robust import theil_sen
from trainer.report_layers import BACKWARD, FORWARD, UPDATE, LayerHistory, LayerSample, Map

MAX_NAMED = 28
"""Layers whose names stand beside a picture; of more, every so many."""
MAX_ROWS = 200
"""Layers of the table."""

_MISSING, _ZERO = "#e4e8ec", "#1d2733"


@dataclass(frozen=True, slots=True)
class _Look:
    title: str
    unit: str
    colors: str


_LOOKS = {
    FORWARD: _Look("Forward signal", "std of the output between samples", "viridis"),
    BACKWARD: _Look("Backward signal", "norm of dL/d(output), a sample", "viridis"),
    UPDATE: _Look("Update ratio", "norm of update / norm of weight", "RdBu_r"),
}
_UPDATE_RANGE = (-6.0, 0.0)
"""In decades, about 1e-3, which is right: what is blue hardly moves, what is red is being replaced."""


def profile_figure(layers: LayerHistory, quantity: str) -> Figure:
    """One quantity along depth, at the first, middle and last sampled step."""
    look = _LOOKS[quantity]
    figure, (axes,) = new_figure(3.7, 3.0)
    depths = range(len(layers.names))
    is_drawn = False
    for sample, color in zip(layers.profiles, COLORS, strict=False):
        values = [value if 0.0 < value < math.inf else math.nan for value in sample.quantity(quantity)]
        is_drawn |= any(map(math.isfinite, values))
        label = f"step {sample.step:,}{_slope(values, quantity)}"
        marker = "o" if len(values) <= 40 else None
        axes.plot(depths, values, color=color, label=label, marker=marker, markersize=3)
        for depth in (depth for depth, value in enumerate(sample.quantity(quantity)) if math.isinf(value)):
            axes.plot([depth], [0.97], "x", color=RED, transform=axes.get_xaxis_transform(), markersize=5)
    if is_drawn:
        log_y(axes)
        if quantity == UPDATE:
            axes.axhspan(1e-4, 1e-2, color="#2e8540", alpha=0.09, linewidth=0)
            axes.axhline(1e-3, color="#2e8540", linewidth=0.8, linestyle=(0, (3, 2)))
        axes.legend(loc="best")
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    _room(axes)
    axes.set_title(look.title)
    axes.set_xlabel("layer, from input to output")
    axes.set_ylabel(look.unit)
    axes.set_xlim(-0.5, max(1, len(layers.names)) - 0.5)
    axes.locator_params(axis="x", integer=True)
    return figure


def map_figure(layers: LayerHistory, width_in: float) -> Figure:
    """Layers by steps, one map a quantity; a sampled step's values hold to the right of it."""
    num_layers = len(layers.names)
    height_in = min(4.2, max(1.0, 0.16 * num_layers + 0.35))
    figure, axes = new_figure(width_in, 3 * height_in + 0.5, num_rows=3)
    for each, quantity in zip(axes, (FORWARD, BACKWARD, UPDATE), strict=True):
        _draw_map(figure, each, layers, quantity)
    axes[-1].set_xlabel("step")
    return figure


def layer_rows(sample: LayerSample) -> list[dict[str, str]]:
    """A row a layer, from input to output; at most MAX_ROWS, the first ones."""
    kinds, activations = sample.columns.get("kind", ()), sample.columns.get("activation", ())
    grad_norms = sample.values("grad_norm")
    total = math.fsum(norm * norm for norm in grad_norms if math.isfinite(norm))
    numbers = {
        "std": sample.values("std"),
        "forward": sample.quantity(FORWARD),
        "backward": sample.quantity(BACKWARD),
        "grad_norm": grad_norms,
        "update": sample.quantity(UPDATE),
    }
    shares = {
        "share": [norm * norm / total if total > 0.0 and math.isfinite(norm) else math.nan for norm in grad_norms],
        "never_active": sample.values("never_active"),
        "saturated": sample.values("saturated"),
    }
    return [
        {
            "name": name,
            "kind": str(kinds[at]) if at < len(kinds) else "",
            "activation": str(activations[at]) if at < len(activations) else "",
            **{column: _cell(values[at]) for column, values in numbers.items()},
            **{column: _share(values[at]) for column, values in shares.items()},
        }
        for at, name in enumerate(sample.names[:MAX_ROWS])
    ]


def _draw_map(figure: Figure, axes: Axes, layers: LayerHistory, quantity: str) -> None:
    look, shown = _LOOKS[quantity], layers.maps[quantity]
    extent = (layers.start_step - 0.5, layers.stop_step - 0.5, len(layers.names) - 0.5, -0.5)
    low, high = _UPDATE_RANGE if quantity == UPDATE else _range(shown.log10_LT)
    axes.set_facecolor(_MISSING)
    image = axes.imshow(
        np.ma.masked_invalid(shown.log10_LT),
        aspect="auto",
        extent=extent,
        cmap=look.colors,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    axes.imshow(_overlay(shown), aspect="auto", extent=extent, interpolation="nearest")
    figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03, aspect=12, label="log10")
    axes.set_title(f"{look.title}, log10 of {look.unit}")
    places = range(0, len(layers.names), max(1, -(-len(layers.names) // MAX_NAMED)))
    axes.set_yticks(places, [_label(layers, place) for place in places], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)


def _overlay(shown: Map) -> np.ndarray:
    """RGBA: red where something was not finite, dark where all was zero, else nothing."""
    pixels = np.zeros((*shown.log10_LT.shape, 4), dtype=np.uint8)
    for mask, color in ((shown.is_zero_LT, _ZERO), (shown.is_nonfinite_LT, RED)):
        pixels[mask] = [*(int(color[at : at + 2], 16) for at in (1, 3, 5)), 255]
    return pixels


def _range(log10_LT: np.ndarray) -> tuple[float, float]:
    """At least one decade, so that a flat map looks flat."""
    known = log10_LT[np.isfinite(log10_LT)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    missing = max(0.0, 1.0 - (high - low)) / 2
    return low - missing, high + missing


def _slope(values: Sequence[float], quantity: str) -> str:
    """Decades a layer, as the detectors of vanishing and collapse take them; nothing for a short or update profile."""
    known = [math.log10(value) for value in values if math.isfinite(value)]
    if quantity == UPDATE or len(known) < 4:
        return ""
    slope = theil_sen(known)
    return f": {-slope if quantity == BACKWARD else slope:+.2f}"


def _room(axes: Axes) -> None:
    """At least two decades: half a one, enlarged, would look like a disaster."""
    low, high = axes.get_ylim()
    if axes.get_yscale() != "log" or low <= 0.0:
        return
    missing = max(0.0, 2.0 - math.log10(high / low)) / 2
    axes.set_ylim(low * 10**-missing, high * 10**missing)


def _label(layers: LayerHistory, place: int) -> str:
    """A layer's name; behind a short one, such as the number in a Sequential, what it is."""
    name, kinds = layers.names[place], layers.last.columns.get("kind", ())
    if len(name) <= 8 and place < len(kinds):
        return f"{name} {kinds[place]}"
    return name if len(name) <= 26 else f"...{name[-23:]}"


def _cell(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "not finite" if math.isinf(value) else f"{value:.3g}"


def _share(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:.1f} %"
