"""One service of ours as a process: started by its own command, with the end of its log kept.

In:  a command and its arguments.
Out: a process in a session of its own; how it ended; its last words.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import IO

from headrace._house import ROOT

LOG_TAIL_LINES = 15
LOG_LINE_NBYTES = 4096
REAP_TIMEOUT_S = 5.0


class ServiceProcess:
    """`headrace COMMAND` and whatever it starts; none of them outlives `kill`."""

    def __init__(self, command: str, arguments: list[str], lifeline_fd: int, tail: deque[bytes]) -> None:
        environment = dict(os.environ)
        # -P: without the current folder on sys.path, where a user may have a `trainer/`; so ours is named.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "headrace", command, *arguments, "--lifeline", str(lifeline_fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[lifeline_fd],
            start_new_session=True,  # Ctrl-C in the terminal is for the trainer; it ends them
            env=environment,
        )
        self.pid = self._process.pid
        # Only its last lines are kept: a plug-in that prints for days must fill neither disk nor memory.
        self._reader = threading.Thread(
            target=_keep_tail, args=(self._process.stdout, tail), name=f"log of {command}", daemon=True
        )
        self._reader.start()

    def has_ended(self) -> bool:
        """True once its process is dead; what it started may still live."""
        # Not reaped here: until then nobody else can have its pid, which is its group's number too.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, timeout_s: float) -> None:
        """Give it time to end by itself, and its last words time to arrive."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def kill(self) -> str:
        """End it with all that it started; how it ended, in words."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # its session, workers included
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds it, in a read that does not end
            self._process.wait(REAP_TIMEOUT_S)
        self._reader.join(timeout=1.0)  # at once: the last writer is dead
        code = self._process.returncode
        if code is None:
            return "could not be killed"
        return f"ended with signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative for a signal."""
        return self._process.returncode


def _keep_tail(stream: IO[bytes], tail: deque[bytes]) -> None:
    with stream:
        while line := stream.readline(LOG_LINE_NBYTES):
            tail.append(line)
