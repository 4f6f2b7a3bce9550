"""Probes: a recipe is tried on a live worker before a stream may use it.

In:  who asked, who lives, who answered or gave back, who died and at which sample.
Out: whom to ask, which samples to leave alone; refusals where probing killed too many workers.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.lease_events import StreamId
from pipeline.lease_stream import MAX_DEATHS, MAX_READS, death_weight

REPEAT_S = 5.0
"""Seconds after which an unanswered probe is sent again; a slow worker loses nothing, it remembers its answer."""

DEFAULT_HANG_S = 60.0
"""Of a job's or pool's `hang_s`; who raises it says that samples or chains take longer there than usual."""

PROBE_S = 30.0
"""Seconds in which a chain must have been built for a probe, or its worker is killed and the chain refused: half of
what an operator waits (pipeline/operator.py). Every worker has to build it, also one that takes a dead one's place, and
no slice is made meanwhile. A `hang_s` that is less, or above its default, is kept to instead. Chosen, not measured."""
PROBE_SAMPLE_S = PROBE_S / 2
"""The same for one of a probe's samples. A worker that dies of one is replaced, and the next try leaves it out; so a
chain that hangs on every sample is refused after two, in PROBE_S and what a new worker takes to start."""

ProbeId = tuple[StreamId, str]
"""A stream and the recipe's digest."""


@dataclass(slots=True)
class _Asked:
    worker: str = ""
    asked_s: float = 0.0
    """When the worker was told last."""
    deaths: float = 0.0
    """Weighed as those of a slice: a kill from outside says little about the recipe."""
    died_at: list[int] = field(default_factory=list)
    failed_on: list[str] = field(default_factory=list)
    """Workers that gave it back, each as often as it did."""


class Probes:
    """Each probe that was asked for is with one live worker, or waits for one."""

    def __init__(self) -> None:
        self._asked: dict[ProbeId, _Asked] = {}

    def ask(self, probe: ProbeId) -> None:
        """Have a recipe probed; asking again changes nothing."""
        self._asked.setdefault(probe, _Asked())

    def waiting(self) -> list[ProbeId]:
        """Probes that no worker has."""
        return [probe for probe, asked in self._asked.items() if not asked.worker]

    def overdue(self, now_s: float) -> list[tuple[ProbeId, str]]:
        """Probes whose worker has not answered for long, with that worker: the question or its answer was lost."""
        return [
            (probe, asked.worker)
            for probe, asked in self._asked.items()
            if asked.worker and now_s - asked.asked_s >= REPEAT_S
        ]

    def of_worker(self, worker: str, stream: StreamId) -> list[ProbeId]:
        """This stream's probes that the worker was told of."""
        return [probe for probe, asked in self._asked.items() if asked.worker == worker and probe[0] == stream]

    def assign(self, probe: ProbeId, worker: str, now_s: float) -> None:
        """The worker was told."""
        self._asked[probe].worker, self._asked[probe].asked_s = worker, now_s

    def choose(self, probe: ProbeId, able: Iterable[str]) -> str:
        """Whom to ask: a worker that has not given it back, if there is one."""
        return min(able, key=self._asked[probe].failed_on.count)

    def failed(self, probe: ProbeId, worker: str) -> bool:
        """The worker could not read what it takes and gave it back; True if too many have: the probe is over then."""
        asked = self._asked.get(probe)
        if asked is None or asked.worker != worker:
            return False
        asked.worker = ""
        asked.failed_on.append(worker)
        if len(asked.failed_on) < MAX_READS:
            return False
        del self._asked[probe]
        return True

    def declined(self, worker: str, stream: StreamId) -> None:
        """The worker can't serve the stream: its probes wait for another, none the worse for it."""
        for probe in self.of_worker(worker, stream):
            self._asked[probe].worker = ""

    def skip(self, probe: ProbeId) -> tuple[int, ...]:
        """Positions to leave out: one sample that kills workers is the bad-sample policy's matter, not the chain's."""
        return tuple(self._asked[probe].died_at)

    def answered(self, probe: ProbeId, worker: str) -> bool:
        """True if this is the awaited answer; the probe is over then."""
        asked = self._asked.get(probe)
        if asked is None or asked.worker != worker:
            return False
        del self._asked[probe]
        return True

    def worker_gone(
        self,
        worker: str,
        cause: str,
        *,
        blame: bool,
        by_itself: bool,
        at: tuple[StreamId, int] | None,
        building: ProbeId | None = None,
    ) -> list[tuple[ProbeId, str]]:
        """Probes refused because too many workers died of them, with the last cause.

        `building`: the probe whose chain the worker was building. No sample has a part in that, so a crash or a hang
        there would happen again: one is enough.
        """
        refused = []
        for probe, asked in list(self._asked.items()):
            if asked.worker == worker:
                asked.worker = ""
                asked.deaths += death_weight(by_itself=by_itself) if blame else 0.0
                if at is not None and at[0] == probe[0]:
                    asked.died_at.append(at[1])
                if asked.deaths >= MAX_DEATHS or (probe == building and blame and by_itself):
                    del self._asked[probe]
                    refused.append((probe, cause))
        return refused

    def forget(self, stream: StreamId) -> None:
        """The stream is gone."""
        self._asked = {probe: asked for probe, asked in self._asked.items() if probe[0] != stream}
