"""The spec of a stream, which its trainer registers and each of its workers is told.

In and out: nothing; a plain record, part of the messages of `pipeline/messages.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.recipe import Recipe
from pipeline.timeline import LastBatch, TimelineEntry


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream is: enough for any worker to make any of its slices."""

    source: str
    """Name that workers map to their own paths."""
    source_fingerprint: str
    num_samples: int
    seed: int
    shuffle: bool
    last_batch: LastBatch
    end_position: int
    slice_size: int
    recipes: tuple[Recipe, ...]
    """All that the timeline names from the head step on; of a run that is swapped for days, not those before it."""
    timeline: tuple[TimelineEntry, ...]
    """The whole of it, from the run's first step on."""
    endpoint: str
    """Where slices go: the trainer's PULL socket, new for each incarnation."""
    rank: int = 0
    world_size: int = 1
    source_settings: dict[str, Any] = {}
    """The job's split, content, columns and class names of the source, where they are not the defaults; a worker whose
    command line gives a place alone reads it so. It takes no path from here."""
