"""What happens to leases (events) and what is to be done about it (actions).

In and out: nothing; plain records between `pipeline/leases.py` (pure) and `pipeline/dispatcher.py`, which sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.messages import Lease, Lost
from pipeline.timeline import Timeline

StreamId = tuple[str, int]
"""A stream's name and incarnation."""
IDLE, BUILDING, OPENING = -1, -2, -3
"""What stands where a worker's position would stand while it works on no sample: on nothing, a chain, a source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRegistered:
    """A trainer registered a stream, for the first time or again."""

    stream: StreamId
    source: str
    timeline: Timeline
    slice_size: int
    head_step: int
    arrived: int
    """Bitmap: bit i is the position `start of the head batch + i`."""
    window: int
    quarantined: Mapping[int, int]
    """Position -> attempt to begin with."""
    revision: int = 0
    """Of the timeline; a higher one than is known brings another timeline for the same stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBeaten:
    """A trainer said what has arrived."""

    stream: StreamId
    number: int
    head_step: int
    arrived: int
    window: int
    quarantined: Mapping[int, int]
    revision: int = 0
    """Of the timeline it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLeft:
    """The stream has ended, or its trainer is gone."""

    stream: StreamId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker was admitted."""

    worker: str
    sources: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBeaten:
    """A worker said which leases it has seen and which it still holds."""

    worker: str
    number: int
    received: int
    holding: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeaving:
    """A worker wants no further lease, and to be told when it may end."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGone:
    """A worker left or died."""

    worker: str
    cause: str
    blame: bool
    """False when it left in peace: nothing it held is to blame."""
    by_itself: bool = False
    """True for a crash or a hang, False for a kill from outside or silence."""
    at: tuple[StreamId, int] | None = None
    """Stream and position of the sample it was working on, if known."""
    attempt: int = 0
    """Of that sample: 0 if it was working on it itself, 1 on its first substitute, and so on."""
    is_preparing: bool = False
    """It had no sample of a lease in work: it was opening a source, building a chain or trying one, so no slice is to
    blame."""
    building: tuple[StreamId, str] | None = None
    """The probe (stream and recipe) whose chain it was building."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceGivenBack:
    """A worker could not read a sample; that may pass, or work elsewhere."""

    worker: str
    lease: int
    failed: Lost
    """It is lost if it fails too often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRefused:
    """A worker could not begin a lease; nothing in it is to blame."""

    worker: str
    lease: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDeclined:
    """A worker can't serve a stream, as it was started: others have to."""

    worker: str
    stream: StreamId
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time passed."""

    drained: bool = True
    """Every message that had arrived before was stepped: only then does silence condemn anybody."""


Event = (
    StreamRegistered
    | StreamBeaten
    | StreamLeft
    | WorkerJoined
    | WorkerBeaten
    | WorkerLeaving
    | WorkerGone
    | SliceGivenBack
    | LeaseRefused
    | WorkerDeclined
    | Ticked
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Send this lease to this worker."""

    worker: str
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLost:
    """Tell the trainer that these positions wait for its decision."""

    stream: StreamId
    lost: tuple[Lost, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condemn:
    """The worker was silent too long: take it for dead."""

    worker: str
    in_peace: bool = False
    """True if it was leaving and owed nothing: it has ended, and nobody could say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dismiss:
    """Nothing of a leaving worker is under way any more: it may end."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """The stream's trainer was silent too long: forget it."""

    stream: StreamId


@dataclass(frozen=True, slots=True, kw_only=True)
class AskToJoin:
    """A worker beats that is not known here."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskToRegister:
    """A trainer beats for a stream, or a timeline, that is not known here."""

    stream: StreamId


Action = Grant | ReportLost | Condemn | Dismiss | Retire | AskToJoin | AskToRegister
