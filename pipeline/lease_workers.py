"""Workers, as leases see them: what each holds, and which may be given more.

In:  grants and beats; a pool's word of a death.
Out: who is free, those with least in hand first; what the death means to leases and probes.
Pure. Driven by `pipeline/leases.py` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.lease_events import BUILDING, IDLE, StreamId, WorkerBeaten, WorkerGone
from pipeline.lease_stream import Range
from pipeline.service_messages import WorkerDied

LEASES_IN_HAND = 2
"""Leases a worker has at a time: one it works on and one that waits, so that it never idles for a round trip."""


@dataclass(slots=True)
class Held:
    """A lease, until its slice has arrived, even after it was sent."""

    stream: StreamId
    range: Range
    granted_s: float
    sent_s: float | None = None
    """When its worker no longer held it."""


@dataclass(slots=True)
class Worker:
    """What is known of a worker, by its beats and by what it was given."""

    sources: frozenset[str]
    last_beat_s: float
    beat_number: int = -1
    received: int = 0
    holding: tuple[int, ...] = ()
    last_lease: int = 0
    leases: dict[int, Held] = field(default_factory=dict)
    num_delivered: int = 0
    is_leaving: bool = False
    declined: dict[StreamId, str] = field(default_factory=dict)
    """Streams that it can't serve, as it was started -> why."""

    def serves(self, stream: StreamId, source: str) -> bool:
        """True if it may be given work of the stream."""
        return source in self.sources and stream not in self.declined

    @property
    def num_in_hand(self) -> int:
        """What it holds, and what is on its way to it; not a lease that was lost on the way and has ended since."""
        return len(self.holding) + sum(number > self.received for number in self.leases)

    def beaten(self, event: WorkerBeaten, now_s: float) -> None:
        """Take over what the worker said, unless it is older than what is known."""
        self.last_beat_s = now_s
        if event.number <= self.beat_number:
            return
        self.beat_number = event.number
        self.received = min(max(self.received, event.received), self.last_lease)
        self.holding = event.holding
        for number, held in self.leases.items():
            # Not event.received: a worker that began anew, and whose Join was lost, says 0 and will never send these.
            if number <= self.received and number not in event.holding and held.sent_s is None:
                held.sent_s = now_s


class FreeWorkers:
    """Workers that may be given more: those with least in hand first, among equals the one that has waited longest."""

    def __init__(self) -> None:
        self._with: tuple[dict[str, None], ...] = tuple({} for _ in range(LEASES_IN_HAND))
        self._load: dict[str, int] = {}

    def put(self, name: str, worker: Worker) -> None:
        """The worker's load may have changed."""
        load = LEASES_IN_HAND if worker.is_leaving else min(max(0, worker.num_in_hand), LEASES_IN_HAND)
        known = self._load.get(name)
        if load == known:
            return
        if known is not None:
            self.remove(name)
        if load < LEASES_IN_HAND:
            self._with[load][name] = None
            self._load[name] = load

    def remove(self, name: str) -> None:
        """The worker takes no more; harmless if it did not before."""
        load = self._load.pop(name, None)
        if load is not None:
            del self._with[load][name]

    def idle(self) -> list[str]:
        """Those with nothing in hand."""
        return list(self._with[0])

    def __bool__(self) -> bool:
        return bool(self._load)

    def __iter__(self) -> Iterator[str]:
        for names in self._with:
            yield from names


def death(message: WorkerDied) -> WorkerGone:
    """What its pool says of how a worker ended."""
    stream = message.stream, message.incarnation
    return WorkerGone(
        worker=message.worker,
        cause=message.cause,
        blame=not message.in_peace,
        by_itself=message.by_itself,
        at=(stream, message.position) if message.position >= 0 else None,
        attempt=message.attempt,
        is_preparing=message.position < IDLE or bool(message.probed),
        building=(stream, message.probed) if message.probed and message.position == BUILDING else None,
    )
