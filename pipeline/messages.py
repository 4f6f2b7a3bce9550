"""Every message between trainers, the dispatcher and workers, as typed records.

In and out: nothing; `pipeline/wire.py` spells them as bytes. A record with a field its reader does not know is
refused, so once a version is released any change here raises PROTOCOL_VERSION. A lost, repeated or old message costs
time at most:
- beats are cumulative, and who is not known answers them with a Join or a Register;
- Register, AskProbe, Probe, SamplesLost, Leaving and what an operator asks are sent again until they have an answer;
- a lost Granted, SliceFailed, StreamDeclined or StreamBroken shows as a slice that never arrives: it is leased again;
- a lost OpenStream is asked for (AskStream) by the worker that is given work it does not know;
- a lost StreamFailed is sent again when the same slice or registration fails again;
- for a lost WorkerDied speaks the next PoolBeat, for a lost StreamGoodbye silence, for a lost CloseStream its end.
"""

from __future__ import annotations

import msgspec

from pipeline.message import PROTOCOL_VERSION, Location, Message
from pipeline.recipe import BatchSpec, Chain, Recipe
from pipeline.service_messages import OperatorMessage, PoolBeat, StreamReport, ToOperator, ToPool, WorkerDied
from pipeline.stream_spec import StreamSpec as StreamSpec


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A position that can't be made as it stands, and why; the trainer decides by policy."""

    position: int
    attempt: int
    """0 for the sample itself, 1 for its first substitute, and so on."""
    cause: str
    bad_before: tuple[str, ...] = ()
    """What was wrong with the bytes of the attempts just before it, in order."""


# trainer -> dispatcher


class Register(Message, frozen=True, kw_only=True):
    """A stream's whole truth; sent at the start, when the timeline has changed, and whenever a dispatcher does not know
    the stream. Until it is answered, no beat is sent: a beat is about a timeline both sides know."""

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
    revision: int = 0
    """Rises by one with each change of the timeline; a registration with a lower one than is known changes nothing."""
    fingerprint: str = ""
    """Of the workers that this run's earlier slices came from, "" before the first: later ones must have the same."""


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
    revision: int = 0
    """Of the timeline it is about; a dispatcher that knows only an older one asks to register again."""
    report: StreamReport | None = None
    """For `headrace status`; about once a second."""


class AskProbe(Message, frozen=True, kw_only=True):
    """Have some live worker build the recipe and try it on samples of this stream."""

    stream: str
    incarnation: int
    recipe: Recipe


class OperationAnswer(Message, frozen=True, kw_only=True):
    """What became of a SwapAsked or StopAsked; sent again whenever the operation is asked for again."""

    stream: str
    incarnation: int
    operation: str
    done: bool
    text: str
    """For the operator: what happens from which step on, or why not."""
    problems: tuple[Location, ...] = ()


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
    pool: str = ""
    """The pool that started it, "" if none did."""
    protocol_version: int = PROTOCOL_VERSION


class WorkerBeat(Message, frozen=True, kw_only=True):
    """Which leases the worker has seen and which it still holds."""

    worker: str
    number: int
    received: int
    """The highest lease number seen."""
    holding: tuple[int, ...]
    """Lease numbers not yet sent to their trainer, in the order of work; the first is in hand."""


class Leaving(Message, frozen=True, kw_only=True):
    """The worker wants no further lease; it ends once Dismissed says that all it sent has arrived."""

    worker: str


class SliceFailed(Message, frozen=True, kw_only=True):
    """A lease given back: a read failed, which may pass or may work elsewhere."""

    worker: str
    lease: int
    position: int
    attempt: int
    """Whose read failed: 0 for the sample itself, 1 for its first substitute, and so on."""
    cause: str
    bad_before: tuple[str, ...] = ()
    """What was wrong with the bytes of the attempts that the lease tried before it, in order."""


class AskStream(Message, frozen=True, kw_only=True):
    """A worker was given work of a stream, or under a recipe, that it does not know: an OpenStream was lost."""

    worker: str
    stream: str
    incarnation: int
    lease: int = 0
    """The lease, which it gives back; 0 where it was a probe."""


class StreamDeclined(Message, frozen=True, kw_only=True):
    """A stream's leases and probes given back, since this worker has not its source or plug-in, or has another one: it
    gets no more of that stream until it joins again."""

    worker: str
    stream: str
    incarnation: int
    problems: tuple[Location, ...]


class StreamBroken(Message, frozen=True, kw_only=True):
    """What neither a retry nor another worker mends, such as a chain whose output shape changes; ends the stream."""

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


# dispatcher -> trainer


class Registered(Message, frozen=True, kw_only=True):
    """The stream is known here, with the timeline of this revision."""

    stream: str
    incarnation: int
    revision: int = 0


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
    unleased_step: int = 0
    """The first batch of which no slice was leased when this was sent: a swap from there on wastes no work."""


class SwapAsked(Message, frozen=True, kw_only=True):
    """An operator wants another chain; repeating an operation is harmless."""

    stream: str
    incarnation: int
    operation: str
    chain: Chain | None = None
    """None: the recipe before the present one."""
    at_step: int | None = None
    """The boundary; None: as soon as possible."""


class StopAsked(Message, frozen=True, kw_only=True):
    """An operator wants the run to stop: finish the step, write a checkpoint, end."""

    stream: str
    incarnation: int
    operation: str


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
    able_workers: int
    """Those of them that have the stream's source and have not declined the stream."""
    sources: tuple[str, ...]
    """All that connected workers have."""
    idle_workers: int
    waiting_slices: int
    leased_slices: int
    note: str = ""
    """The last thing that went wrong, such as a worker's death."""
    fingerprint: str = ""
    """Of the workers admitted here, "" before the first."""
    declined: str = ""
    """Why a worker with the stream's source declined the stream, "" if none did."""


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


class Dismissed(Message, frozen=True, kw_only=True):
    """A leaving worker's last slice has arrived; it may end."""

    worker: str


class Refused(Message, frozen=True, kw_only=True):
    """The worker can't be admitted, and why; it ends."""

    worker: str
    cause: str


TrainerMessage = Register | StreamBeat | AskProbe | StreamGoodbye | OperationAnswer
GivenBack = SliceFailed | ProbeFailed | AskStream | StreamDeclined | StreamBroken
WorkerMessage = Join | WorkerBeat | Leaving | ProbeAnswer | GivenBack | WorkerDied
ToTrainer = Registered | RegisterAgain | Probed | SamplesLost | StreamFailed | ServiceState | SwapAsked | StopAsked
ToWorker = OpenStream | CloseStream | Granted | Probe | JoinAgain | Dismissed | Refused
AnyMessage = TrainerMessage | WorkerMessage | ToTrainer | ToWorker | OperatorMessage | ToOperator | PoolBeat | ToPool
