"""Quarantined samples: from when on which substitute stands at a position.

In:  entries as quarantine.jsonl has them; a step.
Out: position -> the attempt at a substitute that a sample begins with.
Pure. A position of `train` is passed once in a run, one of `eval` in every evaluation: so those entries have a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Quarantined(NamedTuple):
    """One sample that could not be had."""

    position: int
    attempt: int
    """What is tried instead: 1 for the first substitute."""
    from_step: int = 0
    """The evaluation before which step it was lost in; those before had the sample itself, and have it when redone."""


def entry_of(record: Mapping[str, Any]) -> Quarantined:
    """A line of quarantine.jsonl; older ones of `eval` have no step, and hold for every evaluation."""
    return Quarantined(record["position"], record["lost_attempt"] + 1, record.get("step", 0))


def attempts_at(entries: Iterable[Quarantined], step: int) -> dict[int, int]:
    """Position -> attempt to begin with in a pass before `step`."""
    attempts: dict[int, int] = {}
    for entry in entries:
        if entry.from_step <= step:
            attempts[entry.position] = max(attempts.get(entry.position, 0), entry.attempt)
    return attempts
