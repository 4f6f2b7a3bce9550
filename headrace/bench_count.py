"""Counts what is delivered over a window of time.

In:  an iterator of batch sizes (taking one waits for it), a clock, a reading of CPU seconds.
Out: samples, seconds and CPU seconds between two arrivals, start-up and full buffers left out.
Pure but for its arguments: tests drive it with a clock of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

CpuSeconds = Mapping[str, float]
"""CPU seconds so far, by the part that used them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One window."""

    num_samples: int
    wall_s: float
    cpu_s: dict[str, float]

    @property
    def samples_per_s(self) -> float:
        """The rate of delivery."""
        return self.num_samples / self.wall_s


def count(
    sizes: Iterator[int],
    *,
    ignore_s: float,
    count_s: float,
    clock: Callable[[], float],
    read_cpu: Callable[[], CpuSeconds],
) -> Counted:
    """The window opens with the first arrival after `ignore_s` and closes with the first after `count_s` more.

    Both edges are arrivals, so no part of a batch is counted that was not delivered inside.
    """
    began_s = clock()
    next(sizes)
    while clock() - began_s < ignore_s:
        next(sizes)
    opened_s, cpu_before = clock(), read_cpu()
    num_samples = 0
    closed_s = opened_s
    while closed_s - opened_s < count_s:
        num_samples += next(sizes)
        closed_s = clock()
    cpu_after = read_cpu()
    cpu_s = {part: cpu_after[part] - cpu_before[part] for part in cpu_before}
    return Counted(num_samples=num_samples, wall_s=closed_s - opened_s, cpu_s=cpu_s)
