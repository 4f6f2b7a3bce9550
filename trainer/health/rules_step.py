"""What every step tells whose numbers are known: EXPLODE, RESUME, LOSS0. (NONFINITE and CLIP have files of their own.)

In:  `StepStats`, the run's `Progress`, the configuration.
Out: findings; `severity` None where a rule looked and found nothing.
Rules are dataclasses of plain fields: what they remember is their state. Only finite values are remembered. What is
said of steps goes by their numbers: not every step need have been measured.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

from trainer.health.detectors import HealthConfig
from trainer.health.records import DeepStats, Finding, Number, Severity, StepNumbers, StepStats, spelled
from trainer.health.robust import Level, Recent, quantile

SMALLEST = 1e-38
"""Stands for zero in logarithms; float32 has nothing normal below."""
NO_SPIKE, NO_GROWTH = Finding(id="EXPLODE", kind="spike"), Finding(id="EXPLODE", kind="growth")
"""Of nearly every step, so made once."""
NO_LOSS_OF_STATE, NO_JUMP = Finding(id="RESUME", kind="optimizer state"), Finding(id="RESUME", kind="jump")
LARGEST_CLIP = 65504.0
"""Where float16 ends: a run whose ordinary norms are beyond has none to go by."""
BLOCK_STEPS = 20
"""Growth is looked for over ten blocks of so many steps."""


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
    base_lr: float = 0.0
    """What a person sets; `lr` is what a schedule has made of it."""
    norms: Recent = field(default_factory=lambda: Recent(size=200))
    """Finite global norms before clipping."""
    clip_factor: float = 1.0
    """What clipping left of the last finite norm that was measured on both sides."""

    def remember(self, stats: StepNumbers) -> None:
        self.lr, self.base_lr = stats.lr, stats.base_lr or stats.lr
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

    def clip_text(self, most: float) -> str:
        """Such as ` at 2.3 (the 90th percentile of ordinary norms)`, which are those up to 10^`most`; "" if there
        are none, or if that is no norm to train with."""
        ordinary = [norm for norm in self.norms.values if log10(norm) <= most]
        p90 = quantile(ordinary, 0.9) if ordinary else math.inf
        return f" at {p90:.3g} (the 90th percentile of ordinary norms)" if p90 < LARGEST_CLIP else ""

    @property
    def p90(self) -> float:
        """90th percentile of the last finite norms; 1 (the customary threshold) before there are any."""
        return quantile(self.norms.values, 0.9) if self.norms.values else 1.0


def rate_text(factor: float, progress: Progress, config: HealthConfig) -> str:
    """Such as `the learning rate by 0.1 (optimizer.lr 0.1 -> 0.01)`: of the rate that a person sets, so that it is the
    same sentence in a warm-up and in a decay. Without one (Adafactor finds its own) only the factor is named."""
    name, base = ("optimizer.lr ", config.base_lr) if config.base_lr else ("", progress.base_lr)
    return f"the learning rate by {factor:.3g}" + (f" ({name}{base:.3g} -> {base * factor:.3g})" if base else "")


def replay_words(config: HealthConfig, step: int) -> dict[str, Number]:
    if not config.run:
        return {"replay": ""}
    return {"replay": f"; to see its samples: headrace replay {shlex.quote(config.run)} --step {step} --out sheet.png"}


def trace_of(stats: StepStats) -> dict[str, object]:
    """A bad step's own record: numbers, where its samples came from, and the worst of them."""
    return {
        "step": stats.step,
        "loss": spelled(stats.loss),
        "grad_norm": spelled(stats.grad_norm),
        "lr": stats.lr,
        "scaler_scale": stats.scaler_scale,
        "batch": stats.batch,
        "worst_samples": _worst_samples(stats),
    }


def place_of(stats: DeepStats) -> dict[str, object]:
    """The trace of a finding on layers: its step and batch, and the worst samples if the step had to be explained."""
    return {"step": stats.step, "batch": stats.batch, "worst_samples": _worst_samples(stats)}


def _worst_samples(stats: StepStats | DeepStats) -> list[dict[str, object]]:
    ids = stats.batch.get("sample_ids", ()) if isinstance(stats.batch, Mapping) else ()
    return [
        {"index": one.index, "loss": spelled(one.loss), "id": str(ids[one.index]) if one.index < len(ids) else ""}
        for one in stats.worst_samples
    ]


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
    began: int = -1
    """The first step with a finite norm; -1: none yet."""
    block_began: int = 0

    def suspects(self, norm: float, config: HealthConfig) -> tuple[str, ...]:
        """Kinds that this finite norm would be a hit of; pure, so that a monitor can ask before the step."""
        value = log10(norm)
        is_spike = self._is_spike(value, self.log_norm.z(value), config)
        is_grown = self._growth(value) > config.limit("EXPLODE", "growth")
        return ("spike",) * is_spike + ("growth",) * is_grown

    def _is_spike(self, value: float, z: float, config: HealthConfig) -> bool:
        if z <= config.limit("EXPLODE", "z"):
            return False
        return value > self.log_norm.level + math.log10(config.limit("EXPLODE", "spike_factor"))

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if not math.isfinite(stats.grad_norm):
            return
        value = log10(stats.grad_norm)
        z = self.log_norm.z(value)
        is_spike = self._is_spike(value, z, config)
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
                "at": progress.clip_text(self._most_ordinary(is_grown, config)),
                "shares": named,
                "rate": rate_text(0.1, progress, config),
                **replay_words(config, stats.step),
            }
        if is_spike:
            is_high = value > self.early_max + math.log10(config.limit("EXPLODE", "early_factor"))
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
            yield NO_SPIKE
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
            yield NO_GROWTH
        self.remember(stats, config)

    def _growth(self, value: float) -> float:
        """Decades of the last steps above the lowest block of the last 200, or above the run's start if that is more.

        The start counts because a converged run falls by many decades and may come back up some of them.
        """
        if len(self.last.values) < self.last.size:
            return 0.0
        return sorted([*self.last.values[1:], value])[self.last.size // 2] - self._base()

    def _base(self) -> float:
        return max(min(self.first), min(self.medians.values, default=-math.inf))

    def _most_ordinary(self, is_grown: bool, config: HealthConfig) -> float:
        """log10 of the largest norm that is neither of the growth (halfway to what is called so) nor a spike."""
        if is_grown:
            return self._base() + config.limit("EXPLODE", "growth") / 2
        return self.log_norm.level + math.log10(config.limit("EXPLODE", "spike_factor"))

    def remember(self, stats: StepNumbers, config: HealthConfig) -> None:
        """Of a finite step."""
        step, value = stats.step, log10(stats.grad_norm)
        if self.began < 0:
            self.began = self.block_began = step
        if len(self.first) < self.last.size:
            self.first.append(value)
        if step < self.began + config.limit("EXPLODE", "num_early"):
            self.early_max = max(self.early_max, value)
        self.log_norm.add(value)
        self.last.add(value)
        self.block.append(value)
        if step + 1 >= self.block_began + BLOCK_STEPS:
            self.medians.add(median(self.block))
            self.block, self.block_began = [], step + 1


@dataclass(slots=True)
class Resume:
    """RESUME: the optimizer forgot, or norm and loss jump. Says nothing after a resume known to be exact."""

    num_entries: int = 0
    """Parameters with optimizer state, when last seen."""
    steps_since: int | None = None
    """None: no resume, or an exact one."""
    first_step: int = 0
    """After the resume."""
    num_hits: int = 0
    log_norm: Level = field(default_factory=lambda: Level(rate=0.05, floor=0.05))
    log_loss: Level = field(default_factory=lambda: Level(rate=0.05, floor=0.05))

    def resumed(self) -> None:
        self.steps_since = 0
        self.num_hits = 0

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        is_finite = math.isfinite(stats.grad_norm) and math.isfinite(stats.loss)
        if self.steps_since is not None:
            norm, loss = log10(stats.grad_norm) if is_finite else 0.0, log10(abs(stats.loss)) if is_finite else 0.0
            if self.steps_since == 0:
                self.first_step = stats.step
                if self.num_entries > 0:
                    yield self._optimizer(stats)
            self.steps_since = stats.step - self.first_step + 1
            z = max(self.log_norm.z(norm), self.log_loss.z(loss)) if is_finite else 0.0
            self.num_hits += z > config.limit("RESUME", "z")
            is_jump = self.num_hits >= config.limit("RESUME", "min_hits")
            yield Finding(
                id="RESUME",
                kind="jump",
                severity=Severity.WARN if is_jump else None,
                evidence={"z": spelled(z), "steps above": self.num_hits, "steps since": self.steps_since},
            )
            if self.steps_since > 1:
                self._count(stats)
            if self.steps_since >= config.limit("RESUME", "num_steps"):
                self.steps_since = None
            return
        yield NO_LOSS_OF_STATE
        yield NO_JUMP
        if is_finite:
            self.remember(stats)
        else:
            self._count(stats)

    def remember(self, stats: StepNumbers) -> None:
        """Of a finite step, while no resume is being judged: a jump must not become the level it is compared with."""
        self.log_norm.add(log10(stats.grad_norm))
        self.log_loss.add(log10(abs(stats.loss)))
        self._count(stats)

    def _count(self, stats: StepNumbers) -> None:
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
    """LOSS0: the first finite loss against ln C."""

    is_done: bool = False
    is_waiting: bool = False
    """The run was seen from its first step, and no loss was finite yet: nothing has been learned."""

    def see_step(self, stats: StepStats, progress: Progress, config: HealthConfig) -> Iterator[Finding]:
        if config.num_classes < 2:
            return
        is_first = not self.is_done and (stats.step <= 1 or self.is_waiting)
        if not math.isfinite(stats.loss):
            # NONFINITE's business; no number of this loss says how large the weights are.
            self.is_waiting = is_first
            return
        guess = math.log(config.num_classes)
        ratio = stats.loss / guess
        if not is_first:
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
