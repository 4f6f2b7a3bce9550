"""What the batches themselves tell: INPUT.

In:  per-channel sums of sampled batches, as the model saw them.
Out: findings that name the transform, or the missing one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.health.detectors import HealthConfig
from trainer.health.records import DeepStats, Finding, InputStats, Number, Severity, spelled
from trainer.health.rules_step import Progress

NORMALIZERS = ("Normalize", "ToFloat", "FromFloat")


@dataclass(slots=True)
class Input:
    """INPUT: per-channel mean and deviation over enough samples, then afresh."""

    num_samples: int = 0
    num_values: int = 0
    sums: list[float] = field(default_factory=list)
    square_sums: list[float] = field(default_factory=list)
    minima: list[float] = field(default_factory=list)
    maxima: list[float] = field(default_factory=list)
    num_labels: int = 0
    """Since labels were last judged."""
    label_min: float | None = None
    label_max: float | None = None
    has_two_labels: bool = False
    """The run has had more than one."""

    def see_deep(self, stats: DeepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        inputs = stats.inputs
        if inputs is None or not all(map(math.isfinite, inputs.square_sums)):
            return
        self._add(inputs)
        if self.num_samples >= config.limit("INPUT", "min_samples"):
            yield self._judge(config)
            self.num_samples = self.num_values = 0
            self.sums, self.square_sums, self.minima, self.maxima = [], [], [], []
        # One of two classes may be rare, and then a small window has one label by chance; so may one of many that
        # nobody has counted.
        is_rare_likely = config.num_classes in (0, 2)
        if self.num_labels >= config.limit("INPUT", "min_labels" if is_rare_likely else "min_samples"):
            yield self._judge_labels(is_rare_likely=is_rare_likely)

    def _judge_labels(self, *, is_rare_likely: bool) -> Finding:
        assert self.label_min is not None
        is_one = self.label_min == self.label_max
        self.has_two_labels |= not is_one
        finding = Finding(
            id="INPUT",
            kind="labels",
            severity=Severity.WARN if is_one and not (is_rare_likely and self.has_two_labels) else None,
            evidence={"samples": self.num_labels, "label": self.label_min},
            words={"num_samples": self.num_labels},
        )
        self.num_labels, self.label_min, self.label_max = 0, None, None
        return finding

    def _add(self, inputs: InputStats) -> None:
        if len(self.sums) != len(inputs.sums):
            self.sums, self.square_sums = list(inputs.sums), list(inputs.square_sums)
            self.minima, self.maxima = list(inputs.minima), list(inputs.maxima)
            self.num_samples, self.num_values = inputs.num_samples, inputs.num_values
        else:
            self.num_samples += inputs.num_samples
            self.num_values += inputs.num_values
            self.sums = [old + new for old, new in zip(self.sums, inputs.sums, strict=True)]
            self.square_sums = [old + new for old, new in zip(self.square_sums, inputs.square_sums, strict=True)]
            self.minima = [min(pair) for pair in zip(self.minima, inputs.minima, strict=True)]
            self.maxima = [max(pair) for pair in zip(self.maxima, inputs.maxima, strict=True)]
        if inputs.label_min is not None and inputs.label_max is not None:
            self.num_labels += inputs.num_samples
            self.label_min = min(inputs.label_min, math.inf if self.label_min is None else self.label_min)
            self.label_max = max(inputs.label_max, -math.inf if self.label_max is None else self.label_max)

    def _judge(self, config: HealthConfig) -> Finding:
        means = [total / self.num_values for total in self.sums]
        squares = [total / self.num_values for total in self.square_sums]
        stds = [math.sqrt(max(square - mean**2, 0.0)) for square, mean in zip(squares, means, strict=True)]
        channel = max(range(len(means)), key=lambda one: _distance(means[one], stds[one]))
        mean, std = means[channel], stds[channel]
        is_odd = abs(mean) > config.limit("INPUT", "info_mean") or not (
            config.limit("INPUT", "info_std_low") <= std <= config.limit("INPUT", "info_std_high")
        )
        is_bad = abs(mean) > config.limit("INPUT", "warn_mean") or not (
            config.limit("INPUT", "warn_std_low") <= std <= config.limit("INPUT", "warn_std_high")
        )
        evidence: dict[str, Number] = {
            "mean": spelled(mean),
            "std": spelled(std),
            "min": spelled(self.minima[channel]),
            "max": spelled(self.maxima[channel]),
            "channel": channel,
            "samples": self.num_samples,
        }
        return Finding(
            id="INPUT",
            severity=Severity.WARN if is_bad else Severity.INFO if is_odd else None,
            evidence=evidence,
            words={"advice": self._advice(means, stds, channel, config)},
        )

    def _advice(self, means: list[float], stds: list[float], channel: int, config: HealthConfig) -> str:
        mean, std = means[channel], stds[channel]
        low, high = self.minima[channel], self.maxima[channel]
        present = [name for name in config.transforms if name in NORMALIZERS]
        numbers = f"(measured in channel {channel}: mean {mean:.3g}, std {std:.3g})"
        if std < config.limit("INPUT", "warn_std_low"):
            chain = f" of {', '.join(config.transforms)}" if config.transforms else ""
            return f"the images hardly differ {numbers}: which transform{chain} blanks them?"
        if present:
            return (
                f"{present[-1]} is in the chain, but with numbers of another data set {numbers}: add "
                f"{_listed(means)} of its std to its mean, and multiply its std by {_listed(stds)}"
            )
        if low >= 0.0 and high > 2.0:
            top = 255 if high <= 255.0 else 65535
            return (
                f"values from {low:.3g} to {high:.3g} look like raw {'uint8' if top == 255 else 'uint16'}: end the "
                f"chain in Normalize(mean={_listed(means, top)}, std={_listed(stds, top)}, max_pixel_value={top}) "
                f"{numbers}"
            )
        # albumentations divides by max_pixel_value first, 255 unless it is told.
        return (
            f"no normalisation seen: end the chain in Normalize(mean={_listed(means)}, std={_listed(stds)}, "
            f"max_pixel_value=1) {numbers}"
        )


def _listed(values: list[float], unit: float = 1.0) -> str:
    """As Normalize takes it: one number for one channel, else one for each."""
    each = [f"{value / unit:.3g}" for value in values]
    return each[0] if len(each) == 1 else f"[{', '.join(each)}]"


def _distance(mean: float, std: float) -> float:
    """How far from mean 0, std 1, in a unit that makes channels comparable."""
    return abs(mean) + abs(math.log10(max(std, 1e-12)))
