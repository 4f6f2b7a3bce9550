"""The pool's fork server, seen from outside: what it loads, and whether it was stopped.

In:  plug-ins.
Out: a fork server to come that loads them once for all workers; the end of one that was stopped (SIGSTOP): its pool
     would wait for ever for the next worker, and for news of the ones that died.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

from pipeline.process_state import STOPPED, state_of

STOPPED_S = 2.0
"""A whole pool that was stopped and goes on finds its fork server stopped for a moment."""

_PLUGINS_VARIABLE = "_HEADRACE_PLUGINS"
"""The one way to tell a fork server something before it forks."""


def preload(plugins: Sequence[str], base: Path) -> None:
    """The fork server, each time that it is started, imports the worker's libraries and these plug-ins."""
    os.environ[_PLUGINS_VARIABLE] = json.dumps([*plugins, str(base)])
    multiprocessing.get_context("forkserver").set_forkserver_preload(["workers.preload"])


def plugins_to_preload() -> tuple[list[str], Path]:
    """In the fork server: the plug-ins, and the folder that their names are relative to."""
    *plugins, base = json.loads(os.environ.pop(_PLUGINS_VARIABLE))
    return plugins, Path(base)


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
