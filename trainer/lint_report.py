"""The lint's report: theory beside measurement, for the terminal and the journal.

In:  statistics of layers, foretold and measured; findings.
Out: `LintReport`, as lines and as plain values.
Pure.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.health.records import DeepStats, LayerStats, Number, Severity, spelled
from trainer.health.rules_depth import backward_profile, forward_profiles

MIN_LAYERS = 3
"""A slope through two layers is a ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slopes:
    """Decades a layer; NaN: too few layers, or a norm between each."""

    forward: float = math.nan
    """Of what tells samples apart, from the input to the output, in the steepest stretch without norms."""
    backward: float = math.nan
    """Of the gradient's size, towards the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintFinding:
    """One thing that is wrong, who says so, and what to do."""

    id: str
    kind: str
    severity: Severity
    layers: tuple[str, ...]
    evidence: Mapping[str, Number]
    thresholds: Mapping[str, float]
    fix: str
    is_predicted: bool | None
    """None: theory has nothing to say about it."""
    is_measured: bool

    @property
    def title(self) -> str:
        """Such as `CRITICAL VANISH_BWD`."""
        return f"{self.severity.name} {self.id}{f'/{self.kind}' if self.kind else ''}"

    @property
    def agreement(self) -> str:
        """Who says so."""
        if not self.is_measured:
            return "foretold from the weights, but the batch does not show it"
        if self.is_predicted is None:
            return "shown by one batch"
        if self.is_predicted:
            return "foretold from the weights, and shown by one batch"
        return "shown by one batch, though the weights alone do not foretell it"


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """What was foretold and what was measured before the first step."""

    left_out: str = ""
    """Why nothing was looked at; "" if it was."""
    why_not_predicted: str = ""
    predicted: Slopes = Slopes()
    measured: Slopes = Slopes()
    layers: tuple[dict[str, Any], ...] = ()
    """A row a layer, in forward order: predicted and measured std, what tells samples apart, size of the gradient."""
    num_layers: int = 0
    first_loss: float = math.nan
    guess: float = math.nan
    """ln C, the loss of a guess; NaN: classes not known."""
    grad_norm: float = math.nan
    findings: tuple[LintFinding, ...] = ()
    """Worst first."""
    overrides: tuple[str, ...] = ()
    """For `--set`: what settings can do about it."""

    @property
    def severity(self) -> Severity | None:
        """The worst finding's; None: nothing was found."""
        return max((one.severity for one in self.findings), default=None)

    @property
    def is_fine(self) -> bool:
        """Nothing worth a warning."""
        return not self.warnings

    @property
    def warnings(self) -> tuple[LintFinding, ...]:
        """WARN and CRITICAL."""
        return tuple(one for one in self.findings if one.severity >= Severity.WARN)

    def text(self, *, has_try_fix: bool = False) -> str:
        """One line if all is well, else a paragraph a finding; `has_try_fix`: `headrace train` is what runs."""
        if self.left_out:
            return f"lint: left out ({self.left_out})"
        if self.is_fine:
            return f"lint: fine; {self._profile_text()}"
        names = ", ".join(one.title for one in self.warnings)
        lines = [f"lint: before the first step, {names}; {self._profile_text()}"]
        lines += self.warning_lines()
        if self.overrides:
            hint = "; the same command with --try-fix compares both" if has_try_fix else ""
            lines.append(f"  as settings: {set_options(self.overrides)}{hint}")
        return "\n".join(lines)

    def warning_lines(self) -> list[str]:
        """Three lines a warning: what and where, its evidence, its fix."""
        lines = []
        for finding in self.warnings:
            numbers = ", ".join(f"{key} {_short(value)}" for key, value in finding.evidence.items())
            where = f" in {_listed(finding.layers)}" if finding.layers else ""
            lines += [
                f"  {finding.title}{where}: {finding.agreement}",
                f"    evidence: {numbers}",
                f"    fix:      {finding.fix}",
            ]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON without NaN or infinity."""
        return {
            "left_out": self.left_out,
            "severity": self.severity.name if self.severity is not None else "",
            "why_not_predicted": self.why_not_predicted,
            "predicted": {"forward": spelled(self.predicted.forward), "backward": spelled(self.predicted.backward)},
            "measured": {"forward": spelled(self.measured.forward), "backward": spelled(self.measured.backward)},
            "first_loss": spelled(self.first_loss),
            "guess": spelled(self.guess),
            "grad_norm": spelled(self.grad_norm),
            "findings": [
                {
                    "id": one.id,
                    "kind": one.kind,
                    "severity": one.severity.name,
                    "layers": list(one.layers),
                    "evidence": dict(one.evidence),
                    "thresholds": dict(one.thresholds),
                    "fix": one.fix,
                    "is_predicted": one.is_predicted,
                    "is_measured": one.is_measured,
                }
                for one in self.findings
            ],
            "overrides": list(self.overrides),
            "layers": [dict(row) for row in self.layers],
        }

    def _profile_text(self) -> str:
        parts = [f"{self.num_layers} layers"]
        for name, found, expected in (
            ("forward", self.measured.forward, self.predicted.forward),
            ("backward", self.measured.backward, self.predicted.backward),
        ):
            if math.isfinite(found):
                foretold = f" (foretold {expected:+.2f})" if math.isfinite(expected) else ""
                parts.append(f"{name} {found:+.2f} decades a layer{foretold}")
        if math.isfinite(self.guess):
            parts.append(f"first loss {self.first_loss:.3g}, a guess {self.guess:.3g}")
        return ", ".join(parts)


def set_options(overrides: Sequence[str]) -> str:
    """As they can be pasted into a shell."""
    return shlex.join([part for one in overrides for part in ("--set", one)])


def slopes_of(deep: DeepStats | None) -> Slopes:
    """Both profiles' slopes, by the estimators that the detectors use."""
    if deep is None:
        return Slopes()
    backward = backward_profile(deep, MIN_LAYERS)
    forward = forward_profiles(deep, MIN_LAYERS, lambda layer: layer.sample_std)
    return Slopes(
        forward=max((one.slope for one in forward), key=abs, default=math.nan),
        backward=-backward.slope if backward.is_long_enough else math.nan,
    )


def profile_rows(predicted: DeepStats | None, measured: DeepStats) -> tuple[dict[str, Any], ...]:
    """A row a measured layer; "none" where theory says nothing. Gradients in shares of the head's."""
    expected = {layer.name: layer for layer in predicted.layers} if predicted is not None else {}
    return tuple(
        {
            "name": layer.name,
            "kind": layer.kind,
            "activation": layer.activation,
            "is_normalized": layer.is_normalized,
            "fan_in": layer.fan_in,
            "weight_rms": spelled(layer.weight_rms),
            "std": spelled(layer.std),
            "sample_std": spelled(layer.sample_std),
            "delta": spelled(_delta(layer, measured.layers[-1])),
            "predicted_std": spelled(expected[layer.name].std if layer.name in expected else None),
            "predicted_sample_std": spelled(expected[layer.name].sample_std if layer.name in expected else None),
            "predicted_delta": spelled(expected[layer.name].delta_rms if layer.name in expected else None),
        }
        for layer in measured.layers
    )


def _delta(layer: LayerStats, head: LayerStats) -> float:
    whole = head.delta_rms * math.sqrt(head.num_units)
    return layer.delta_rms * math.sqrt(layer.num_units) / whole if whole > 0.0 else math.nan


def _short(value: Number) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)})"
