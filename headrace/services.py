"""The private services of one job: a dispatcher and a pool, started by their own commands.

In:  a job, how many workers.
Out: two running processes, their directory, and what to look at when one of them ends.
They end by themselves when this process does, however it ends: each holds one end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from typing import IO

from headrace._house import ROOT
from pipeline.config_job import Job
from pipeline.errors import RunFailed
from pipeline.runtime_dir import RuntimeDir

END_TIMEOUT_S = 3.0
LOG_TAIL_LINES = 15
LOG_LINE_NBYTES = 4096

_in_use: weakref.WeakSet[Services] = weakref.WeakSet()


class Services:
    """A dispatcher and a pool of workers that belong to this process."""

    def __init__(self, job: Job, num_workers: int) -> None:
        self.directory = RuntimeDir.create()
        self.dispatcher = self.directory.endpoint("control")
        self._lifeline_read_fd, self._lifeline_write_fd = os.pipe()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tails: dict[str, deque[bytes]] = {}
        self._readers: list[threading.Thread] = []
        self._owner_pid = os.getpid()
        _in_use.add(self)
        try:
            self._start("pipeline", "--listen", self.dispatcher)
            self._start("workers", "--connect", self.dispatcher, *_worker_arguments(job, num_workers))
        except BaseException:
            self.end()
            raise

    def check(self) -> None:
        """RunFailed, with the end of its log, if one of the services has ended."""
        if os.getpid() != self._owner_pid:
            raise RunFailed(
                "this process was forked from the one that opened the stream, and a stream can't be shared\n"
                "  to go on: iterate in the process that opened it; a DataLoader around a stream is not needed"
            )
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                raise RunFailed(f"the job's own `headrace {name}` ended with {ended}\n{self._log_tail(name)}")

    def end(self) -> None:
        """End both and remove what they left."""
        if os.getpid() != self._owner_pid:
            return  # a forked child's copy: they are its parent's
        _in_use.discard(self)
        os.close(self._lifeline_write_fd)
        os.close(self._lifeline_read_fd)
        deadline_s = time.monotonic() + END_TIMEOUT_S
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session, workers included
            process.wait()
        for reader in self._readers:
            reader.join(timeout=1.0)  # at once: the last writer is dead
        self.directory.remove()

    def let_go_in_child(self) -> None:
        """Close what a forked child must not hold: it would keep the services alive after this process's death."""
        os.close(self._lifeline_write_fd)
        self.directory.release()

    def _start(self, command: str, *arguments: str) -> None:
        environment = dict(os.environ)
        # -P: without the current folder on sys.path, where a user may have a `trainer/`; so ours is named.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "headrace", command, *arguments),
                *("--lifeline", str(self._lifeline_read_fd), "--runtime-dir", str(self.directory.path)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[self._lifeline_read_fd],
            start_new_session=True,  # Ctrl-C in the terminal is for the trainer; it ends them
            env=environment,
        )
        self._processes[command] = process
        tail = self._tails[command] = deque(maxlen=LOG_TAIL_LINES)
        # Only its last lines are kept: a plug-in that prints for days must fill neither disk nor memory.
        reader = threading.Thread(target=_keep_tail, args=(process.stdout, tail), name=f"log of {command}", daemon=True)
        reader.start()
        self._readers.append(reader)

    def _log_tail(self, command: str) -> str:
        lines = [line.decode(errors="replace").rstrip() for line in self._tails[command]]
        return "\n".join(f"  {line}" for line in lines) or "  (it said nothing)"


def _keep_tail(stream: IO[bytes], tail: deque[bytes]) -> None:
    with stream:
        while line := stream.readline(LOG_LINE_NBYTES):
            tail.append(line)


def _let_go_in_child() -> None:
    for services in list(_in_use):
        services.let_go_in_child()


# A user's DataLoader or multiprocessing may fork this process at any time.
os.register_at_fork(after_in_child=_let_go_in_child)


def _worker_arguments(job: Job, num_workers: int) -> list[str]:
    arguments = ["--num", str(num_workers), "--hang-s", str(job.config.hang_s)]
    arguments += ["--base", str(job.path.absolute().parent)]
    for name, source in job.config.sources.items():
        arguments += ["--source", f"{name}={source.model_dump_json()}"]
    for plugin in job.config.plugins:
        arguments += ["--plugins", plugin]
    return arguments
