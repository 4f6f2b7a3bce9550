"""What a contender's processes use: CPU seconds by part, memory of its workers.

In:  the processes below this one.
Out: CPU seconds by part, memory records; a wait until all of them rest.
Never looks at processes of anyone else.
"""

from __future__ import annotations

import time

import msgspec
import psutil

IDLE_LOOK_S = 0.2
IDLE_CPU_SHARE = 0.1
"""Of one core, all processes together; beats and polls of a resting contender take about 0.02."""
IDLE_TIMEOUT_S = 20.0


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """One process's memory, in bytes."""

    rss: int
    """All that is mapped and resident, shared pages counted whole."""
    pss: int
    """The same with each shared page divided among those who share it."""
    uss: int
    """What would be free if this process ended."""


class ProcessTree:
    """This process and all below it, each with the part it plays; made once everything has started."""

    def __init__(self) -> None:
        trainer = psutil.Process()
        self._parts: list[tuple[str, psutil.Process]] = [("trainer", trainer)]
        for process in trainer.children(recursive=True):
            self._parts.append((_part_of(process), process))

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far by part: trainer, dispatcher, pool, workers (those that there are)."""
        seconds: dict[str, float] = {}
        for part, process in self._parts:
            times = process.cpu_times()
            seconds[part] = seconds.get(part, 0.0) + times.user + times.system
        return seconds

    def worker_memory(self) -> list[Memory]:
        """A record for each worker."""
        found = [process.memory_full_info() for part, process in self._parts if part == "workers"]
        return [Memory(rss=memory.rss, pss=memory.pss, uss=memory.uss) for memory in found]

    def wait_until_idle(self) -> None:
        """Return once every buffer is full and nobody works, so that the next contender has the cores to itself."""
        deadline_s = time.monotonic() + IDLE_TIMEOUT_S
        used_s = sum(self.cpu_s().values())
        while time.monotonic() < deadline_s:
            time.sleep(IDLE_LOOK_S)
            used_before_s, used_s = used_s, sum(self.cpu_s().values())
            if used_s - used_before_s < IDLE_CPU_SHARE * IDLE_LOOK_S:
                return


def _part_of(process: psutil.Process) -> str:
    """Ours by their commands; the fork server belongs to the pool that started it, a resource tracker to no worker."""
    line = process.cmdline()
    if any("resource_tracker" in argument for argument in line):
        return "pool"
    if "headrace" in line:
        return "dispatcher" if "pipeline" in line else "pool"
    parent = process.parent()
    return "pool" if parent is not None and "headrace" in parent.cmdline() else "workers"
