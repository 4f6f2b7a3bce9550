"""One service of ours as a process: started by its own command, with the end of its log kept.

In:  a command and its arguments.
Out: a process that leads a group of its own; how it ended; its last words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from collections import deque
from typing import IO

from headrace._house import house_command, house_environment
from pipeline.process_state import signal_name

LOG_TAIL_LINES = 15
LOG_LINE_NBYTES = 4096
REAP_TIMEOUT_S = 5.0
LOOK_S = 0.01


class ServiceProcess:
    """`headrace COMMAND` and whatever it starts; none of them outlives `kill`."""

    def __init__(self, command: str, arguments: list[str], lifeline_fd: int, tail: deque[bytes]) -> None:
        """OSError if it can't be started now."""
        self._process = subprocess.Popen(
            house_command("headrace", command, *arguments, "--lifeline", str(lifeline_fd)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[lifeline_fd],
            # Ctrl-C in the terminal is for the trainer; it ends them. No session of its own: thus the kernel wakes and
            # ends a group that is stopped when the trainer dies, and could not see its lifeline cut.
            process_group=0,
            env=house_environment(),
        )
        self.pid = self._process.pid
        self._is_taken = False
        """Somebody else has reaped it."""
        # Only its last lines are kept: a plug-in that prints for days must fill neither disk nor memory.
        self._reader = threading.Thread(
            target=_keep_tail, args=(self._process.stdout, tail), name=f"log of {command}", daemon=True
        )
        try:
            self._reader.start()
        except RuntimeError as error:  # no more threads
            self.kill()
            raise OSError(errno.EAGAIN, str(error)) from error

    def has_ended(self) -> bool:
        """True once its process is dead; what it started may still live."""
        # Not reaped here: until then nobody else can have its pid, which is its group's number too.
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # the user's program ignores SIGCHLD, or waits for any child
            self._is_taken = True
            return True

    def wait(self, timeout_s: float) -> None:
        """Give it time to end by itself, and its last words time to arrive."""
        give_up_s = time.monotonic() + timeout_s
        while not self.has_ended() and time.monotonic() < give_up_s:
            time.sleep(LOOK_S)

    def kill(self) -> str:
        """End it with all that it started; how it ended, in words."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # its group, workers included
        self.wait(REAP_TIMEOUT_S)  # longer only if the kernel holds it, in a read that does not end
        self._process.poll()
        if self._reader.is_alive():
            self._reader.join(timeout=1.0)  # at once: the last writer is dead
        code = self.exit_code
        if self._is_taken:
            return "ended, nobody knows how: this program has its children reaped elsewhere (SIGCHLD, waitpid)"
        if code is None:
            return "could not be killed"
        return f"ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"

    @property
    def exit_code(self) -> int | None:
        """None while it lives, and if nobody can tell; negative for a signal."""
        return None if self._is_taken else self._process.returncode


def _keep_tail(stream: IO[bytes], tail: deque[bytes]) -> None:
    with stream:
        while line := stream.readline(LOG_LINE_NBYTES):
            tail.append(line)
