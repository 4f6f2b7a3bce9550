"""The lifeline: a pipe whose closing tells a service that the process it belongs to has ended, however it ended.

In:  the pipe's read end, the runtime directory.
Out: the end of this process and its group, at the latest GRACE_S after the other end was closed.
A service watches the same pipe in its own loop and ends in peace; this is for one that is busy importing or stuck.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading
import time
from pathlib import Path

GRACE_S = 2.0
"""Twice what a pool takes to end its workers (workers/pool.py), and well below the 5 s in which all must be gone."""


def end_with(lifeline_fd: int, directory: Path | None) -> None:
    """From now on this process, which leads its group, does not outlive the lifeline by more than GRACE_S."""
    threading.Thread(target=_watch, args=(lifeline_fd, directory), name="lifeline", daemon=True).start()


def is_cut(lifeline_fd: int | None) -> bool:
    """True once the process at the other end has ended or let go; a service without a lifeline has nobody to lose."""
    return lifeline_fd is not None and bool(select.select([lifeline_fd], [], [], 0)[0])


def _watch(lifeline_fd: int, directory: Path | None) -> None:
    select.select([lifeline_fd], [], [])  # nobody writes: readable means closed
    time.sleep(GRACE_S)
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
