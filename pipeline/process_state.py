"""What the kernel tells of a process of this machine, in words.

In:  a pid; the signal that ended one.
Out: its state in one letter, "" where there is no such process, or no /proc; the signal's name.
"""

from __future__ import annotations

import signal
from pathlib import Path

STOPPED = "T"
"""By SIGSTOP or SIGTSTP; a debugger's stop has another letter."""


def state_of(pid: int) -> str:
    """The letter `ps` shows: R, S, D, T, Z."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]  # the name before it may hold anything


def signal_name(number: int) -> str:
    """Such as SIGKILL; `signal 40` for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
