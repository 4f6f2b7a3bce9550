"""What the profiles along depth tell: VANISH_BWD, COLLAPSE_FWD, EXPLODE_FWD, EXPLODE towards the input.

In:  `DeepStats`: layers in forward order.
Out: findings with all three slopes as evidence: forward, backward, gradient over weight.
Never judges by weight gradients alone: dW = a^T delta, and a shrinking `a` hides a shrinking `delta` (notes 0.2).

The backward profile is the norm of delta a sample, not its mean square: under laws that keep the forward signal
(variance gain^2 / fan_in) it is this norm that stays where width or image size changes from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, median_low, mode

from trainer.health.detectors import HealthConfig
from trainer.health.fixes import HOPELESS, init_advice
from trainer.health.records import DeepStats, Finding, LayerStats, Number, Severity, spelled
from trainer.health.robust import theil_sen
from trainer.health.rules_step import Progress, place_of, replay_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A quantity along depth, in decades."""

    layers: tuple[LayerStats, ...]
    decades: tuple[float, ...]
    """log10 of each layer's value."""
    slope: float
    """Decades a layer, from input to output."""
    is_long_enough: bool

    @property
    def change(self) -> float:
        """Decades over the whole profile, by the slope: one odd layer doesn't decide."""
        return self.slope * (len(self.layers) - 1)

    @property
    def rise_over_first(self) -> float:
        """Decades from the largest of the first quarter to the last quarter's median."""
        count = max(1, len(self.layers) // 4)
        return median(self.decades[-count:]) - max(self.decades[:count])


def profile(layers: Sequence[LayerStats], values: Sequence[float], min_layers: float) -> Profile:
    """The slope of log10 over the layers with a positive, finite value."""
    kept = [(layer, value) for layer, value in zip(layers, values, strict=True) if 0.0 < value < math.inf]
    decades = tuple(math.log10(value) for _, value in kept)
    return Profile(
        layers=tuple(layer for layer, _ in kept),
        decades=decades,
        slope=theil_sen(decades),
        is_long_enough=len(kept) >= min_layers,
    )


def backward_profile(stats: DeepStats, min_layers: float) -> Profile:
    values = [layer.delta_rms * math.sqrt(layer.num_units) for layer in stats.layers]
    return profile(stats.layers, values, min_layers)


def forward_profiles(stats: DeepStats, min_layers: float, value: Callable[[LayerStats], float]) -> list[Profile]:
    """One for each stretch without normalisation; heads are left out, their scale is the loss's business."""
    stretches: dict[int, list[LayerStats]] = {}
    for layer in stats.layers[:-1]:
        if not (layer.is_normalized or layer.is_output):
            stretches.setdefault(layer.stretch, []).append(layer)
    found = [profile(layers, [value(layer) for layer in layers], min_layers) for layers in stretches.values()]
    return [one for one in found if one.is_long_enough]


def gradient_profile(stats: DeepStats, min_layers: float) -> Profile:
    values = [layer.grad_norm / layer.weight_norm if layer.weight_norm else 0.0 for layer in stats.layers]
    return profile(stats.layers, values, min_layers)


@dataclass(slots=True)
class Depth:
    """The four detectors that read profiles; what was seen before is in the judge's windows."""

    first_gains: dict[str, float] = field(default_factory=dict)
    """Detector -> the factor a layer that would have kept the signal at the run's first step. A fix of *initial*
    weights goes by these: two steps of Adam make a collapse look milder than what was drawn."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if stats.was_skipped:
            return
        backward = backward_profile(stats, config.limit("VANISH_BWD", "min_layers"))
        # Collapse: what tells samples apart gets lost, whatever biases add. Explosion: everything counts.
        apart = forward_profiles(stats, config.limit("COLLAPSE_FWD", "min_layers"), lambda layer: layer.sample_std)
        forward = forward_profiles(stats, config.limit("EXPLODE_FWD", "min_layers"), lambda layer: layer.std)
        steepest = max(forward, key=lambda one: abs(one.slope), default=None)
        falling = min(apart, key=lambda one: one.slope, default=None)
        slopes: dict[str, Number] = {
            "backward slope": spelled(-backward.slope),
            "forward slope": spelled(steepest.slope) if steepest else "normalised",
            "between samples": spelled(falling.slope) if falling else "normalised",
            "g/w slope": spelled(-gradient_profile(stats, 2).slope),
        }
        if backward.is_long_enough:
            yield self._vanish(backward, slopes, config)
            yield self._explode(stats, backward, slopes, progress, config)
        if falling:
            yield self._collapse(falling, slopes, config, stats.step)
        if steepest:
            yield self._forward_explode(max(forward, key=lambda one: one.slope), slopes, config, stats.step)

    def _vanish(self, backward: Profile, slopes: dict[str, Number], config: HealthConfig) -> Finding:
        # Down towards the input is up in the order of the forward pass.
        squashing = squashing_activations(backward.layers)
        warn_drop = "warn_drop_sigmoid" if squashing else "warn_drop"
        severity = _below(-backward.slope, -backward.change, "VANISH_BWD", config, warn_drop=warn_drop)
        if backward.rise_over_first < config.limit("VANISH_BWD", "first_share") * backward.change:
            severity = None  # it reaches the first layers
        advice = f"replace {' and '.join(squashing)} by ReLU or GELU (a sigmoid's derivative is at most 0.25): "
        return Finding(
            id="VANISH_BWD",
            severity=severity,
            layers=_names(backward),
            evidence={**slopes, "drop": spelled(-backward.change), "layers": len(backward.layers)},
            words={
                "activation_advice": advice if squashing else "",
                "factor": 10**-backward.slope,
                "init_advice": _advice(backward, "ReLU" if squashing else ""),
                "layers": _range(backward),
            },
        )

    def _explode(
        self,
        stats: DeepStats,
        backward: Profile,
        slopes: dict[str, Number],
        progress: Progress,
        config: HealthConfig,
    ) -> Finding:
        rise = -backward.change
        is_steep = -backward.slope > config.limit("EXPLODE", "depth_slope")
        severity = Severity.CRITICAL if is_steep and rise > config.limit("EXPLODE", "depth_rise") else None
        return Finding(
            id="EXPLODE",
            kind="depth",
            severity=severity,
            layers=_names(backward),
            evidence={**slopes, "rise": spelled(rise)},
            words={
                "factor": 10**-backward.slope,
                "init_advice": _advice(backward),
                "at": progress.clip_text(math.inf),
                **replay_words(config, stats.step),
            },
            trace=place_of(stats),
        )

    def _collapse(self, forward: Profile, slopes: dict[str, Number], config: HealthConfig, step: int) -> Finding:
        severity = _below(forward.slope, forward.change, "COLLAPSE_FWD", config)
        return self._forward("COLLAPSE_FWD", forward, severity, slopes, step)

    def _forward_explode(self, forward: Profile, slopes: dict[str, Number], config: HealthConfig, step: int) -> Finding:
        severity = None
        for name, wanted in (("warn", Severity.WARN), ("critical", Severity.CRITICAL)):
            is_steep = forward.slope > config.limit("EXPLODE_FWD", f"{name}_slope")
            if is_steep and forward.change > config.limit("EXPLODE_FWD", f"{name}_rise"):
                severity = wanted
        return self._forward("EXPLODE_FWD", forward, severity, slopes, step)

    def _forward(
        self, name: str, forward: Profile, severity: Severity | None, slopes: dict[str, Number], step: int
    ) -> Finding:
        gain = 10**-forward.slope
        if step == 0:
            self.first_gains[name] = gain
        # What came about later is not in the initial weights: then the present profile is the worse one.
        gain = (min if name == "EXPLODE_FWD" else max)(gain, self.first_gains.get(name, gain))
        return Finding(
            id=name,
            severity=severity,
            layers=_names(forward),
            evidence={
                **slopes,
                "first std": spelled(forward.layers[0].sample_std),
                "last std": spelled(forward.layers[-1].sample_std),
                "change": spelled(forward.change),
            },
            words={"gain": gain, "init_advice": _advice(forward), "layers": _range(forward)},
        )


def _below(
    slope: float, change: float, name: str, config: HealthConfig, *, warn_drop: str = "warn_drop"
) -> Severity | None:
    for prefix, drop, severity in (
        ("critical", "critical_drop", Severity.CRITICAL),
        ("warn", warn_drop, Severity.WARN),
    ):
        if slope < config.limit(name, f"{prefix}_slope") and -change > config.limit(name, drop):
            return severity
    return None


def _names(one: Profile) -> tuple[str, ...]:
    return tuple(layer.name for layer in one.layers)


def _range(one: Profile) -> str:
    return f"{one.layers[0].name} to {one.layers[-1].name}"


def squashing_activations(layers: Sequence[LayerStats]) -> list[str]:
    """Those that no init suits, where they follow at least half of the hidden layers: a gate, or an output that is to
    be a probability, has a sigmoid for good reason, and isn't what a deep net fails of."""
    hidden = [layer.activation for layer in layers[:-1] if not layer.is_output]
    found = [activation for activation in hidden if activation in HOPELESS]
    return sorted(set(found)) if found and 2 * len(found) >= len(hidden) else []


def _advice(one: Profile, activation: str = "") -> str:
    """For the usual layer: the first and last have odd fans, and a bottleneck may be in the middle."""
    fan_in = median_low(layer.fan_in for layer in one.layers)
    return init_advice(activation or mode(layer.activation for layer in one.layers), fan_in)
