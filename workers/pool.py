"""A pool: keeps N workers alive on this host.

In:  a dispatcher's address, sources, how many workers.
Out: worker processes; a WorkerDied message for each that ends, with the sample it was working on.
Workers are forked from a server process that has imported albumentations already, so one starts in 20 to 70 ms.
The pool itself never imports albumentations and never makes a slice.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.job import SourceConfig
from pipeline.messages import WorkerDied
from pipeline.transport import Context, Dealer, Poller
from pipeline.wire import encode_message
from workers.environment import worker_environment
from workers.progress import IDLE, ProgressSlot
from workers.worker_config import WorkerConfig
from workers.worker_process import run_worker

LOOK_S = 0.25
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 10.0
END_GRACE_S = 1.0
GOODBYE_S = 0.2
"""Waited at the end until the dispatcher, if there still is one, was told; sending takes a millisecond."""
MAX_LOOK_GAP_S = 4 * LOOK_S
"""Between two looks; after more, the pool itself was stopped (SIGSTOP, a suspended machine), and so were its workers'
clocks, as far as it can tell."""
OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that say nothing about the sample in work."""
FORK_SERVER_LOST = 255
"""What multiprocessing reports for a worker whose fork server was killed, and it with it."""
MAX_TRACE_FRAMES = 3
_MAKER = os.path.join("workers", "produce.py")
"""The file all samples are made in, as it ends in a traceback's frames."""

log = logging.getLogger("headrace.pool")
_forkserver = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """All a pool needs to know."""

    connect: str
    num_workers: int
    sources: Mapping[str, SourceConfig]
    plugins: tuple[str, ...]
    base: Path
    hang_s: float
    directory: Path
    """A private directory for the workers' small files."""


@dataclass(slots=True)
class _Member:
    process: ForkServerProcess
    config: WorkerConfig
    progress: ProgressSlot
    counter: int = -1
    counter_since_s: float = 0.0
    hung: bool = False


@dataclass(slots=True)
class Pool:
    """`look` starts what is missing, buries what died and kills what hangs."""

    config: PoolConfig
    dealer: Dealer
    poller: Poller
    members: dict[str, _Member] = field(default_factory=dict)
    backoff_s: float = 0.0
    start_after_s: float = 0.0
    last_look_s: float = math.inf

    def look(self, now_s: float) -> None:
        """Bring the pool to its size; call often."""
        if now_s - self.last_look_s > MAX_LOOK_GAP_S:
            for member in self.members.values():
                member.counter_since_s = now_s
        self.last_look_s = now_s
        for name, member in list(self.members.items()):
            if member.process.exitcode is not None:
                self._bury(name, member, now_s)
            else:
                self._kill_if_hung(member, now_s)
        while len(self.members) < self.config.num_workers and now_s >= self.start_after_s:
            self._start()

    def end(self) -> None:
        """Stop every worker, and say so; those that don't end in time are killed."""
        for member in self.members.values():
            member.process.terminate()
        deadline_s = time.monotonic() + END_GRACE_S
        for member in self.members.values():
            member.process.join(max(0.0, deadline_s - time.monotonic()))
            if member.process.exitcode is None:
                member.process.kill()
                member.process.join()
        # Unsaid, the dispatcher would wait for them, and in the end blame the slices they held.
        for name in self.members:
            self.dealer.send(
                encode_message(WorkerDied(worker=name, cause="its pool ended", by_itself=False, in_peace=True))
            )
        self.dealer.close_when_sent(GOODBYE_S)

    def _start(self) -> None:
        name = f"worker-{uuid.uuid4().hex[:8]}"
        config = WorkerConfig(
            name=name,
            connect=self.config.connect,
            sources=self.config.sources,
            plugins=self.config.plugins,
            base=self.config.base,
            progress_path=self.config.directory / f"{name}.progress",
            trace_path=self.config.directory / f"{name}.trace",
        )
        process = _forkserver.Process(target=run_worker, args=(config,), name=name, daemon=True)
        # Before the worker: one that dies at once must read as idle, not as at work on position 0.
        progress = ProgressSlot(config.progress_path)
        progress.start()
        process.start()
        self.members[name] = _Member(process, config, progress, counter_since_s=time.monotonic())
        self.poller.add(process.sentinel)
        log.info("action=start worker=%s pid=%s", name, process.pid)

    def _bury(self, name: str, member: _Member, now_s: float) -> None:
        last = member.progress.read()
        exitcode = member.process.exitcode
        cause = _cause(exitcode, member, self.config.hang_s)
        message = WorkerDied(
            worker=name,
            cause=cause,
            by_itself=member.hung or not _ended_from_outside(exitcode),
            stream=last.stream,
            incarnation=last.incarnation,
            position=last.position,
        )
        self.dealer.send(encode_message(message))
        log.warning("action=worker_died worker=%s cause=%s position=%d", name, cause, last.position)
        # Only a worker that never delivered anything tells of a fault that a new one would meet at once.
        self.backoff_s = 0.0 if last.num_delivered else min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * self.backoff_s))
        self.start_after_s = now_s + self.backoff_s
        self.poller.remove(member.process.sentinel)
        member.progress.close()
        member.process.close()
        for path in (member.config.progress_path, member.config.trace_path):
            path.unlink(missing_ok=True)
        del self.members[name]

    def _kill_if_hung(self, member: _Member, now_s: float) -> None:
        last = member.progress.read()
        if last.counter != member.counter or last.position == IDLE:
            member.counter, member.counter_since_s = last.counter, now_s
        elif now_s - member.counter_since_s > self.config.hang_s and not member.hung:
            member.hung = True
            pid = member.process.pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):  # it may just have died
                os.kill(pid, signal.SIGUSR1)  # writes the Python frames
                time.sleep(0.1)
            member.process.kill()


def run_pool(config: PoolConfig, lifeline_fd: int | None = None) -> None:
    """Keep the pool's workers alive until the lifeline's other end is closed, or for ever without one."""
    os.environ.update(worker_environment())
    os.environ["TMPDIR"] = str(config.directory)  # the fork server's socket goes with the directory
    _forkserver.set_forkserver_preload(["workers.preload"])
    context = Context()
    poller = Poller()
    pool = Pool(config, context.dealer(config.connect, f"pool-{uuid.uuid4().hex[:8]}"), poller)
    if lifeline_fd is not None:
        poller.add(lifeline_fd)
    try:
        while True:
            pool.look(time.monotonic())
            if lifeline_fd in poller.wait(LOOK_S):
                return
    finally:
        pool.end()
        context.close()


def _ended_from_outside(exitcode: int | None) -> bool:
    return exitcode in (0, FORK_SERVER_LOST, *(-number for number in OUTSIDE_SIGNALS))


def _cause(exitcode: int | None, member: _Member, hang_s: float) -> str:
    if member.hung:
        what = f"hung: no progress for {hang_s:g} s"
    elif exitcode == FORK_SERVER_LOST:
        what = "killed with its fork server, or ended with exit code 255"
    elif exitcode is not None and exitcode < 0:
        what = f"killed by {signal.Signals(-exitcode).name}"
    else:
        what = f"ended with exit code {exitcode}"
    frames = _trace_frames(member.config.trace_path)
    return f"{what} in {frames}" if frames else what


def _trace_frames(path: Path) -> str:
    """The innermost Python frames of the main thread, as faulthandler wrote them."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    blocks: list[list[str]] = []
    for line in lines:
        if line.startswith(("Thread", "Current thread")):
            blocks.append([])
        elif blocks and line.startswith("  File "):
            blocks[-1].append(line.strip().removeprefix("File "))
    # The control thread never makes samples; the thread that does has `produce.py` among its frames.
    making = next((block for block in blocks if any(_MAKER in frame for frame in block)), [])
    # What was called from there tells the user more than how we got there; with nothing called, that place itself.
    called = making[: next((at for at, frame in enumerate(making) if _MAKER in frame), 0)]
    return " < ".join(frame.replace('"', "") for frame in (called or making)[:MAX_TRACE_FRAMES])
