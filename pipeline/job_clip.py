"""The job file's `clip` section: what happens to gradients between backward and the optimizer's step.

In:  plain values.
Out: `ClipSection`, checked.
Never looks at a gradient: `trainer/clipping.py` does what is said here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section

Percentile = Annotated[float, Field(gt=0.0, le=100.0)]


class ClipRule(Section):
    """One way to clip; a kind reads its own fields and leaves the others alone."""

    kind: Literal["none", "value", "norm", "agc", "auto"] = "none"
    """`value`: each element to [-threshold, threshold]; `norm`: the 2-norm to at most threshold; `agc`: each output
    unit's norm to at most `ratio` of its weights' norm; `auto`: like `norm`, at a percentile of the norms so far."""
    threshold: PositiveFloat = 1.0
    """`value`, `norm`: the bound. 1.0 is what Megatron, torchtitan and DeepSpeed begin with."""
    ratio: PositiveFloat = 0.01
    """`agc`: lambda, the largest norm of a unit's gradient as a share of its weights' (timm's default)."""
    min_weight_norm: PositiveFloat = 1e-3
    """`agc`: epsilon, a unit's weights count for at least this norm, so that zero weights can leave zero."""
    percentile: Percentile = 90.0
    """`auto`: of the norms before clipping. The 90th is Google's tuning playbook's start; at a steady norm a tenth
    of the steps is clipped."""
    window: PositiveInt = 500
    """`auto`: that many latest norms count; norms drift over a training. Chosen, not measured."""
    warmup_steps: PositiveInt = 25
    """`auto`: so many norms are gathered before the first is clipped (by `cap` until then), as in ZClip."""
    floor: PositiveFloat = 1e-6
    """`auto`: never a bound below: a window of vanished gradients must not freeze what comes after."""
    cap: NonNegativeFloat = 0.0
    """`auto`: never a bound above, from the first step on; 0: none."""

    @model_validator(mode="after")
    def _auto_can_begin(self) -> ClipRule:
        if self.kind == "auto" and self.warmup_steps > self.window:
            raise ValueError(f"warmup_steps at most {self.window}, the `window`: older norms are forgotten")
        if self.kind == "auto" and 0.0 < self.cap < self.floor:
            raise ValueError(f"cap 0, or at least {self.floor}, the `floor`")
        return self


class ClipGroup(ClipRule):
    """Parameters that are clipped by themselves."""

    parameters: tuple[str, ...]
    """Patterns of parameter names, such as `head.*`; a parameter goes to the first group that names it."""

    @field_validator("parameters")
    @classmethod
    def _names_something(cls, parameters: tuple[str, ...]) -> tuple[str, ...]:
        if not parameters:
            raise ValueError("at least one pattern")
        return parameters


class ClipSection(ClipRule):
    """What happens to gradients between backward and step."""

    groups: tuple[ClipGroup, ...] = ()
    """Groups with norms and bounds of their own; the section's own rule is for all other parameters together."""
