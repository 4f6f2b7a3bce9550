"""A pool: keeps N workers alive on this host.

In:  a dispatcher's address, sources, how many workers; Resize and Condemned from the dispatcher.
Out: worker processes; a WorkerDied message for each that ends, with the sample it was working on.
Workers are forked from a server process that has imported albumentations already, so one starts in 20 to 70 ms.
The pool itself never imports albumentations and never makes a slice.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import util
from pathlib import Path
from typing import Protocol

from pipeline.errors import EXIT_USER_INPUT, HeadraceError, RunFailed
from pipeline.job import SourceConfig
from pipeline.messages import AnyMessage
from pipeline.service_messages import Condemned, PoolBeat, Resize, WorkerDied
from pipeline.stop_signals import StopSignals
from pipeline.transport import Poller
from workers.environment import worker_environment
from workers.fork_server import kill_fork_server, preload
from workers.pool_member import OPEN_S, Member, start_member
from workers.pool_voice import Voice
from workers.worker_config import WorkerConfig

LOOK_S = 0.25
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 10.0
MAX_LOOK_GAP_S = 4 * LOOK_S
"""Between two looks; after more, the pool itself was stopped (SIGSTOP, a suspended machine), and so were its workers'
clocks, as far as it can tell."""
END_GRACE_S = 1.0
"""For killed workers to be dead."""
LEAVE_S = 12.0
"""For a worker to leave: a little more than it takes itself (workers/control.py), then it is killed."""
LEAVE_ALL_S = 5.0
"""The same for all, when the pool is asked to end: whoever asked waits for it."""

log = logging.getLogger("headrace.pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """All a pool needs to know."""

    name: str
    connect: str
    num_workers: int
    """To begin with."""
    min_workers: int = 1
    max_workers: int
    automatic: bool = False
    """The dispatcher chooses the number."""
    sources: Mapping[str, SourceConfig]
    plugins: tuple[str, ...]
    base: Path
    hang_s: float
    directory: Path
    """A private directory for the workers' small files."""


class WorkersRefused(HeadraceError):
    """No worker can begin, for what the user wrote; the text says what."""

    exit_code = EXIT_USER_INPUT


class Says(Protocol):
    """A pool's voice, as far as the pool uses it."""

    def say(self, message: AnyMessage) -> None:
        """Send a message to the dispatcher."""

    def beat_now(self) -> None:
        """Have the dispatcher hear of a change at once."""


@dataclass(slots=True)
class Pool:
    """`look` starts what is missing, buries what died, kills what hangs or does not leave."""

    config: PoolConfig
    poller: Poller
    voice: Says
    size: int = 0
    automatic: bool = False
    num_restarts: int = 0
    names: tuple[str, ...] = ()
    """Of all workers, one that is just being started included; read by the voice's thread."""
    members: dict[str, Member] = field(default_factory=dict)
    """Oldest first."""
    has_begun: bool = False
    """One worker had all that it needs, so that the next may, too."""
    backoff_s: float = 0.0
    start_after_s: float = 0.0
    last_look_s: float = math.inf
    open_s: float = OPEN_S
    """Twice as long after each worker that was killed for it, so that what is slow and not hung is done in the end."""
    started_ns: int = field(default_factory=time.time_ns)

    def __post_init__(self) -> None:
        self.size, self.automatic = self.config.num_workers, self.config.automatic

    def look(self, now_s: float) -> None:
        """Bring the pool to its size; call often. WorkersRefused, RunFailed if no worker can ever be started."""
        if now_s - self.last_look_s > MAX_LOOK_GAP_S:
            for member in self.members.values():
                member.counter_since_s = now_s
        self.last_look_s = now_s
        for name, member in list(self.members.items()):
            if member.process.exitcode is not None:
                self._bury(name, member, now_s)
            elif now_s > member.leave_by_s:
                member.process.kill()
            else:
                member.kill_if_hung(now_s, self.config.hang_s, self.open_s)
        staying = [member for member in self.members.values() if not member.is_leaving]
        for member in staying[self.size :]:  # the youngest: they have the least in memory
            log.info("action=ask_to_leave worker=%s", member.config.name)
            member.leave(now_s + LEAVE_S)
        for _ in range(len(staying), self.size):
            if now_s >= self.start_after_s:
                self._start(now_s)

    def obey(self, message: Resize | Condemned) -> None:
        """Do what the dispatcher wants; `look` carries it out."""
        match message:
            case Resize():
                before = self.size, self.automatic
                self.automatic = message.automatic
                if message.size:  # 0: as many as there are
                    self.size = min(max(message.size, self.config.min_workers), self.config.max_workers)
                if before == (self.size, self.automatic):
                    return  # the answer to each beat: a beat in answer to it would never end
                log.info("action=resize size=%d automatic=%s", self.size, self.automatic)
            case Condemned() if message.worker in self.members:
                log.warning("action=kill_condemned worker=%s", message.worker)
                self.members[message.worker].process.kill()
        self.voice.beat_now()

    def beat(self, number: int) -> PoolBeat:
        """What the dispatcher is told each second; called in the voice's thread."""
        return PoolBeat(
            pool=self.config.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ns=self.started_ns,
            number=number,
            size=self.size,
            min_workers=self.config.min_workers,
            max_workers=self.config.max_workers,
            automatic=self.automatic,
            num_restarts=self.num_restarts,
            workers=self.names,
        )

    def leave(self, now_s: float) -> None:
        """Ask every worker to leave, and start none."""
        self.size = 0
        for member in self.members.values():
            member.leave(now_s + LEAVE_ALL_S)
        self.voice.beat_now()

    def end(self) -> None:
        """Kill every worker, and say so."""
        for member in self.members.values():
            member.process.kill()
        deadline_s = time.monotonic() + END_GRACE_S
        for name, member in self.members.items():
            member.process.join(max(0.0, deadline_s - time.monotonic()))
            if member.process.exitcode is None:
                kill_fork_server()  # it is stopped, or it would have told of the end; Python would wait for it at exit
            # Unsaid, the dispatcher would wait for them, and in the end blame the slices they held.
            self.voice.say(WorkerDied(worker=name, cause="its pool ended", by_itself=False, in_peace=True))

    def _start(self, now_s: float) -> None:
        name = f"worker-{uuid.uuid4().hex[:8]}"
        config = WorkerConfig(
            name=name,
            pool=self.config.name,
            connect=self.config.connect,
            sources=self.config.sources,
            plugins=self.config.plugins,
            base=self.config.base,
            progress_path=self.config.directory / f"{name}.progress",
            trace_path=self.config.directory / f"{name}.trace",
        )
        self.names = (*self.members, name)  # before it can join: one that its pool does not name counts as dead
        try:
            member = start_member(config, now_s)
        except (EOFError, OSError) as error:
            log.warning("action=start_failed worker=%s error=%r", name, error)
            if not self.config.directory.exists():
                raise RunFailed(f"the pool's directory {self.config.directory} was removed while it ran") from error
            self._back_off(now_s)
            self._members_changed()
            return
        self.members[name] = member
        self.poller.add(member.process.sentinel)
        self._members_changed()
        log.info("action=start worker=%s pid=%s", name, member.process.pid)

    def _bury(self, name: str, member: Member, now_s: float) -> None:
        last = member.progress.read()
        cause = member.cause()
        if member.is_opening:
            self.open_s = max(self.open_s, 2 * member.hung_s)
        self.voice.say(
            WorkerDied(
                worker=name,
                cause=cause,
                by_itself=member.ended_by_itself,
                in_peace=member.left_in_peace,
                stream=last.stream,
                incarnation=last.incarnation,
                position=last.position,
                attempt=last.attempt,
                probed=last.probed,
            )
        )
        level = logging.INFO if member.left_in_peace else logging.WARNING
        log.log(level, "action=worker_died worker=%s cause=%s position=%d", name, cause, last.position)
        if not member.is_leaving:
            self.num_restarts += 1
            # Only a worker that never delivered anything tells of a fault that a new one would meet at once.
            if last.num_delivered:
                self.backoff_s, self.start_after_s = 0.0, now_s
            else:
                self._back_off(now_s)
        self.has_begun = self.has_begun or last.has_begun
        refusal = member.refusal()
        self.poller.remove(member.process.sentinel)
        member.remove()
        del self.members[name]
        self._members_changed()
        if refusal and not self.has_begun:
            raise WorkersRefused(refusal)

    def _back_off(self, now_s: float) -> None:
        self.backoff_s = min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * self.backoff_s))
        self.start_after_s = now_s + self.backoff_s

    def _members_changed(self) -> None:
        self.names = tuple(self.members)
        self.voice.beat_now()


def run_pool(
    config: PoolConfig,
    *,
    lifeline_fd: int | None = None,
    stop: StopSignals | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Keep the pool's workers alive until it is asked to stop, when they leave in peace, or its lifeline is cut.

    A second request, and a cut lifeline, end it at once: nobody needs the slices then.
    """
    # Ignored, as it may be inherited, the end of a fork server could not be told, and no other would be started.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(worker_environment())
    # The fork server's socket goes with the directory; Python may have chosen another one already.
    os.environ["TMPDIR"] = tempfile.tempdir = str(config.directory)
    preload(config.plugins, config.base)
    poller = Poller()
    pool: Pool | None = None

    def beat(number: int) -> PoolBeat:
        assert pool is not None
        return pool.beat(number)

    voice = Voice(config.connect, config.name, beat, tell)
    pool = Pool(config, poller, voice)
    voice.start()
    for source in (voice.news.read_fd, lifeline_fd, stop.fd if stop else None):
        if source is not None:
            poller.add(source)
    try:
        while stop is None or stop.num_asked == 0:
            _take_wishes(pool, voice)
            pool.look(time.monotonic())
            if lifeline_fd in poller.wait(LOOK_S):
                return
        # Without a dispatcher nobody dismisses them.
        if voice.contact.has_heard and not voice.contact.is_waiting:
            pool.leave(time.monotonic())
        while pool.members and pool.size == 0 and stop.num_asked == 1:
            pool.look(time.monotonic())
            stop.clear()
            if lifeline_fd in poller.wait(LOOK_S):
                return
    finally:
        pool.end()
        voice.end()
        # What Python does at its exit, where it would miss the directory, which is removed by then, with a traceback.
        util._exit_function()  # type: ignore[attr-defined]


def _take_wishes(pool: Pool, voice: Voice) -> None:
    voice.news.clear()
    while not voice.inbox.empty():
        pool.obey(voice.inbox.get())
