"""The benchmark's numbers beside their targets.

In:  what each contender delivered in each round.
Out: ratios within rounds, their medians and extremes; rows of text.
Pure: no clock, no process, no verdict by exit code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from headrace.bench_contenders import CONTENDERS, Measured

MIB = 1 << 20

Round = Mapping[str, Measured]
"""Contender -> its window in this round."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One claim: what was measured and what was aimed at."""

    name: str
    value: float
    """The median over the rounds."""
    low: float
    high: float
    target: float
    unit: str
    at_least: bool
    """True: the target is a lower bound; False: an upper bound."""

    @property
    def is_met(self) -> bool:
        """True if the median is on the right side of the target."""
        return self.value >= self.target if self.at_least else self.value < self.target


RATIO_TARGETS = {"raw": 0.93, "loader": 1.3, "loader-untuned": 1.6}
"""This pipeline's samples/s divided by the other's, at least."""
MAX_RESEED_US = 12.0
MAX_WORKER_RSS_MB = 150.0
MAX_DISPATCHER_PERCENT = 3.0


def rows(rounds: Sequence[Round], reseed_us: float) -> list[Row]:
    """Every target with its result. Ratios are taken within a round, where both had the same machine."""
    made = [
        _row(
            f"pipeline / {CONTENDERS[other]}",
            [entry["headrace"].samples_per_s / entry[other].samples_per_s for entry in rounds],
            target,
            at_least=True,
        )
        for other, target in RATIO_TARGETS.items()
    ]
    ours = [entry["headrace"] for entry in rounds]
    largest_rss = [max(memory.rss for memory in measured.worker_memory) / 1e6 for measured in ours]
    dispatcher = [100 * measured.cpu_share["dispatcher"] for measured in ours]
    made.append(_row("reseeding a sample", [reseed_us], MAX_RESEED_US, unit="µs"))
    made.append(_row("largest worker's RSS", largest_rss, MAX_WORKER_RSS_MB, unit="MB"))
    made.append(_row("dispatcher's share of a core", dispatcher, MAX_DISPATCHER_PERCENT, unit="%"))
    return made


def rates(rounds: Sequence[Round]) -> dict[str, tuple[float, float, float]]:
    """Contender -> median, lowest and highest samples/s."""
    found = {}
    for name in rounds[0]:
        values = [entry[name].samples_per_s for entry in rounds]
        found[name] = (median(values), min(values), max(values))
    return found


def cpu_costs(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Contender -> part -> median CPU seconds for a thousand samples."""
    return {
        name: {part: median(entry[name].cpu_s_per_1000[part] for entry in rounds) for part in first.cpu_s_per_1000}
        for name, first in rounds[0].items()
    }


def worker_memory_mib(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Contender -> RSS, PSS and USS of its largest worker in the last round."""
    found = {}
    for name, measured in rounds[-1].items():
        largest = max(measured.worker_memory, key=lambda memory: memory.rss)
        found[name] = {"rss": largest.rss / MIB, "pss": largest.pss / MIB, "uss": largest.uss / MIB}
    return found


def _row(name: str, values: Sequence[float], target: float, *, unit: str = "", at_least: bool = False) -> Row:
    return Row(
        name=name,
        value=median(values),
        low=min(values),
        high=max(values),
        target=target,
        unit=unit,
        at_least=at_least,
    )
