"""Where a train stream begins: at its first batch, or where an earlier attempt at the run left off.

In and out: nothing; plain values between a run's folder and its streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.bad_count import BadCount
from pipeline.quarantine import Quarantined
from pipeline.recipe import Recipe
from pipeline.timeline import TimelineEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStart:
    """The whole state of a train stream (law 3), with what else outlives a process."""

    head_step: int = 0
    """The first batch that is delivered."""
    entries: tuple[TimelineEntry, ...] = ()
    """The timeline from step 0 on; empty: it is made from the job's chain and schedule."""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """Every recipe that `entries` names, by digest."""
    quarantined: Mapping[str, Sequence[Quarantined]] = field(default_factory=dict)
    """Stream role ("train", "eval") -> what is written of it in quarantine.jsonl."""
    num_delivered: int = 0
    """Samples that were trained on before `head_step`."""
    bad: BadCount = field(default_factory=BadCount)
    """Bad ones met before it by `train`: the run's allowance goes on from here."""
    told: BadCount = field(default_factory=BadCount)
    """Bad ones that the run has met in all, evaluations and what is done again included."""
    fingerprint: str = ""
    """Of the workers that made the slices so far; others would make other bytes."""
    free_from_step: int = 0
    """The first batch that was never delivered in this run: no later change of the timeline may begin below it."""
