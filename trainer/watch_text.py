"""How gradient health is told: lines for a terminal, and a line of layers.jsonl.

In:  verdicts, what a sampled step has measured, the last norms.
Out: text; plain values.
Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import median
from typing import Any

from trainer.health.overhead import Overhead
from trainer.health.records import Change, DeepStats, Verdict, VerdictEvent, open_verdicts
from trainer.health.robust import quantile
from trainer.health.rules_depth import backward_profile, forward_profiles

_COLUMNS = ("name", "kind", "activation", "stretch", "num_units", "fan_in", "is_normalized")
_NUMBERS = (
    "mean",
    "std",
    "sample_std",
    "delta_rms",
    "weight_norm",
    "grad_norm",
    "update_norm",
    "never_active",
    "saturated",
)
_MIN_LAYERS = 3
"""A slope through two layers is a ratio."""


def event_text(event: VerdictEvent) -> str:
    """A verdict as it is told when it opens, rises or falls; one line when it is resolved."""
    verdict = event.verdict
    if event.change is Change.RESOLVED:
        return f"gradients, step {event.step}: {title(verdict)} is resolved"
    told = "" if event.change is Change.OPENED else f", {event.change.value}"
    return f"gradients, step {event.step}{told}: {verdict}"


def title(verdict: Verdict) -> str:
    """Such as `CRITICAL VANISH_BWD`, or `WARN EXPLODE/spike`."""
    return f"{verdict.severity.name} {verdict.id}{f'/{verdict.kind}' if verdict.kind else ''}"


def end_text(verdicts: Iterable[Verdict]) -> str:
    """The worst open verdict, of equals the first, and how many more there are; `healthy` if there is none."""
    open_ones = sorted(open_verdicts(verdicts), key=lambda one: (-one.severity, one.number))
    if not open_ones:
        return "healthy"
    worst, *others = open_ones
    return str(worst).splitlines()[0] + (f", and {len(others)} more" if others else "")


def line_text(
    num_steps_done: int,
    verdicts: Sequence[Verdict],
    norms: Collection[float],
    were_clipped: Collection[bool],
    deep: DeepStats | None,
    overhead: Overhead,
) -> str:
    """How the gradients are, in one line."""
    open_ones = open_verdicts(verdicts)
    parts = [", ".join(title(one) for one in open_ones) or "no verdict"]
    finite = [norm for norm in norms if math.isfinite(norm)]
    if finite:
        clipped = f", {100 * sum(were_clipped) / len(were_clipped):.0f} % clipped" if any(were_clipped) else ""
        parts.append(f"norm {median(finite):.3g} (90th percentile {quantile(finite, 0.9):.3g}){clipped}")
    if deep is not None:
        parts += _deep_parts(deep)
    cost = overhead.light_share + overhead.deep_share + overhead.measured_told_share
    parts.append(f"watching costs {100 * cost:.1f} %")
    return f"gradients, step {num_steps_done}: {'; '.join(parts)}"


def layers_record(deep: DeepStats) -> dict[str, Any]:
    """The line of layers.jsonl: parallel lists in the order of the forward pass, null where nothing was measured."""
    columns: dict[str, list[Any]] = {name: [getattr(layer, name) for layer in deep.layers] for name in _COLUMNS}
    columns |= {name: [_written(getattr(layer, name)) for layer in deep.layers] for name in _NUMBERS}
    return {"step": deep.step, "was_skipped": deep.was_skipped, "layers": columns}


def _deep_parts(deep: DeepStats) -> list[str]:
    ratios = [layer.update_norm / layer.weight_norm for layer in deep.layers if layer.weight_norm > 0.0]
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    parts = [f"weights move by {median(finite):.1g} a step"] if finite else []
    backward = backward_profile(deep, _MIN_LAYERS)
    if backward.is_long_enough:
        parts.append(f"{-backward.slope:+.2f} decades a layer towards the input")
    forward = forward_profiles(deep, _MIN_LAYERS, lambda layer: layer.sample_std)
    if forward:
        parts.append(f"{max((one.slope for one in forward), key=abs):+.2f} forward")
    return parts


def _written(value: float) -> float | str | None:
    """Four digits; null for what was not measured, a word for infinity."""
    if math.isnan(value):
        return None
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)
