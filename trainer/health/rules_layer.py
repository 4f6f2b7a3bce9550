"""What single layers and parameters tell: UPDATE_RATIO, ADAM_FLOOR, DEAD, SATURATED, FROZEN, SYMMETRY, fp16 range.

In:  `DeepStats` (and, for FROZEN, the gradient norms of measured steps), the run's `Progress`.
Out: findings; one for a detector and kind, naming all layers that show it and the worst one's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.health.detectors import HealthConfig
from trainer.health.fixes import init_advice
from trainer.health.records import DeepStats, Finding, LayerStats, Number, ParameterStats, Severity, StepStats, spelled
from trainer.health.rules_step import Progress, place_of, rate_text, replay_words

GOOD_RATIO = 1e-3
"""cs231n: update over weight, a step."""
LARGEST_FACTOR = 10.0
"""Of the learning rate in one try: a ratio far below names no rate, it says that something else is wrong. Chosen."""
MOST_CLIPPED = 0.1
"""Below it the clip threshold, not the learning rate, makes the update small: a habit of 1.0 leaves a third or more."""


@dataclass(slots=True)
class UpdateRatio:
    """UPDATE_RATIO on matrices; what began at zero or nearly so has no scale to compare with, nor have tokens and
    positions."""

    began_at_zero: dict[str, bool] = field(default_factory=dict)
    """Or so far below the scale that keeps a signal's size that it is meant to grow, as a policy's head."""
    last_lr: float | None = None
    """At the last sample: while the rate climbs, a schedule has begun low on purpose."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        # The scale of a weight before a norm layer cancels: a large update makes it longer, so the next is smaller.
        normalized = {layer.name for layer in stats.layers if layer.is_normalized}
        containers = _containers(stats.parameters)
        ratios: dict[str, float] = {}
        for parameter in stats.parameters:
            if parameter.num_dims < 2 or parameter.is_embedding or math.isnan(parameter.weight_norm):
                continue
            if parameter.layer in containers and not parameter.name.endswith("weight"):
                continue
            if parameter.name not in self.began_at_zero:
                self.began_at_zero[parameter.name] = _began_small(parameter, config)
            if parameter.layer in normalized:
                continue
            is_moving = parameter.is_trainable and parameter.is_in_optimizer and parameter.is_used
            if is_moving and not self.began_at_zero[parameter.name] and parameter.weight_norm > 0.0:
                ratios[parameter.name] = parameter.update_norm / parameter.weight_norm
        ratios = {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}
        if stats.was_skipped or not ratios:
            return
        yield self._large(ratios, progress, config)
        yield self._small(ratios, progress, config)
        self.last_lr = progress.lr

    def _large(self, ratios: dict[str, float], progress: Progress, config: HealthConfig) -> Finding:
        over = _over(ratios, config.limit("UPDATE_RATIO", "warn_large"))
        worst = max(ratios.values())
        severity = None
        if over:
            is_critical = worst > config.limit("UPDATE_RATIO", "critical_large")
            severity = Severity.CRITICAL if is_critical else Severity.WARN
        return _ratio_finding("large", severity, tuple(over), worst, progress, config)

    def _small(self, ratios: dict[str, float], progress: Progress, config: HealthConfig) -> Finding:
        limit = config.limit("UPDATE_RATIO", "warn_small")
        # Exactly zero is FROZEN's business.
        under = {name: ratio for name, ratio in ratios.items() if 0.0 < ratio < limit}
        largest_lr = max(progress.peak_lr, progress.base_lr, config.base_lr)
        is_climbing = self.last_lr is not None and progress.lr > self.last_lr
        is_meant = is_climbing or progress.lr < config.limit("UPDATE_RATIO", "lr_share") * largest_lr
        is_done = progress.has_learned(config.limit("UPDATE_RATIO", "loss_share"))
        is_most = len(under) >= config.limit("UPDATE_RATIO", "small_share") * len(ratios)
        worst = min(under.values(), default=0.0)
        severity = None
        if under and is_most and not is_meant and not is_done:
            is_critical = worst < config.limit("UPDATE_RATIO", "critical_small")
            severity = Severity.CRITICAL if is_critical else Severity.WARN
        return _ratio_finding("small", severity, tuple(under), worst, progress, config)


def _began_small(parameter: ParameterStats, config: HealthConfig) -> bool:
    """By its first sample, measured after the update."""
    # A weight that is as long as its first step was zero before it.
    if parameter.weight_norm == 0.0 or parameter.update_norm >= 0.999 * parameter.weight_norm:
        return True
    # At most so long was an average row before; of length 1 it keeps the size of a signal without an activation.
    longest = (parameter.weight_norm + parameter.update_norm) / math.sqrt(parameter.num_rows)
    return longest < config.limit("UPDATE_RATIO", "small_start")


def _containers(parameters: tuple[ParameterStats, ...]) -> set[str]:
    """Modules with parameters of their own beside those of children: tokens, positions and scales stand there, which
    are added or multiplied, not fed through, and begin at any scale; an attention's projections too, named so."""
    owners = {one.layer for one in parameters}
    above = {owner[:place] for owner in owners for place, letter in enumerate(owner) if letter == "."}
    return above | ({""} if len(owners) > 1 else set())


def _over(values: dict[str, float], limit: float) -> dict[str, float]:
    return {name: value for name, value in sorted(values.items(), key=lambda pair: -pair[1]) if value > limit}


def _ratio_finding(
    kind: str,
    severity: Severity | None,
    layers: tuple[str, ...],
    worst: float,
    progress: Progress,
    config: HealthConfig,
) -> Finding:
    factor = GOOD_RATIO / worst if worst > 0.0 else 1.0
    is_clipped = kind == "small" and progress.clip_factor < MOST_CLIPPED
    rate = rate_text(min(factor, LARGEST_FACTOR), progress, config)
    again = ", again if this comes back," if factor > LARGEST_FACTOR else ","
    multiply = (
        f"multiply {rate}{again} or look for what swallows the gradient: a clip threshold, a loss scale, a rate of "
        "zero for this group, the depth profiles"
    )
    clip = (
        f"clipping leaves {progress.clip_factor:.1g} of the gradient: set its threshold to {progress.p90:.3g} (the "
        "90th percentile of late) before you touch the learning rate"
    )
    return Finding(
        id="UPDATE_RATIO",
        kind=kind,
        severity=severity,
        layers=layers,
        evidence={"update/weight": spelled(worst), "lr": spelled(progress.lr)},
        words={"rate": rate, "advice": clip if is_clipped else multiply},
    )


@dataclass(slots=True)
class AdamFloor:
    """ADAM_FLOOR: a tiny gradient is not vanishing under Adam until sqrt(v_hat) comes near eps."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        known = {
            one.name: one.adam_root_v / one.adam_eps
            for one in stats.parameters
            if one.num_dims >= 2 and one.adam_eps > 0.0 and math.isfinite(one.adam_root_v) and one.adam_root_v > 0.0
        }
        if not known:
            return
        limit = config.limit("ADAM_FLOOR", "factor")
        under = {name: ratio for name, ratio in known.items() if ratio < limit}
        severity = None
        if len(under) >= config.limit("ADAM_FLOOR", "share") * len(known):
            severity = Severity.WARN
            if min(under.values()) < config.limit("ADAM_FLOOR", "critical_factor"):
                severity = Severity.CRITICAL
            if progress.has_learned(config.limit("ADAM_FLOOR", "loss_share")):
                severity = Severity.INFO
        lowest = min(known, key=known.__getitem__)
        eps = next(one.adam_eps for one in stats.parameters if one.name == lowest)
        root_v = known[lowest] * eps
        yield Finding(
            id="ADAM_FLOOR",
            severity=severity,
            layers=tuple(under),
            evidence={"sqrt(v_hat)": spelled(root_v), "eps": spelled(eps), "ratio": spelled(known[lowest])},
            words={"root_v": root_v, "eps": eps, "new_eps": root_v / 100, "loss_factor": limit / known[lowest]},
        )


@dataclass(slots=True)
class Dead:
    """DEAD: only windows with enough values a unit are judged, against the layer's own beginning."""

    at_start: dict[str, float] = field(default_factory=dict)
    """Layer -> the share that had not fired once when its first window was full."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        shares: dict[str, float] = {}
        found: dict[str, float] = {}
        most = config.limit("DEAD", "most_at_start")
        for layer in stats.layers:
            # A NaN is not above zero either, but that is NONFINITE's business.
            if math.isnan(layer.never_active) or not layer.is_finite:
                continue
            if layer.num_observations >= config.limit("DEAD", "min_observations"):
                start = min(self.at_start.setdefault(layer.name, layer.never_active), most)
                shares[layer.name] = layer.never_active
                is_more = layer.never_active > start + config.limit("DEAD", "above_start")
                if is_more and layer.never_active > config.limit("DEAD", "warn"):
                    found[layer.name] = layer.never_active
            elif _is_dead_early(layer, config):
                shares[layer.name] = found[layer.name] = layer.never_active
        if not shares:
            return
        worst = max(found or shares, key=lambda name: shares[name])
        severity = None
        if found:
            severity = Severity.CRITICAL if found[worst] > config.limit("DEAD", "critical") else Severity.WARN
        layer = next(one for one in stats.layers if one.name == worst)
        # Where the first window isn't full yet, what is silent in it has never fired.
        start = self.at_start.get(worst, shares[worst])
        yield Finding(
            id="DEAD",
            severity=severity,
            layers=tuple(found),
            evidence={
                "dead units": spelled(shares[worst]),
                "at start": spelled(start),
                "values a unit": layer.num_observations,
            },
            words={"advice": _revive(layer, start, shares[worst], progress, config)},
        )


def _revive(layer: LayerStats, start: float, share: float, progress: Progress, config: HealthConfig) -> str:
    """By whether most of what is dead was so from the start; then nothing has died of the rate."""
    if start > share / 2:
        init = init_advice("ReLU", layer.fan_in)
        return f"replace ReLU by LeakyReLU(0.01), {init}, biases zero; see that the input has mean 0, std 1"
    return (
        "these units fired at the start and died in training, most often of too large steps: see what came before, and "
        "take the learning rate that an earlier verdict names; where none does, multiply "
        f"{rate_text(0.1, progress, config)}. Dead units do not come back: begin again with it, or go back to before"
    )


def _is_dead_early(layer: LayerStats, config: HealthConfig) -> bool:
    has_enough = layer.num_observations >= config.limit("DEAD", "min_early")
    return has_enough and layer.never_active > config.limit("DEAD", "early")


@dataclass(slots=True)
class Saturated:
    """SATURATED: sigmoid and tanh by their derivative, not by their output."""

    at_start: dict[str, float] = field(default_factory=dict)
    """Layer -> its share when first seen: what was not there then, training has brought about."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        known = {layer.name: layer for layer in stats.layers if not math.isnan(layer.saturated)}
        if not known:
            return
        for name, layer in known.items():
            self.at_start.setdefault(name, layer.saturated)
        over = _over({name: layer.saturated for name, layer in known.items()}, config.limit("SATURATED", "warn"))
        worst: LayerStats = known[max(known, key=lambda name: known[name].saturated)]
        severity = None
        if over:
            is_critical = worst.saturated > config.limit("SATURATED", "critical")
            severity = Severity.CRITICAL if is_critical else Severity.WARN
        yield Finding(
            id="SATURATED",
            severity=severity,
            layers=tuple(over),
            evidence={
                "saturated": spelled(worst.saturated),
                "at start": spelled(self.at_start[worst.name]),
                "std": spelled(worst.std),
                "mean": spelled(worst.mean),
            },
            words={"activation": worst.activation, "remedy": self._remedy(worst, progress, config)},
        )

    def _remedy(self, worst: LayerStats, progress: Progress, config: HealthConfig) -> str:
        if self.at_start[worst.name] <= config.limit("SATURATED", "warn"):
            return f"multiply {rate_text(0.1, progress, config)}: the weights began well"
        shrink = min(1.0, 1.0 / worst.std) if worst.std > 0.0 else 1.0
        return f"shrink the initial weights by {shrink:.2g} ({init_advice('Tanh', worst.fan_in)})"


@dataclass(slots=True)
class Fp16Range:
    """EXPLODE/fp16: scaled gradients near the end of float16."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if stats.scaler_scale is None:
            return
        limit = config.limit("EXPLODE", "fp16_max")
        scaled = {one.name: one.grad_max * stats.scaler_scale for one in stats.parameters if one.grad_max >= 0.0}
        over = _over({name: value for name, value in scaled.items() if math.isfinite(value)}, limit)
        worst = max(over.values(), default=0.0)
        yield Finding(
            id="EXPLODE",
            kind="fp16",
            # The scaler doubles until it overflows, so it comes here on its own: news, not alarm.
            severity=Severity.INFO if over else None,
            layers=tuple(over),
            evidence={"scaled gradient": spelled(worst), "scale": spelled(stats.scaler_scale)},
            words={"scaled": worst, **replay_words(config, stats.step)},
            trace=place_of(stats),
        )


@dataclass(slots=True)
class Frozen:
    """FROZEN: no gradient, a zero one, or nobody to apply it. What the forward pass never used is no news."""

    num_none: dict[str, int] = field(default_factory=dict)
    """Measured steps in a row without a gradient."""
    num_zero: dict[str, int] = field(default_factory=dict)

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        norms = stats.parameter_norms
        if not norms or stats.was_skipped:
            return iter(())
        # The usual step has neither: two scans in C instead of a loop in Python.
        has_none, has_zero = None in norms, 0.0 in norms
        if has_none or self.num_none:
            self.num_none = _counted(self.num_none, stats, None) if has_none else {}
        if has_zero or self.num_zero:
            self.num_zero = _counted(self.num_zero, stats, 0.0) if has_zero else {}
        return iter(())

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        enough = config.limit("FROZEN", "zero_samples")
        used = [one for one in stats.parameters if one.is_used and not one.is_dead_bias]
        trainable = [one for one in used if one.is_trainable]
        missing = tuple(one.name for one in trainable if not one.is_in_optimizer)
        yield _frozen("not in optimizer", Severity.WARN, missing)
        yield _frozen("by request", Severity.INFO, tuple(one.name for one in used if not one.is_trainable))
        for kind, counts in (("no gradient", self.num_none), ("zero gradient", self.num_zero)):
            still = tuple(one for one in trainable if counts.get(one.name, 0) >= enough)
            yield _frozen(
                kind,
                Severity.CRITICAL if len(still) * 2 > len(trainable) else Severity.WARN,
                tuple(one.name for one in still),
                {"num_samples": max((counts[one.name] for one in still), default=0)},
            )


def _counted(counts: dict[str, int], stats: StepStats, value: float | None) -> dict[str, int]:
    pairs = zip(stats.parameters, stats.parameter_norms, strict=True)
    return {name: counts.get(name, 0) + 1 for name, norm in pairs if norm == value}


def _frozen(kind: str, severity: Severity, layers: tuple[str, ...], words: dict[str, Number] | None = None) -> Finding:
    evidence: dict[str, Number] = {"parameters": len(layers), **(words or {})}
    return Finding(
        id="FROZEN",
        kind=kind,
        severity=severity if layers else None,
        layers=layers,
        evidence=evidence,
        words={"init_advice": "a random law"},
    )


@dataclass(slots=True)
class Symmetry:
    """SYMMETRY: a layer whose rows are equal after the first step."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if stats.step < config.limit("SYMMETRY", "first_step"):
            return
        # One number a row is a scale of each channel, which may well begin at one for all.
        seen = [
            one
            for one in stats.parameters
            if one.row_spread >= 0.0 and one.is_trainable and one.is_used and one.numel > one.num_rows
        ]
        if not seen:
            return
        limit = config.limit("SYMMETRY", "row_spread")
        copies: list[ParameterStats] = [one for one in seen if one.row_spread <= limit]
        fans = {layer.name: layer for layer in stats.layers}
        first = fans.get(copies[0].layer) if copies else None
        yield Finding(
            id="SYMMETRY",
            severity=Severity.CRITICAL if copies else None,
            layers=tuple(one.name for one in copies),
            evidence={"difference of rows": spelled(min(one.row_spread for one in seen)), "layers": len(copies)},
            words={"init_advice": init_advice(first.activation if first else "", first.fan_in if first else 0)},
        )
