"""The state of a process of this machine, as the kernel tells it.

In:  a pid.
Out: one letter; "" where there is no such process, or no /proc.
"""

from __future__ import annotations

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
