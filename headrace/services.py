"""The private services of one job: a dispatcher and a pool, kept alive while the job lives.

In:  a job, how many workers.
Out: two running processes, started by their own commands and started again when they end or fall silent; their
     directory.
They end by themselves when this process does, however it ends: each holds one end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from headrace.service_process import LOG_TAIL_LINES, ServiceProcess
from headrace.vitals import Vitals
from pipeline.config_job import Job
from pipeline.contact import MAX_LOOK_GAP_S
from pipeline.errors import EXIT_FAILED, EXIT_USER_INPUT, RemoteProtocolError, RunFailed
from pipeline.forking import hold_no_more, let_go_in_children
from pipeline.job import worker_bounds
from pipeline.process_state import STOPPED, state_of
from pipeline.runtime_dir import RuntimeDir
from pipeline.service_messages import AskStatus, Status
from pipeline.transport import Context, Dealer, Poller, Waker
from pipeline.wire import decode_message, encode_message

END_TIMEOUT_S = 3.0
LOOK_S = 0.1
ASK_S = 1.0
FRESH_S = 2.5
"""Since the dispatcher's last answer; without one as young as this, nothing can be said of the pool."""

KILLED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
"""Exit codes that say nothing about what the next start will come to."""

Command = Literal["pipeline", "workers"]


@dataclass(slots=True)
class _Service:
    command: Command
    process: ServiceProcess | None = None
    """None between two lives."""
    vitals: Vitals = field(default_factory=Vitals)
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=LOG_TAIL_LINES))

    @property
    def name(self) -> str:
        return f"the job's own `headrace {self.command}`"

    def log_tail(self) -> str:
        lines = [line.decode(errors="replace").rstrip() for line in self.tail]
        return "\n".join(f"  {line}" for line in lines) or "  (it said nothing)"


class Services:
    """A dispatcher and a pool of workers that belong to this process; never more than one of each."""

    def __init__(
        self,
        job: Job,
        num_workers: int,
        *,
        automatic: bool = False,
        on_trouble: Callable[[str], None] = lambda text: None,
        on_scaled: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Told, in a thread of ours: `on_trouble`, which service ended and what was done; `on_scaled`, how many
        workers an operator has chosen."""
        self.directory = RuntimeDir.create()
        self.dispatcher = self.directory.endpoint("control")
        self._job = job
        self._pool = f"pool-{uuid.uuid4().hex[:8]}"
        self._size, self._automatic = num_workers, automatic
        least, most = worker_bounds(job.config)
        self._bounds = min(least, num_workers), max(most, num_workers)
        self._on_trouble, self._on_scaled = on_trouble, on_scaled
        self._lifeline_read_fd, self._lifeline_write_fd = os.pipe()
        self._services: dict[Command, _Service] = {name: _Service(name) for name in ("pipeline", "workers")}
        self._owner_pid = os.getpid()
        self._failure, self._exit_code = "", EXIT_FAILED
        self._ending = False
        self._lock = threading.Lock()
        """Held while a process is started or killed: after `end` none is started."""
        self._waker = Waker()
        self._watcher = threading.Thread(target=self._watch, name="services", daemon=True)
        self._heard_s = 0.0
        let_go_in_children(self)
        try:
            for service in self._services.values():
                self._start(service, time.monotonic())
            self._watcher.start()
        except BaseException:
            self.end()
            raise

    def check(self) -> None:
        """RunFailed, with the end of its log, if one of the services can't be kept alive."""
        if os.getpid() != self._owner_pid:
            raise forked_stream()
        if self._failure:
            failed = RunFailed(self._failure)
            failed.exit_code = self._exit_code
            raise failed

    def end(self) -> None:
        """End both and remove what they left, whatever fails; harmless when done twice."""
        if os.getpid() != self._owner_pid:
            return  # a forked child's copy: they are its parent's
        with self._lock:
            if self._ending:
                return
            self._ending = True
        hold_no_more(self)
        processes = [service.process for service in self._services.values() if service.process is not None]
        with contextlib.ExitStack() as last:  # in reverse, each though another fails
            last.callback(self.directory.remove)
            last.callback(self._waker.close)
            for process in processes:
                last.callback(process.kill)
            self._waker.wake()
            if self._watcher.is_alive():
                self._watcher.join(timeout=END_TIMEOUT_S)
            os.close(self._lifeline_write_fd)
            os.close(self._lifeline_read_fd)
            deadline_s = time.monotonic() + END_TIMEOUT_S
            for process in processes:
                process.wait(max(0.0, deadline_s - time.monotonic()))

    def let_go_in_child(self) -> None:
        """Close what a forked child must not hold: it would keep the services alive after this process's death."""
        os.close(self._lifeline_write_fd)
        self.directory.release()

    # the watcher's side

    def _watch(self) -> None:
        context = Context()
        try:
            dealer = context.dealer(self.dispatcher, f"watcher-{uuid.uuid4().hex[:8]}")
            self._keep_alive(dealer)
        except Exception:
            self._failure = f"the job's services are no longer watched\n{traceback.format_exc()}"
        finally:
            context.close()

    def _keep_alive(self, dealer: Dealer) -> None:
        poller = Poller()
        poller.add(dealer)
        poller.add(self._waker.read_fd)
        last_look_s, next_ask_s = time.monotonic(), 0.0
        while not self._ending and not self._failure:
            now_s = time.monotonic()
            if now_s - last_look_s > MAX_LOOK_GAP_S:  # we were stopped ourselves: nobody could be heard
                for service in self._services.values():
                    service.vitals.resumed(now_s)
            last_look_s = now_s
            while (frame := dealer.receive()) is not None:
                self._hear(frame, now_s)
            if now_s >= next_ask_s:
                next_ask_s = now_s + ASK_S
                dealer.send(encode_message(AskStatus(operation="watch")))
            self._look(self._services["pipeline"], now_s)
            if now_s - self._heard_s > FRESH_S:
                self._services["workers"].vitals.excused(now_s)
            self._look(self._services["workers"], now_s)
            poller.wait(LOOK_S)
            self._waker.clear()

    def _hear(self, frame: bytes, now_s: float) -> None:
        try:
            status = decode_message(frame)
        except RemoteProtocolError:
            return
        dispatcher, pool = self._services["pipeline"], self._services["workers"]
        if not isinstance(status, Status) or dispatcher.process is None or status.pid != dispatcher.process.pid:
            return
        self._heard_s = now_s
        dispatcher.vitals.seen(now_s)
        for told in status.pools:
            if told.pool == self._pool and pool.process is not None and told.pid == pool.process.pid:
                before, self._size, self._automatic = (self._size, self._automatic), told.size, told.automatic
                if text := scaled_text(before, (told.size, told.automatic)):
                    self._on_scaled(text)
                if told.silent_s < FRESH_S:
                    pool.vitals.seen(now_s)

    def _look(self, service: _Service, now_s: float) -> None:
        """Bury what has ended, kill what is silent, start what is missing."""
        if service.process is None:
            if now_s >= service.vitals.start_at_s:
                self._start(service, now_s)
            return
        if service.process.has_ended():
            by_itself = service.process.exit_code not in KILLED_FROM_OUTSIDE
            self._replace(service, now_s, "", by_itself=by_itself)
            return
        is_stopped = state_of(service.process.pid) == STOPPED
        if why := service.vitals.looked(now_s, is_stopped=is_stopped):
            self._replace(service, now_s, why, by_itself=not is_stopped)

    def _replace(self, service: _Service, now_s: float, why: str, *, by_itself: bool) -> None:
        with self._lock:
            if self._ending or service.process is None:
                return
            ended = service.process.kill()
            exit_code, service.process = service.process.exit_code, None
        service.vitals.ended(now_s, by_itself=by_itself)
        if exit_code == EXIT_USER_INPUT:  # another start would find the same
            self._exit_code = EXIT_USER_INPUT
            self._failure = f"{service.name} {ended}\n{service.log_tail()}"
            return
        if self._is_hopeless(service, ended):
            return
        done = "it was killed and is started again" if why else "it is started again"
        self._on_trouble(f"{service.name} {why or ended}; {done}")

    def _is_hopeless(self, service: _Service, ended: str) -> bool:
        if service.vitals.is_hopeless:
            self._failure = f"{service.name} {ended}; it was started again and again\n{service.log_tail()}"
        return service.vitals.is_hopeless

    def _start(self, service: _Service, now_s: float) -> None:
        arguments = ["--listen", self.dispatcher] if service.command == "pipeline" else self._pool_arguments()
        arguments += ["--runtime-dir", str(self.directory.path)]
        with self._lock:
            if self._ending:
                return
            service.vitals.started(now_s)
            try:
                service.process = ServiceProcess(service.command, arguments, self._lifeline_read_fd, service.tail)
                return
            except OSError as error:  # no more processes, no memory: that may pass
                why = f"could not be started: {error}"
        service.vitals.ended(now_s, by_itself=True)
        if not self._is_hopeless(service, why):
            self._on_trouble(f"{service.name} {why}; it is tried again")

    def _pool_arguments(self) -> list[str]:
        job, (least, most) = self._job, self._bounds
        arguments = ["--connect", self.dispatcher, "--name", self._pool, "--num", str(self._size)]
        arguments += ["--min", str(least), "--max", str(most), "--hang-s", str(job.config.hang_s)]
        arguments += ["--base", str(job.path.absolute().parent)]
        if self._automatic:
            arguments.append("--auto")
        for name, source in job.config.sources.items():
            arguments += ["--source", f"{name}={source.model_dump_json()}"]
        for plugin in job.config.plugins:
            arguments += ["--plugins", plugin]
        return arguments


def scaled_text(before: tuple[int, bool], now: tuple[int, bool]) -> str:
    """What an operator has changed of a pool's size and of whether it follows the load; "" if nothing.

    What an automatic pool does by itself is its everyday, and for `headrace status`.
    """
    (size, was_automatic), (new_size, is_automatic) = before, now
    if before == now or (was_automatic and is_automatic):
        return ""
    return f"workers: {_size_text(new_size, is_automatic)} now, {_size_text(size, was_automatic)} before"


def _size_text(size: int, is_automatic: bool) -> str:
    return f"{size} (auto)" if is_automatic else f"{size}"


def forked_stream() -> RunFailed:
    """What a process is told that was forked from the one that opened a stream."""
    return RunFailed(
        "this process was forked from the one that opened the stream, and a stream can't be shared\n"
        "  to go on: iterate in the process that opened it; a DataLoader around a stream is not needed"
    )
