"""The header of a slice: what the data socket carries before the samples themselves.

In and out: nothing; plain records, spelled as bytes by `pipeline/wire.py`.
"""

from __future__ import annotations

import msgspec

from pipeline.recipe import FieldSpec

QUARANTINED = "quarantined"
"""The cause of a bad sample that the trainer had given up, and told of, before the slice was made."""


class BadSample(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that could not be decoded or transformed, and what stands in its place."""

    position: int
    index: int
    name: str
    cause: str
    substitute: int
    """Index in the source of the sample delivered instead."""


class SliceHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first frame of a slice; one frame a field follows, in the order of `fields`."""

    stream: str
    incarnation: int
    worker: str
    start: int
    stop: int
    recipe: str
    fields: tuple[FieldSpec, ...]
    sample_ids: tuple[int, ...]
    digests: bytes
    """16 bytes a sample."""
    quarantined: dict[int, int] = {}
    """As in the lease: which attempts it began with. The trainer may have quarantined more since."""
    bad: tuple[BadSample, ...] = ()
    read_s: float = 0.0
    """Seconds spent reading, over the slice."""
    make_s: float = 0.0
    """Seconds spent decoding and transforming, over the slice."""
