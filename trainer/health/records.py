"""What was measured, and what it means: plain values that any part can read.

In:  numbers from `measure.py`, findings from the rules.
Out: records; a verdict and its events as JSON.
No torch, no clock, no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Protocol

Number = float | int | str
"""A value of evidence; a number that is not finite is spelled out (`nan`, `inf`) so that JSON can carry it."""


class Severity(IntEnum):
    """Ordered: whoever asks for WARN gets CRITICAL too."""

    INFO = 1
    WARN = 2
    CRITICAL = 3


class Life(StrEnum):
    """A verdict opens, is confirmed by further samples, and is resolved when they stop."""

    OPEN = "open"
    CONFIRMED = "confirmed"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLoss:
    """One sample of a batch and its own loss."""

    index: int
    """Place in the step's batch, micro-batches one after another."""
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What one step measured: cheap, for every step or every few."""

    step: int
    loss: float
    lr: float
    """The largest of the parameter groups; 0: none has one."""
    grad_norm: float
    """Global 2-norm after unscaling and before clipping."""
    clipped_norm: float | None = None
    """Global 2-norm as the optimizer got it; None: not measured."""
    clip_threshold: float | None = None
    """None: nothing clips, or nobody said."""
    was_clipped: bool = False
    was_skipped: bool = False
    parameters: tuple[str, ...] = ()
    parameter_norms: tuple[float | None, ...] = ()
    """One for each of `parameters`; None: no gradient. Empty: not measured in this step."""
    scaler_scale: float | None = None
    """The loss scale of fp16 training."""
    is_input_finite: bool | None = None
    """None: not looked at (the step was finite)."""
    base_lr: float = 0.0
    """What the schedule began from, as torch's schedulers note it (`initial_lr`); 0: nobody said, so `lr`."""
    bad_weights: tuple[str, ...] = ()
    """Parameters whose values are not finite; looked for only in a non-finite step."""
    optimizer_entries: int = 0
    """Parameters for which the optimizer held state before this step."""
    batch: Any = None
    """Where the step's samples came from, as the caller gave it (all micro-batches)."""
    worst_samples: tuple[SampleLoss, ...] = ()


class StepNumbers(Protocol):
    """What statistics take from a step: a `StepStats`, or the step under way before one is made of it."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def base_lr(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def clipped_norm(self) -> float | None: ...
    @property
    def clip_threshold(self) -> float | None: ...
    @property
    def was_clipped(self) -> bool: ...
    @property
    def was_skipped(self) -> bool: ...
    @property
    def optimizer_entries(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStats:
    """One layer with weights, in one sampled step."""

    name: str
    kind: str
    """The module's class, such as `Linear`."""
    activation: str = ""
    """Class of the activation module that reads this layer's output (through a norm, perhaps); empty: none seen."""
    stretch: int = 0
    """Layers of one stretch have no normalisation between them."""
    is_normalized: bool = False
    """A norm layer reads the output: its scale doesn't matter, a bias is dead."""
    is_output: bool = False
    """No later layer takes in what comes of its output: the last layer, and each head of several."""
    fan_in: int = 0
    num_units: int = 1
    """Output elements of one sample."""
    mean: float = math.nan
    std: float = math.nan
    """Of the output over batch and units, before the activation."""
    sample_std: float = math.nan
    """Of the output over the batch alone, root mean square over units: what of the signal tells samples apart. Biases
    are not in it, which under Adam hide a collapse from `std` after one step."""
    is_finite: bool = True
    delta_rms: float = math.nan
    """Root mean square of the loss's gradient with respect to the output; NaN: no gradient came."""
    weight_norm: float = math.nan
    weight_rms: float = math.nan
    grad_norm: float = math.nan
    update_norm: float = math.nan
    never_active: float = math.nan
    """Share of units that were never above zero in the window; NaN: not a ReLU, or not seen."""
    num_observations: int = 0
    """Values each unit has had in that window."""
    saturated: float = math.nan
    """Share of values where the activation's derivative is below a tenth of its largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterStats:
    """One parameter (a tied one once), in one sampled step."""

    name: str
    num_dims: int
    numel: int
    num_rows: int = 1
    """Of a matrix or kernel, its units: the size of the first dimension."""
    layer: str
    """The module that owns it."""
    is_trainable: bool = True
    is_in_optimizer: bool = True
    is_used: bool = True
    """Its module was called in the forward pass."""
    is_dead_bias: bool = False
    """A bias whose layer a norm follows: its gradient is zero by construction."""
    is_embedding: bool = False
    weight_norm: float = math.nan
    grad_norm: float | None = None
    grad_max: float = math.nan
    """Largest absolute gradient, unscaled; NaN: measured only under a loss scale."""
    update_norm: float = math.nan
    row_spread: float = math.nan
    """Largest difference between rows over the largest weight; 0: all units are copies. NaN: not looked at."""
    adam_root_v: float = math.nan
    """Geometric mean of sqrt(v_hat) over elements that ever had a gradient; NaN: no such state."""
    adam_eps: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStats:
    """One batch as the model saw it, channel by channel."""

    num_samples: int
    num_values: int
    """Values a channel."""
    sums: tuple[float, ...]
    square_sums: tuple[float, ...]
    minima: tuple[float, ...]
    maxima: tuple[float, ...]
    label_min: float | None = None
    label_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepStats:
    """What a sampled step measured besides its `StepStats`."""

    step: int
    layers: tuple[LayerStats, ...]
    """In the order of the forward pass."""
    parameters: tuple[ParameterStats, ...]
    inputs: InputStats | None = None
    scaler_scale: float | None = None
    was_skipped: bool = False
    batch: Any = None
    """Where the step's samples came from."""
    worst_samples: tuple[SampleLoss, ...] = ()
    """Empty: nothing in the step called for their losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says about one sample; `severity` None: looked, and fine."""

    id: str
    kind: str = ""
    severity: Severity | None = None
    layers: tuple[str, ...] = ()
    evidence: Mapping[str, Number] = field(default_factory=dict)
    words: Mapping[str, Number] = field(default_factory=dict)
    """What the fix text needs besides the evidence."""
    trace: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is wrong, how sure that is, and what to do."""

    number: int
    """Counts a run's verdicts from 1; stays with this one through its life."""
    id: str
    kind: str
    severity: Severity
    life: Life
    layers: tuple[str, ...]
    first_step: int
    last_step: int
    """The last step with evidence."""
    resolved_at: int | None
    num_hits: int
    evidence: Mapping[str, Number]
    """The newest."""
    thresholds: Mapping[str, float]
    fix: str
    confidence: float
    """(hits + 1) / (samples + 2) over the window, Laplace's rule; 1 for what needs no statistics."""
    traces: tuple[Mapping[str, Any], ...] = ()
    """The first few bad steps with their batches, for verdicts that come from single steps."""
    is_announced: bool = True
    """False: kept, but over the budget of alarms."""

    def to_dict(self) -> dict[str, Any]:
        """JSON without NaN or infinity."""
        return {
            "number": self.number,
            "id": self.id,
            "kind": self.kind,
            "severity": self.severity.name,
            "life": self.life.value,
            "layers": list(self.layers),
            "first_step": self.first_step,
            "last_step": self.last_step,
            "resolved_at": self.resolved_at,
            "num_hits": self.num_hits,
            "evidence": dict(self.evidence),
            "thresholds": dict(self.thresholds),
            "fix": self.fix,
            "confidence": self.confidence,
            "traces": [dict(trace) for trace in self.traces],
            "is_announced": self.is_announced,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Verdict:
        return cls(
            **{
                **state,
                "severity": Severity[state["severity"]],
                "life": Life(state["life"]),
                "layers": tuple(state["layers"]),
                "traces": tuple(state["traces"]),
            }
        )

    def __str__(self) -> str:
        steps = f"step {self.first_step}" + (f"..{self.last_step}" if self.last_step > self.first_step else "")
        name = f"{self.id}/{self.kind}" if self.kind else self.id
        where = f" in {_listed(self.layers)}" if self.layers else ""
        numbers = ", ".join(f"{key} {_short(value)}" for key, value in self.evidence.items())
        limits = ", ".join(f"{key} {_short(value)}" for key, value in self.thresholds.items())
        lines = [f"{self.severity.name} {name} ({self.life.value}, {steps}){where}", f"  evidence:  {numbers}"]
        if limits:
            lines.append(f"  threshold: {limits}")
        lines.append(f"  fix:       {self.fix}")
        return "\n".join(lines)


class Change(StrEnum):
    """What happened to a verdict."""

    OPENED = "opened"
    CONFIRMED = "confirmed"
    RAISED = "raised"
    LOWERED = "lowered"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictEvent:
    """A verdict changed, and is now this."""

    step: int
    change: Change
    verdict: Verdict


def spelled(value: float | None) -> Number:
    """A finite number as it is (six digits are enough for evidence), any other as a word."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return str(value)
    return float(f"{value:.6g}")


def _short(value: Number) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)})"


def open_verdicts(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The alarms that are not over: WARN or worse, not resolved."""
    return [one for one in verdicts if one.resolved_at is None and one.severity >= Severity.WARN]
