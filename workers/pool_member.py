"""A pool's member: one worker process, what it was doing, and how it ended.

In:  a worker's configuration.
Out: its process; after its end, the cause in words a user can act on.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline.errors import EXIT_USER_INPUT
from pipeline.lease_events import BUILDING, IDLE, OPENING
from pipeline.probes import DEFAULT_HANG_S, PROBE_S, PROBE_SAMPLE_S
from pipeline.process_state import signal_name
from workers.progress import Progress, ProgressSlot
from workers.worker_config import REFUSAL, WorkerConfig
from workers.worker_process import run_worker

OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that say nothing about the sample in work."""
FORK_SERVER_LOST = 255
"""What multiprocessing reports for a worker whose fork server was killed, and it with it."""
MAX_TRACE_FRAMES = 3
OPEN_S = 1800.0
"""Seconds in which a source must be open, or its worker is killed: `hang_s` would be too little for a first index. A
million files at 1 ms each, over a network, take 17 minutes; killed in the middle, the next worker begins anew, so the
pool doubles this with each kill. Chosen, not measured."""
_MAKERS = (os.path.join("workers", "produce.py"), os.path.join("workers", "streams.py"))
"""The files that samples are made in, and chains and sources called from, as they end in a traceback's frames."""
_HUNG = {BUILDING: "no progress in building its chain", OPENING: "no progress in opening its source"}

forkserver = multiprocessing.get_context("forkserver")


@dataclass(slots=True)
class Member:
    """A worker process; `exitcode` is None while it lives."""

    process: ForkServerProcess
    config: WorkerConfig
    progress: ProgressSlot
    counter: int = -1
    counter_since_s: float = 0.0
    hung_s: float = 0.0
    """How long it made no progress when it was killed for that; 0 if it was not."""
    leave_by_s: float = math.inf
    """When a member that was asked to leave is killed; infinite for one that stays."""

    @property
    def is_leaving(self) -> bool:
        return self.leave_by_s < math.inf

    @property
    def left_in_peace(self) -> bool:
        """It ended because it was asked to, and had nothing in hand that is to blame."""
        # By SIGTERM: it had not begun to listen yet. By SIGKILL: its time was up.
        return self.is_leaving and self.process.exitcode in (0, -signal.SIGTERM, -signal.SIGKILL)

    @property
    def ended_by_itself(self) -> bool:
        """A crash or a hang, and no signal from outside; who opens a source for too long may only have been slow."""
        outside = (0, FORK_SERVER_LOST, *(-number for number in OUTSIDE_SIGNALS))
        return (self.hung_s > 0 and not self.is_opening) or self.process.exitcode not in outside

    @property
    def is_opening(self) -> bool:
        """Opening a source is what it does, or did last."""
        return self.progress.read().position == OPENING

    def leave(self, by_s: float) -> None:
        """Ask it to finish what it has in hand and end."""
        self.leave_by_s = by_s
        self.process.terminate()

    def kill_if_hung(self, now_s: float, hang_s: float, open_s: float) -> None:
        """Kill it, with its Python frames written, if its counter has stood still on one piece of work for too long."""
        last = self.progress.read()
        limit_s = _limit_s(last, hang_s, open_s)
        if last.counter != self.counter or last.position == IDLE:
            self.counter, self.counter_since_s = last.counter, now_s
        elif now_s - self.counter_since_s > limit_s and not self.hung_s:
            self.hung_s = limit_s
            pid = self.process.pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):  # it may just have died
                os.kill(pid, signal.SIGUSR1)  # writes the Python frames
                time.sleep(0.1)
            self.process.kill()

    def cause(self) -> str:
        """Why it ended, with the innermost frames if it left any."""
        exitcode = self.process.exitcode
        if refusal := self.refusal():
            return refusal
        if self.hung_s:
            what = f"hung: {_HUNG.get(self.progress.read().position, 'no progress')} for {self.hung_s:g} s"
        elif self.left_in_peace:
            what = "left in peace"
        elif exitcode == FORK_SERVER_LOST:
            what = "killed with its fork server, or ended with exit code 255"
        elif exitcode is not None and exitcode < 0:
            what = f"killed by {signal_name(-exitcode)}"
        else:
            what = f"ended with exit code {exitcode}"
        frames = _trace_frames(self.config.trace_path)
        return f"{what} in {frames}" if frames else what

    def refusal(self) -> str:
        """Why it could not even begin, in the words of what the user wrote wrongly; "" if that is not how it ended."""
        if self.process.exitcode != EXIT_USER_INPUT:
            return ""
        text = _read(self.config.trace_path)
        return text.removeprefix(REFUSAL) if text.startswith(REFUSAL) else ""

    def remove(self) -> None:
        """Release the process and its files."""
        self.progress.close()
        self.process.close()
        remove_files(self.config)


def start_member(config: WorkerConfig, now_s: float) -> Member:
    """A new worker process; EOFError or OSError if the fork server ended meanwhile."""
    process = forkserver.Process(target=run_worker, args=(config,), name=config.name, daemon=True)
    # Before the worker: one that dies at once must read as idle, not as at work on position 0.
    progress = ProgressSlot(config.progress_path)
    progress.start()
    try:
        process.start()
    except BaseException:
        progress.close()
        remove_files(config)
        raise
    return Member(process, config, progress, counter_since_s=now_s)


def remove_files(config: WorkerConfig) -> None:
    """Delete what a worker leaves in its pool's directory."""
    for path in (config.progress_path, config.trace_path):
        path.unlink(missing_ok=True)


def _limit_s(last: Progress, hang_s: float, open_s: float) -> float:
    """How long its counter may stand still; a probe has less time, since everybody waits for it, unless hang_s was
    raised."""
    if last.position == OPENING:
        return max(hang_s, open_s)
    if not last.probed or hang_s > DEFAULT_HANG_S:
        return hang_s
    return min(hang_s, PROBE_S if last.position == BUILDING else PROBE_SAMPLE_S)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _trace_frames(path: Path) -> str:
    """The innermost Python frames of the main thread, as faulthandler wrote them."""
    blocks: list[list[str]] = []
    for line in _read(path).splitlines():
        if line.startswith(("Thread", "Current thread")):
            blocks.append([])
        elif blocks and line.startswith("  File "):
            blocks[-1].append(line.strip().removeprefix("File "))
    # The control thread never makes samples; the thread that does has one of `_MAKERS` among its frames.
    making = next((block for block in blocks if any(map(_is_maker, block))), [])
    # What was called from there tells the user more than how we got there; with nothing called, that place itself.
    called = making[: next((at for at, frame in enumerate(making) if _is_maker(frame)), 0)]
    return " < ".join(frame.replace('"', "") for frame in (called or making)[:MAX_TRACE_FRAMES])


def _is_maker(frame: str) -> bool:
    return any(maker in frame for maker in _MAKERS)
