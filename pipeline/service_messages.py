"""Messages of operators and pools: status, scale, swap, stop. What streams need stands in `pipeline/messages.py`.

In and out: nothing; plain records. An operator (`headrace status`, `scale`, `swap`, `stop`) asks again every half a
second, with the same operation id, until it has its answer; repeating an operation is harmless.
"""

from __future__ import annotations

import msgspec

from pipeline.message import Location, Message
from pipeline.recipe import Chain
from pipeline.timeline import TimelineEntry

# operator -> dispatcher


class AskStatus(Message, frozen=True, kw_only=True):
    """What is going on?"""

    operation: str


class AskScale(Message, frozen=True, kw_only=True):
    """A pool is to have this many workers."""

    operation: str
    pool: str = ""
    """The pool's name; "": the only one."""
    num_workers: int = 0
    """0 with `automatic`: as the pool sees fit."""
    automatic: bool = False
    """True: grow while trainers wait and shrink while workers idle, within the pool's bounds."""


class AskSwap(Message, frozen=True, kw_only=True):
    """A stream is to use another chain."""

    operation: str
    stream: str = ""
    """The train stream's name; "": the only one."""
    chain: Chain | None = None
    """None: the recipe before the present one."""
    at_step: int | None = None
    """The boundary; None: as soon as possible."""


class AskStop(Message, frozen=True, kw_only=True):
    """A run is to stop: finish its step, write a checkpoint, end."""

    operation: str
    stream: str = ""
    """As in AskSwap."""


# dispatcher -> operator


class Answer(Message, frozen=True, kw_only=True):
    """What became of an operation."""

    operation: str
    done: bool
    text: str
    problems: tuple[Location, ...] = ()


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, as the dispatcher sees it."""

    worker: str
    pool: str
    host: str
    pid: int
    sources: tuple[str, ...]
    num_in_hand: int
    """Leases it has now."""
    num_delivered: int
    """Slices of it that arrived."""
    slices_per_s: float
    """Over the last ten seconds or so."""
    silent_s: float
    """Since its last beat."""
    is_leaving: bool = False


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A pool, as its last beat and the dispatcher's clock tell."""

    pool: str
    host: str
    pid: int
    size: int
    """Workers it is to have."""
    num_running: int
    min_workers: int
    max_workers: int
    automatic: bool
    num_restarts: int
    """Workers that died and were replaced."""
    silent_s: float


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a trainer tells of its stream, for people."""

    job: str
    run_folder: str
    num_steps: int
    epoch: int
    position: int
    """First position of the head batch."""
    samples_per_s: float
    """Over the last ten seconds or so."""
    waited_fraction: float
    """Share of that time in which the training loop waited for data."""
    limit: str
    """What limits the rate: workers, window, trainer, source; "" if unknown yet."""
    recipe: str
    chain: str
    """The file that the head batch's chain came from."""
    timeline: tuple[TimelineEntry, ...]
    """The entry before the present one, and what comes next; not all, however often a run was swapped."""
    num_bad_samples: int
    """Different ones, in all attempts."""
    num_entries: int = 0
    """Of the whole timeline."""
    num_bad_met: int = 0
    """How often they were met and replaced: most of them once an epoch."""
    notes: tuple[str, ...] = ()
    """The last things that a user should know, newest last: refused swaps, missing workers."""


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A stream, as the dispatcher sees it, with its trainer's last report."""

    stream: str
    incarnation: int
    source: str
    head_step: int
    window: int
    num_waiting: int
    num_leased: int
    num_hedged: int
    """Leases given twice so far, because the first was late."""
    silent_s: float
    report: StreamReport | None = None


class Status(Message, frozen=True, kw_only=True):
    """The answer to AskStatus."""

    operation: str
    pid: int
    up_s: float
    num_refused_messages: int
    note: str
    """The last thing that went wrong."""
    workers: tuple[WorkerStatus, ...] = ()
    pools: tuple[PoolStatus, ...] = ()
    streams: tuple[StreamStatus, ...] = ()


# pool -> dispatcher


class PoolBeat(Message, frozen=True, kw_only=True):
    """A pool and all its workers, once a second: a worker that joined as this pool's and is not named is dead."""

    pool: str
    """Kept by a pool that is started again in the place of a dead one."""
    host: str
    pid: int
    started_ns: int
    """When this process began (nanoseconds since 1970): beats of an earlier one are void."""
    number: int
    """Rises with each beat; an older one is ignored."""
    size: int
    min_workers: int
    max_workers: int
    automatic: bool
    num_restarts: int
    workers: tuple[str, ...]
    """All whose process has not ended, those that have not joined yet included."""


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
    """The sample it was working on; -1 if none is known, -2 while it built a chain, -3 while it opened a source."""
    attempt: int = 0
    """0 if it was working on that sample itself, 1 on its first substitute, and so on."""
    probed: str = ""
    """The recipe, if what it was working on was a probe."""


# dispatcher -> pool


class Resize(Message, frozen=True, kw_only=True):
    """The pool is to have this size; sent again with each of its beats until it has."""

    pool: str
    size: int
    automatic: bool


class Condemned(Message, frozen=True, kw_only=True):
    """A worker of the pool was silent for too long and counts as dead: kill it and start another."""

    pool: str
    worker: str


OperatorMessage = AskStatus | AskScale | AskSwap | AskStop
ToOperator = Answer | Status
ToPool = Resize | Condemned
