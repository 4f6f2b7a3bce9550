"""The step under way: what is known of it until it is judged.

In:  what the monitor learns between backward and the optimizer's step.
Out: the same, in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.health.measure import DeepProbe, Parcel
from trainer.health.records import StepStats


@dataclass(slots=True)
class Current:
    """The step under way."""

    stats: StepStats
    is_light: bool
    probe: DeepProbe | None
    batch: Any
    """Coordinates, or what makes them."""
    parcel: Parcel = field(default_factory=Parcel)
    """What is on the device still: loss, flags, norms."""
    names_P: tuple[str, ...] = ()
    own_s: float = 0.0
    is_finished: bool = False
