"""The job file's `health` section: what is watched while the model trains, and where it is told.

In:  plain values.
Out: `HealthSection`, checked.
Changes nothing of what is trained; `trainer/watch.py` does what is said here.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.section import NonNegativeInt, Section

THRESHOLDS: dict[str, tuple[str, ...]] = {
    "NONFINITE": ("scaler_skips",),
    "VANISH_BWD": (
        "warn_slope",
        "critical_slope",
        "warn_drop",
        "warn_drop_sigmoid",
        "critical_drop",
        "min_layers",
        "first_share",
    ),
    "COLLAPSE_FWD": (
        "warn_slope",
        "critical_slope",
        "warn_drop",
        "critical_drop",
        "min_layers",
    ),
    "EXPLODE_FWD": (
        "warn_slope",
        "critical_slope",
        "warn_rise",
        "critical_rise",
        "min_layers",
    ),
    "EXPLODE": (
        "z",
        "spike_factor",
        "early_factor",
        "num_early",
        "growth",
        "depth_slope",
        "depth_rise",
        "min_layers",
        "fp16_max",
    ),
    "UPDATE_RATIO": (
        "warn_large",
        "critical_large",
        "warn_small",
        "critical_small",
        "lr_share",
        "loss_share",
        "small_share",
        "small_start",
    ),
    "ADAM_FLOOR": (
        "factor",
        "critical_factor",
        "share",
        "loss_share",
    ),
    "DEAD": (
        "warn",
        "critical",
        "above_start",
        "most_at_start",
        "min_observations",
        "early",
        "min_early",
    ),
    "SATURATED": (
        "warn",
        "critical",
    ),
    "CLIP": (
        "warn_rate",
        "warn_overshoot",
        "min_steps",
        "window",
        "early_rate",
        "early_overshoot",
        "loss_share",
        "min_early",
        "idle_factor",
    ),
    "FROZEN": ("zero_samples",),
    "SYMMETRY": (
        "row_spread",
        "first_step",
    ),
    "INPUT": (
        "info_mean",
        "info_std_low",
        "info_std_high",
        "warn_mean",
        "warn_std_low",
        "warn_std_high",
        "min_samples",
        "min_labels",
    ),
    "RESUME": (
        "z",
        "min_hits",
        "num_steps",
    ),
    "LOSS0": (
        "info",
        "warn",
    ),
}
"""Detector -> the names of its thresholds, as in trainer/health/detectors.py, which a test compares."""


def _interval(value: object) -> object:
    """Its own check, since pydantic would name a union's wrong value once for each of its members."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("a number of steps from 1, or auto")


Interval = Annotated[int | Literal["auto"], BeforeValidator(_interval)]


class HealthSection(Section):
    """What is watched while the model trains; weights are the same, whatever is said here."""

    enabled: bool = True
    """False: nothing is measured, and no health.json is written."""
    every_steps: Interval = "auto"
    """Steps between samples of every layer. `auto`: as often as costs at most 3 % of the time, by this machine's clock;
    with a number, equal runs are looked at in equal steps, and have equal verdicts."""
    light_every_steps: Interval = "auto"
    """Steps between looks at each parameter's norm; loss and norm of all together are judged in every step. `auto`:
    every one, where that costs at most 1 % of the time."""
    line_every_steps: NonNegativeInt = 200
    """Steps between lines on the terminal that say how the gradients are; 0: none."""
    lint: bool = True
    """Look at the model and one batch before the first step of a new run, and warn of what will not train."""
    off: tuple[str, ...] = ()
    """Detectors that say nothing, such as INPUT."""
    thresholds: dict[str, float] = {}
    """`DETECTOR.threshold` -> value, such as CLIP.warn_rate: instead of the table's."""
    report: bool = True
    """Write report.html at the end."""
    prometheus_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Serve the newest numbers on this port of 127.0.0.1, for Prometheus; 0: not at all."""
    tensorboard: bool = False
    """Write scalars for TensorBoard into the run folder's tensorboard/."""

    @field_validator("off")
    @classmethod
    def _detectors_exist(cls, off: tuple[str, ...]) -> tuple[str, ...]:
        for name in off:
            if name not in THRESHOLDS:
                raise _unknown("a detector", name, list(THRESHOLDS))
        return off

    @field_validator("thresholds")
    @classmethod
    def _thresholds_exist(cls, thresholds: dict[str, float]) -> dict[str, float]:
        known = [f"{detector}.{name}" for detector, names in THRESHOLDS.items() for name in names]
        for name in thresholds:
            if name not in known:
                raise _unknown("DETECTOR.threshold", name, known)
        return thresholds


def _unknown(what: str, name: str, known: list[str]) -> PydanticCustomError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return PydanticCustomError(
        "unknown_name",
        "{what}, such as {near}",
        {"what": what, "near": ", ".join(near), "way_out": "`headrace health --detectors` lists them all"},
    )
