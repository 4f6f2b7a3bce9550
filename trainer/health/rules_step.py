"""What every measured step tells: EXPLODE, CLIP, RESUME, LOSS0. (NONFINITE: `rules_nonfinite.py`.)

In:  `StepStats`, the run's `Progress`, the configuration.
Out: findings; `severity` None where a rule looked and found nothing.
Rules are dataclasses of plain fields: what they remember is their state. Only finite values are remembered.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

from trainer.health.detectors import HealthConfig
from trainer.health.records import Finding, Number, Severity, StepStats, spelled
from trainer.health.robust import Level, Recent, quantile

SMALLEST = 1e-38
"""Stands for zero in logarithms; float32 has nothing normal below."""
SAME_NORM = 0.01
"""Norms this close are one threshold: a norm estimated from a sample of gradients is off by rounding only."""


def log10(value: float) -> float:
    return math.log10(max(value, SMALLEST))


@dataclass(slots=True)
class Progress:
    """What several rules ask about the run so far."""

    first_loss: float | None = None
    """None until a finite loss came."""
    loss: Level = field(default_factory=lambda: Level(num_first=5, floor=1e-3))
    peak_lr: float = 0.0
    lr: float = 0.0
    norms: Recent = field(default_factory=lambda: Recent(size=200))
    """Finite global norms before clipping."""
    clip_factor: float = 1.0
    """What clipping left of the last finite norm that was measured on both sides."""

    def see_step(self, stats: StepStats) -> None:
        self.lr = stats.lr
        self.peak_lr = max(self.peak_lr, stats.lr)
        if math.isfinite(stats.loss):
            if self.first_loss is None:
                self.first_loss = stats.loss
            self.loss.add(stats.loss)
        if math.isfinite(stats.grad_norm):
            self.norms.add(stats.grad_norm)
            if stats.clipped_norm is not None and stats.grad_norm > 0.0:
                self.clip_factor = min(1.0, stats.clipped_norm / stats.grad_norm)

    def has_learned(self, share: float) -> bool:
        """The loss is below that share of the first one."""
        return self.first_loss is not None and self.loss.level < share * self.first_loss

    @property
    def p90(self) -> float:
        """90th percentile of the last finite norms; 1 (the customary threshold) before there are any."""
        return quantile(self.norms.values, 0.9) if self.norms.values else 1.0


def replay_words(config: HealthConfig, step: int) -> dict[str, Number]:
    if not config.run:
        return {"replay": ""}
    return {"replay": f"; to see its samples: headrace replay {shlex.quote(config.run)} --step {step} --out sheet.png"}


def trace_of(stats: StepStats) -> dict[str, object]:
    """A bad step's own record: numbers, where its samples came from, and the worst of them."""
    ids = stats.batch.get("sample_ids", ()) if isinstance(stats.batch, Mapping) else ()
    return {
        "step": stats.step,
        "loss": spelled(stats.loss),
        "grad_norm": spelled(stats.grad_norm),
        "lr": stats.lr,
        "scaler_scale": stats.scaler_scale,
        "batch": stats.batch,
        "worst_samples": [
            {"index": one.index, "loss": spelled(one.loss), "id": str(ids[one.index]) if one.index < len(ids) else ""}
            for one in stats.worst_samples
        ],
    }


def shares(stats: StepStats, count: int = 3) -> list[tuple[str, float]]:
    """The parameters with the largest shares of the squared norm; non-finite ones first."""
    norms = [(name, norm) for name, norm in zip(stats.parameters, stats.parameter_norms, strict=False) if norm]
    bad = [(name, math.nan) for name, norm in norms if not math.isfinite(norm)]
    if bad:
        return bad[:count]
    largest = max((norm for _, norm in norms), default=1.0)
    total = sum((norm / largest) ** 2 for _, norm in norms)
    ordered = sorted(norms, key=lambda pair: -pair[1])[:count]
    return [(name, (norm / largest) ** 2 / total) for name, norm in ordered]


@dataclass(slots=True)
class Explode:
    """EXPLODE over time: a spike of one step, and growth over many."""

    log_norm: Level = field(default_factory=lambda: Level(rate=0.05, floor=0.05))
    early_max: float = math.log10(SMALLEST)
    """Largest log10 norm of the run's beginning."""
    first: list[float] = field(default_factory=list)
    """The first five."""
    last: Recent = field(default_factory=lambda: Recent(size=5))
    block: list[float] = field(default_factory=list)
    medians: Recent = field(default_factory=lambda: Recent(size=10))
    """Of blocks of 20 steps."""

    def excess(self, norm: float, config: HealthConfig) -> tuple[float, bool, bool]:
        """(z, is a spike, is above the run's beginning too); pure, so that a monitor can ask before the step."""
        value = log10(norm)
        z = self.log_norm.z(value)
        is_spike = z > config.limit("EXPLODE", "z") and value > self.log_norm.level + math.log10(
            config.limit("EXPLODE", "spike_factor")
        )
        is_high = value > self.early_max + math.log10(config.limit("EXPLODE", "early_factor"))
        return z, is_spike, is_high

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if not math.isfinite(stats.grad_norm):
            return
        value = log10(stats.grad_norm)
        z, is_spike, is_high = self.excess(stats.grad_norm, config)
        growth = self._growth(value)
        is_grown = growth > config.limit("EXPLODE", "growth")
        evidence: dict[str, Number] = {}
        if is_spike or is_grown:
            evidence = {"grad_norm": spelled(stats.grad_norm), "loss": spelled(stats.loss), "lr": spelled(stats.lr)}
        words: dict[str, Number] = {}
        layers: tuple[str, ...] = ()
        if evidence:
            top = shares(stats)
            layers = tuple(name for name, _ in top)
            named = ", ".join(f"{name} {share:.0%}" for name, share in top) or "not measured in this step"
            words = {
                "p90": progress.p90,
                "shares": named,
                "lower_lr": stats.lr / 10,
                **replay_words(config, stats.step),
            }
        if is_spike:
            severity = Severity.WARN if is_high else Severity.INFO
            seen = {**evidence, "z": spelled(z), "level": spelled(10**self.log_norm.level)}
            yield Finding(
                id="EXPLODE",
                kind="spike",
                severity=severity,
                layers=layers,
                evidence=seen,
                words=words,
                trace=trace_of(stats),
            )
        else:
            yield Finding(id="EXPLODE", kind="spike")
        if is_grown:
            seen = {**evidence, "growth": spelled(growth)}
            yield Finding(
                id="EXPLODE",
                kind="growth",
                severity=Severity.CRITICAL,
                layers=layers,
                evidence=seen,
                words=words,
                trace=trace_of(stats),
            )
        else:
            yield Finding(id="EXPLODE", kind="growth")
        self._remember(value, int(config.limit("EXPLODE", "num_early")))

    def _growth(self, value: float) -> float:
        """Decades of the last steps above the lowest block of the last 200, or above the run's start if that is more.

        The start counts because a converged run falls by many decades and may come back up some of them.
        """
        if len(self.last.values) < self.last.size:
            return 0.0
        base = min(self.first)
        if self.medians.values:
            base = max(base, min(self.medians.values))
        return median([*self.last.values[1:], value]) - base

    def _remember(self, value: float, num_early: int) -> None:
        if len(self.first) < self.last.size:
            self.first.append(value)
        if self.log_norm.count < num_early:
            self.early_max = max(self.early_max, value)
        self.log_norm.add(value)
        self.last.add(value)
        self.block.append(value)
        if len(self.block) == 20:
            self.medians.add(median(self.block))
            self.block = []


@dataclass(slots=True)
class Clip:
    """CLIP: how often, and how far above the threshold."""

    norms: Recent = field(default_factory=lambda: Recent(size=500))
    clipped: Recent = field(default_factory=lambda: Recent(size=500))
    bound: float | None = None
    """The last threshold known."""
    after: Recent = field(default_factory=lambda: Recent(size=5))
    """Norms after clipping of the last clipped steps, where nobody says what the threshold is."""

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if not math.isfinite(stats.grad_norm) or stats.was_skipped:
            return
        if stats.clip_threshold is not None:
            self.bound = stats.clip_threshold
        elif stats.was_clipped and stats.clipped_norm:
            self.bound = self._bound_of(stats.clipped_norm)
        elif stats.clipped_norm is None:
            return
        self.norms.add(stats.grad_norm)
        self.clipped.add(float(stats.was_clipped))
        count = len(self.norms.values)
        if self.bound is None or count < config.limit("CLIP", "min_early"):
            return
        # Sorting 500 norms takes 30 µs: the rate is one division, and only what it suspects is looked at closely.
        rate = sum(self.clipped.values) / count
        if 0.0 < rate <= config.limit("CLIP", "warn_rate") or (rate == 0.0 and count % 50):
            yield Finding(id="CLIP", kind="aggressive")
            return
        bound = max(self.bound, SMALLEST)
        overshoot = median(self.norms.values) / bound
        is_enough = count >= config.limit("CLIP", "min_steps")
        is_frequent = is_enough and rate > config.limit("CLIP", "warn_rate")
        is_early = rate > config.limit("CLIP", "early_rate") and overshoot > config.limit("CLIP", "early_overshoot")
        is_harmful = not progress.has_learned(config.limit("CLIP", "loss_share"))
        is_aggressive = is_early or (is_frequent and is_harmful and overshoot > config.limit("CLIP", "warn_overshoot"))
        evidence: dict[str, Number] = {
            "rate": spelled(rate),
            "median before": spelled(median(self.norms.values)),
            "threshold": spelled(bound),
            "steps": count,
        }
        words: dict[str, Number] = {
            "p90": quantile(self.norms.values, 0.9),
            "threshold": bound,
            "lr": stats.lr,
            "num_steps": count,
        }
        severity = Severity.WARN if is_aggressive else Severity.INFO if is_frequent else None
        yield Finding(id="CLIP", kind="aggressive", severity=severity, evidence=evidence, words=words)
        p99 = quantile(self.norms.values, 0.99)
        is_idle = is_enough and rate == 0.0 and bound > config.limit("CLIP", "idle_factor") * p99
        yield Finding(
            id="CLIP", kind="idle", severity=Severity.INFO if is_idle else None, evidence=evidence, words=words
        )

    def _bound_of(self, clipped_norm: float) -> float | None:
        """Nobody said, but a norm that is the same after each clipping is the threshold.

        Where it differs, elements or units are bounded, each by itself, as by value or AGC: then every step may well
        be clipped, and there is no threshold of the norm to judge.
        """
        self.after.add(clipped_norm)
        is_same = max(self.after.values) <= (1 + SAME_NORM) * min(self.after.values)
        return clipped_norm if is_same and len(self.after.values) == self.after.size else None


@dataclass(slots=True)
class Resume:
    """RESUME: the optimizer forgot, or norm and loss jump. Says nothing after a resume known to be exact."""

    num_entries: int = 0
    """Parameters with optimizer state, when last seen."""
    steps_since: int | None = None
    """None: no resume, or an exact one."""
    num_hits: int = 0
    log_norm: Level = field(default_factory=lambda: Level(rate=0.05, floor=0.05))
    log_loss: Level = field(default_factory=lambda: Level(rate=0.05, floor=0.05))

    def resumed(self) -> None:
        self.steps_since = 0
        self.num_hits = 0

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        is_finite = math.isfinite(stats.grad_norm) and math.isfinite(stats.loss)
        norm, loss = log10(stats.grad_norm) if is_finite else 0.0, log10(abs(stats.loss)) if is_finite else 0.0
        if self.steps_since is not None:
            if self.steps_since == 0 and self.num_entries > 0:
                yield self._optimizer(stats)
            self.steps_since += 1
            z = max(self.log_norm.z(norm), self.log_loss.z(loss)) if is_finite else 0.0
            self.num_hits += z > config.limit("RESUME", "z")
            is_jump = self.num_hits >= config.limit("RESUME", "min_hits")
            yield Finding(
                id="RESUME",
                kind="jump",
                severity=Severity.WARN if is_jump else None,
                evidence={"z": spelled(z), "steps above": self.num_hits, "steps since": self.steps_since},
            )
            if self.steps_since >= config.limit("RESUME", "num_steps"):
                self.steps_since = None
        elif is_finite:
            # Only while no resume is being judged: a jump must not become the level it is compared with.
            self.log_norm.add(norm)
            self.log_loss.add(loss)
        if self.steps_since is None or self.steps_since > 1:
            self.num_entries = max(self.num_entries, stats.optimizer_entries)

    def _optimizer(self, stats: StepStats) -> Finding:
        words: dict[str, Number] = {"before": self.num_entries, "now": stats.optimizer_entries}
        has_lost = stats.optimizer_entries < self.num_entries
        return Finding(
            id="RESUME",
            kind="optimizer state",
            severity=Severity.CRITICAL if has_lost else None,
            evidence=words,
            words=words,
        )


@dataclass(slots=True)
class FirstLoss:
    """LOSS0: the first loss against ln C."""

    is_done: bool = False

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if config.num_classes < 2 or (self.is_done and not math.isfinite(stats.loss)):
            return
        guess = math.log(config.num_classes)
        ratio = stats.loss / guess if math.isfinite(stats.loss) else math.inf
        if self.is_done or stats.step > 1:
            # Only a first loss is judged; later ones can take the verdict back.
            self.is_done = True
            if ratio < 1.0:
                yield Finding(id="LOSS0")
            return
        self.is_done = True
        severity = None
        if ratio > config.limit("LOSS0", "info"):
            severity = Severity.WARN if ratio > config.limit("LOSS0", "warn") else Severity.INFO
        yield Finding(
            id="LOSS0",
            severity=severity,
            evidence={"loss": spelled(stats.loss), "ln C": spelled(guess), "ratio": spelled(ratio)},
            # Logits of variance s^2 cost about s^2 / 2 above ln C: s = 0.3 adds 2 %.
            words={
                "gain": min(1.0, 0.3 / math.sqrt(max(2 * (stats.loss - guess), 0.09))),
                "num_classes": config.num_classes,
            },
        )
