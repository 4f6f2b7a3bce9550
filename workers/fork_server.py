"""The pool's fork server, seen from outside: whether it was stopped.

In:  nothing.
Out: the end of a fork server that was stopped (SIGSTOP): its pool would wait for ever for the next worker, and for
     news of the ones that died.
"""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing import forkserver

from pipeline.process_state import STOPPED, state_of

STOPPED_S = 2.0
"""A whole pool that was stopped and goes on finds its fork server stopped for a moment."""


def kill_fork_server() -> None:
    """End the fork server and, with it, its workers; nothing if there is none."""
    if (pid := _fork_server_pid()) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class ForkServerWatch:
    """Kills a fork server that stays stopped; workers die with it, and are started anew."""

    def __init__(self) -> None:
        self._stopped_pid = 0
        self._since_s = 0.0

    def look(self, now_s: float) -> str:
        """What was done, "" for nothing."""
        pid = _fork_server_pid()
        if pid is None or state_of(pid) != STOPPED:
            self._stopped_pid = 0
            return ""
        if pid != self._stopped_pid:
            self._stopped_pid, self._since_s = pid, now_s
        if now_s - self._since_s < STOPPED_S:
            return ""
        self._stopped_pid = 0
        kill_fork_server()
        return "the pool's fork server was stopped (SIGSTOP); it was killed, and is started again with its workers"


def _fork_server_pid() -> int | None:
    # No public name tells it; without it there is nothing to watch.
    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    return pid if isinstance(pid, int) else None
