"""Every message of the control and data sockets, as typed records.

In and out: nothing; `pipeline/wire.py` spells them as bytes. A field may be added with a default; anything else
raises PROTOCOL_VERSION. A lost, repeated or old message costs time at most:
- beats are cumulative, and who is not known answers them with a Join or a Register;
- what needs an answer (Register, AskProbe, Probe, SamplesLost) is sent again until it has one;
- a lost Granted, SliceFailed or StreamBroken shows in the beats as a slice that never arrived, and is leased again;
- a lost OpenStream is asked for (AskStream) by the worker that meets the stream next;
- a lost StreamFailed is sent again when the same slice or registration fails again;
- for a lost Leave, WorkerDied or StreamGoodbye, silence speaks; for a lost CloseStream, the worker's end.
"""

from __future__ import annotations

import msgspec

from pipeline.errors import Problem
from pipeline.recipe import BatchSpec, FieldSpec, Recipe
from pipeline.timeline import LastBatch, TimelineEntry

PROTOCOL_VERSION = 1


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A control message; its class name is its tag on the wire."""


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A located error, as `pipeline.errors.Problem`, on its way to the user."""

    file: str
    line: int
    path: str
    expected: str
    got: str
    way_out: str = ""

    @classmethod
    def of(cls, problem: Problem) -> Location:
        """The problem, ready to be sent."""
        return cls(**{name: getattr(problem, name) for name in cls.__struct_fields__})

    def problem(self) -> Problem:
        """The problem, as it was before it was sent."""
        return Problem(**msgspec.structs.asdict(self))


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
    timeline: tuple[TimelineEntry, ...]
    endpoint: str
    """Where slices go: the trainer's PULL socket, new for each incarnation."""
    rank: int = 0
    world_size: int = 1


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A position that can't be made as it stands, and why; the trainer decides by policy."""

    position: int
    attempt: int
    """0 for the sample itself, 1 for its first substitute, and so on."""
    cause: str


# trainer -> dispatcher


class Register(Message, frozen=True, kw_only=True):
    """A stream's whole truth; sent at the start and whenever a dispatcher does not know the stream."""

    stream: str
    incarnation: int
    spec: StreamSpec
    head_step: int
    """The first batch the training loop has not taken."""
    arrived: bytes
    """Bitmap, little-endian: bit i is the position `start of the head batch + i`."""
    window: int
    """Batches from head_step on that may be in flight; 0 until the probe's answer is known."""
    quarantined: dict[int, int] = {}
    """Position -> attempt to begin with, where the attempts before it can't be made; all written to disk."""
    batch_specs: dict[str, BatchSpec] = {}
    """What earlier probes answered, by recipe digest."""


class StreamBeat(Message, frozen=True, kw_only=True):
    """What has arrived; replaces all that was said before it."""

    stream: str
    incarnation: int
    number: int
    """Rises with each beat; an older one is ignored."""
    head_step: int
    arrived: bytes
    window: int
    quarantined: dict[int, int] = {}


class AskProbe(Message, frozen=True, kw_only=True):
    """Have some live worker build the recipe and try it on samples of this stream."""

    stream: str
    incarnation: int
    recipe: str


class StreamGoodbye(Message, frozen=True, kw_only=True):
    """The stream has ended; nothing of it is wanted any more."""

    stream: str
    incarnation: int


# worker -> dispatcher


class Join(Message, frozen=True, kw_only=True):
    """A worker offers itself."""

    worker: str
    host: str
    pid: int
    fingerprint: str
    """Library versions and the digest of the built-in probe: equal fingerprints make equal bytes."""
    sources: tuple[str, ...]
    """Names of the sources it can open."""
    protocol_version: int = PROTOCOL_VERSION


class WorkerBeat(Message, frozen=True, kw_only=True):
    """Which leases the worker has seen and which it still holds."""

    worker: str
    number: int
    received: int
    """The highest lease number seen."""
    holding: tuple[int, ...]
    """Lease numbers not yet sent to their trainer, in the order of work; the first is in hand."""


class SliceFailed(Message, frozen=True, kw_only=True):
    """A lease given back: a read failed, which may pass or may work elsewhere."""

    worker: str
    lease: int
    position: int
    cause: str


class AskStream(Message, frozen=True, kw_only=True):
    """A worker was given work of a stream that was never opened for it: the OpenStream was lost."""

    worker: str
    stream: str
    incarnation: int
    lease: int = 0
    """The lease, which it gives back; 0 where it was a probe."""


class StreamBroken(Message, frozen=True, kw_only=True):
    """Something no retry can mend, such as a chain whose output shape changes; ends the stream."""

    stream: str
    incarnation: int
    cause: str


class ProbeAnswer(Message, frozen=True, kw_only=True):
    """The probe's outcome: a BatchSpec, or located refusals."""

    worker: str
    stream: str
    incarnation: int
    recipe: str
    spec: BatchSpec | None = None
    problems: tuple[Location, ...] = ()


class ProbeFailed(Message, frozen=True, kw_only=True):
    """A probe given back: a read or an allocation failed, which may pass or may work elsewhere."""

    worker: str
    stream: str
    incarnation: int
    recipe: str
    cause: str


# pool -> dispatcher


class WorkerDied(Message, frozen=True, kw_only=True):
    """A worker's process has ended; sent by the pool that started it."""

    worker: str
    cause: str
    """Signal or exit code, with the Python frames if it left any."""
    by_itself: bool
    """True for a crash or a hang; False for SIGKILL and SIGTERM, which come from outside."""
    in_peace: bool = False
    """True if its pool ended it on purpose: nothing it held is to blame."""
    stream: str = ""
    incarnation: int = 0
    position: int = -1
    """The sample it was working on, -1 if unknown."""


# dispatcher -> trainer


class Registered(Message, frozen=True, kw_only=True):
    """The stream is known here."""

    stream: str
    incarnation: int


class RegisterAgain(Message, frozen=True, kw_only=True):
    """This dispatcher does not know the stream: it has restarted, or has retired it."""

    stream: str
    incarnation: int


class Probed(Message, frozen=True, kw_only=True):
    """A ProbeAnswer on its way to the trainer that asked."""

    stream: str
    incarnation: int
    recipe: str
    worker: str
    spec: BatchSpec | None = None
    problems: tuple[Location, ...] = ()


class SamplesLost(Message, frozen=True, kw_only=True):
    """Positions that wait for the trainer's decision; repeated until they are quarantined."""

    stream: str
    incarnation: int
    lost: tuple[Lost, ...]


class StreamFailed(Message, frozen=True, kw_only=True):
    """The stream can't go on."""

    stream: str
    incarnation: int
    cause: str


class ServiceState(Message, frozen=True, kw_only=True):
    """What the dispatcher sees, for the trainer's messages when nothing arrives; about once a second."""

    stream: str
    incarnation: int
    workers: int
    idle_workers: int
    waiting_slices: int
    leased_slices: int
    note: str = ""
    """The last thing that went wrong, such as a worker's death."""


# dispatcher -> worker


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A slice given to a worker; `number` rises by one with each lease of that worker."""

    number: int
    stream: str
    incarnation: int
    start: int
    stop: int
    recipe: str
    quarantined: dict[int, int] = {}
    """Positions of this slice -> attempt to begin with."""


class OpenStream(Message, frozen=True, kw_only=True):
    """What leases of this stream refer to; sent to a worker before the first of them."""

    stream: str
    incarnation: int
    spec: StreamSpec
    batch_specs: dict[str, BatchSpec] = {}
    """By recipe digest, as far as probed; a sample that comes out otherwise breaks the stream."""


class CloseStream(Message, frozen=True, kw_only=True):
    """Leases of this stream are void."""

    stream: str
    incarnation: int


class Granted(Message, frozen=True, kw_only=True):
    """Work."""

    lease: Lease


class Probe(Message, frozen=True, kw_only=True):
    """Build a recipe and try it; the stream was opened before."""

    stream: str
    incarnation: int
    recipe: str
    skip: tuple[int, ...] = ()
    """Positions at which workers died that probed it before."""


class JoinAgain(Message, frozen=True, kw_only=True):
    """This dispatcher does not know the worker (any more); its leases are void."""

    worker: str


class Refused(Message, frozen=True, kw_only=True):
    """The worker can't be admitted, and why; it ends."""

    worker: str
    cause: str


TrainerMessage = Register | StreamBeat | AskProbe | StreamGoodbye
WorkerMessage = Join | WorkerBeat | SliceFailed | AskStream | StreamBroken | ProbeAnswer | ProbeFailed | WorkerDied
ToTrainer = Registered | RegisterAgain | Probed | SamplesLost | StreamFailed | ServiceState
ToWorker = OpenStream | CloseStream | Granted | Probe | JoinAgain | Refused
AnyMessage = TrainerMessage | WorkerMessage | ToTrainer | ToWorker


# the data socket


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
