"""Rates: how fast a stream goes and what holds it back, over the last ten seconds.

In:  running totals, with the time; what the dispatcher says of its workers.
Out: samples a second, the share of time waited for data, the name of what limits the rate.
Pure; time is an argument.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from pipeline.messages import ServiceState

OVER_S = 10.0
WAITS_HARDLY = 0.05
"""Share of time below which it is the trainer that limits the rate."""

Limit = Literal["workers", "window", "trainer", "source", ""]


class Totals(NamedTuple):
    """What has been counted since the stream began."""

    at_s: float
    num_taken: int
    """Samples given to the training loop."""
    waited_s: float
    read_s: float
    make_s: float


class Rates:
    """Differences between now and about ten seconds ago."""

    def __init__(self) -> None:
        self._seen: deque[Totals] = deque()

    def see(self, totals: Totals) -> None:
        """The totals now; what is older than ten seconds is forgotten, but for one."""
        self._seen.append(totals)
        while len(self._seen) > 2 and totals.at_s - self._seen[1].at_s >= OVER_S:
            self._seen.popleft()

    @property
    def samples_per_s(self) -> float:
        """Samples taken, 0 before anything can be said."""
        first, last, span_s = self._span()
        return (last.num_taken - first.num_taken) / span_s if span_s > 0 else 0.0

    @property
    def waited_fraction(self) -> float:
        """Share of the time in which the training loop waited."""
        first, last, span_s = self._span()
        return min(1.0, max(0.0, (last.waited_s - first.waited_s) / span_s)) if span_s > 0 else 0.0

    def limit(self, service: ServiceState | None) -> Limit:
        """What would have to change for more samples a second, "" while nothing is known."""
        first, last, span_s = self._span()
        if span_s <= 0 or last.num_taken == first.num_taken:
            return ""
        if self.waited_fraction < WAITS_HARDLY:
            return "trainer"
        if last.read_s - first.read_s > last.make_s - first.make_s:
            return "source"
        if service is not None and service.idle_workers > 0 and service.waiting_slices == 0:
            return "window"
        return "workers"

    def _span(self) -> tuple[Totals, Totals, float]:
        if not self._seen:
            nothing = Totals(0.0, 0, 0.0, 0.0, 0.0)
            return nothing, nothing, 0.0
        first, last = self._seen[0], self._seen[-1]
        return first, last, last.at_s - first.at_s
