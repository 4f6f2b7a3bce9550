"""Probes: a recipe is tried on a live worker before a stream may use it.

In:  who asked, who lives, who answered, who died and at which sample.
Out: whom to ask, which samples to leave alone; refusals where probing killed too many workers.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.lease_events import StreamId

MAX_DEATHS = 3
"""Workers a probe may outlive before their deaths count as its refusal; one may die by chance."""

ProbeId = tuple[StreamId, str]
"""A stream and the recipe's digest."""


@dataclass(slots=True)
class _Asked:
    worker: str = ""
    deaths: int = 0
    died_at: list[int] = field(default_factory=list)


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

    def assign(self, probe: ProbeId, worker: str) -> None:
        """The worker was told."""
        self._asked[probe].worker = worker

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
        self, worker: str, cause: str, *, blame: bool, at: tuple[StreamId, int] | None
    ) -> list[tuple[ProbeId, str]]:
        """Probes refused because too many workers died of them, with the last cause."""
        refused = []
        for probe, asked in list(self._asked.items()):
            if asked.worker == worker:
                asked.worker = ""
                asked.deaths += blame
                if at is not None and at[0] == probe[0]:
                    asked.died_at.append(at[1])
                if asked.deaths >= MAX_DEATHS:
                    del self._asked[probe]
                    refused.append((probe, cause))
        return refused

    def forget(self, stream: StreamId) -> None:
        """The stream is gone."""
        self._asked = {probe: asked for probe, asked in self._asked.items() if probe[0] != stream}
