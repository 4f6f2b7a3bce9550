"""Leases: which worker makes which slice.

In:  events (`pipeline/lease_events.py`) and the time in seconds.
Out: actions for the dispatcher to carry out.
No sockets, no clock, no threads: `step(event, now_s) -> actions`; tests drive it with plain values.

A lease ends by arrival at the trainer, by its holder's death, or when its holder gives it back. The exception is what
was lost on the way, a slice that was sent and has not arrived, or a lease that its worker never saw: it ends after
`resend_s`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Condemn,
    Event,
    Grant,
    LeaseRefused,
    ReportLost,
    Retire,
    SliceGivenBack,
    StreamBeaten,
    StreamId,
    StreamLeft,
    StreamRegistered,
    Ticked,
    WorkerBeaten,
    WorkerGone,
    WorkerJoined,
)
from pipeline.lease_stream import Range, StreamSlices
from pipeline.messages import Lease

LEASES_IN_HAND = 2
"""Leases a worker has at a time: one it works on and one that waits, so that it never idles for a round trip."""


@dataclass(slots=True)
class _Held:
    stream: StreamId
    range: Range
    granted_s: float
    sent_s: float | None = None
    """When its worker no longer held it."""


@dataclass(slots=True)
class _Worker:
    sources: frozenset[str]
    last_beat_s: float
    beat_number: int = -1
    received: int = 0
    holding: tuple[int, ...] = ()
    last_lease: int = 0
    leases: dict[int, _Held] = field(default_factory=dict)
    """Lease number -> what it holds; until arrival, even after it was sent."""

    @property
    def num_in_hand(self) -> int:
        return len(self.holding) + self.last_lease - self.received


class Leases:
    """Each waiting slice inside a stream's window is leased to one living worker at a time."""

    def __init__(self, *, worker_ttl_s: float = 10.0, stream_ttl_s: float = 60.0, resend_s: float = 2.0) -> None:
        self.worker_ttl_s = worker_ttl_s
        """Seconds of silence after which a worker is dead: ten missed beats of 1 s; chosen, not measured."""
        self.stream_ttl_s = stream_ttl_s
        self.resend_s = resend_s
        """Seconds after which a sent slice or lease counts as lost; far above any delay on one host."""
        self.workers: dict[str, _Worker] = {}
        self.streams: dict[StreamId, StreamSlices] = {}

    def step(self, event: Event, now_s: float) -> list[Action]:
        """What is to be done after `event`."""
        actions: list[Action] = []
        match event:
            case StreamRegistered():
                self._register(event, now_s)
            case StreamBeaten():
                if (stream := self.streams.get(event.stream)) is None:
                    return [AskToRegister(stream=event.stream)]
                stream.beaten(event, now_s)
                self._forget_arrived(stream)
            case StreamLeft():
                self._forget_stream(event.stream)
            case WorkerJoined():
                self._end_all_leases(event.worker)
                self.workers[event.worker] = _Worker(event.sources, now_s)
            case WorkerBeaten():
                if (worker := self.workers.get(event.worker)) is None:
                    return [AskToJoin(worker=event.worker)]
                self._worker_beaten(worker, event, now_s)
            case WorkerGone():
                actions += self._worker_gone(event)
            case SliceGivenBack():
                actions += self._given_back(event, now_s)
            case LeaseRefused():
                self._refused(event)
            case Ticked():
                actions += self._ticked(now_s)
        actions += self._grants(now_s)
        return actions

    def num_idle_workers(self) -> int:
        """Workers with nothing in hand."""
        return sum(worker.num_in_hand == 0 for worker in self.workers.values())

    def _register(self, event: StreamRegistered, now_s: float) -> None:
        """A newer incarnation replaces the older one; what an older one still says is void."""
        name, incarnation = event.stream
        if any(known[0] == name and known[1] > incarnation for known in self.streams):
            return
        for known in [known for known in self.streams if known[0] == name and known != event.stream]:
            self._forget_stream(known)
        if event.stream not in self.streams:
            self.streams[event.stream] = StreamSlices(event, now_s)

    def _forget_stream(self, stream: StreamId) -> None:
        self.streams.pop(stream, None)
        for worker in self.workers.values():
            for number in [number for number, held in worker.leases.items() if held.stream == stream]:
                del worker.leases[number]

    def _forget_arrived(self, stream: StreamSlices) -> None:
        for worker in self.workers.values():
            for number, held in list(worker.leases.items()):
                if held.stream == stream.id and stream.has_arrived(held.range):
                    del worker.leases[number]

    def _worker_beaten(self, worker: _Worker, event: WorkerBeaten, now_s: float) -> None:
        worker.last_beat_s = now_s
        if event.number <= worker.beat_number:
            return
        worker.beat_number = event.number
        worker.received = max(worker.received, event.received)
        worker.holding = event.holding
        for number, held in worker.leases.items():
            # Not event.received: a worker that began anew, and whose Join was lost, says 0 and will never send these.
            if number <= worker.received and number not in event.holding and held.sent_s is None:
                held.sent_s = now_s

    def _worker_gone(self, event: WorkerGone) -> list[Action]:
        """Give back what the worker held; the slice it was working on may be to blame."""
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return []
        in_hand = min((number for number, held in worker.leases.items() if held.sent_s is None), default=None)
        if event.at is not None:
            stream_id, position = event.at
            in_hand = next(
                (n for n, held in worker.leases.items() if held.stream == stream_id and position in range(*held.range)),
                None,
            )
        actions: list[Action] = []
        for number, held in worker.leases.items():
            stream = self.streams[held.stream]
            if event.blame and number == in_hand:
                place = event.at[1] if event.at else None
                stream.blame(held.range, cause=event.cause, by_itself=event.by_itself, position=place)
                actions += _lost(stream)
            else:
                stream.give_back(held.range)
        return actions

    def _end_all_leases(self, name: str) -> None:
        worker = self.workers.get(name)
        for held in worker.leases.values() if worker else ():
            self.streams[held.stream].give_back(held.range)

    def _given_back(self, event: SliceGivenBack, now_s: float) -> list[Action]:
        worker = self.workers.get(event.worker)
        held = worker.leases.get(event.lease) if worker else None
        if worker is None or held is None or event.position not in range(*held.range):
            return []
        del worker.leases[event.lease]
        stream = self.streams[held.stream]
        others = any(stream.source in other.sources for name, other in self.workers.items() if name != event.worker)
        avoid = event.worker if others else ""
        stream.read_failed(held.range, event.position, avoid=avoid, cause=event.cause, now_s=now_s)
        return _lost(stream)

    def _refused(self, event: LeaseRefused) -> None:
        worker = self.workers.get(event.worker)
        held = worker.leases.pop(event.lease, None) if worker else None
        if held is not None:
            self.streams[held.stream].give_back(held.range)

    def _ticked(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for name, worker in list(self.workers.items()):
            if now_s - worker.last_beat_s > self.worker_ttl_s:
                actions.append(Condemn(worker=name))
                silence = f"silent for {self.worker_ttl_s:g} s"
                actions += self._worker_gone(WorkerGone(worker=name, cause=silence, blame=True))
            else:
                self._end_lost_leases(worker, now_s)
        for stream in list(self.streams.values()):
            if now_s - stream.last_beat_s > self.stream_ttl_s:
                self._forget_stream(stream.id)
                actions.append(Retire(stream=stream.id))
            else:
                actions += _lost(stream)
        return actions

    def _end_lost_leases(self, worker: _Worker, now_s: float) -> None:
        for number, held in list(worker.leases.items()):
            never_seen = number > worker.received and now_s - held.granted_s > self.resend_s
            # Only a trainer that has spoken since can say that a slice did not arrive; one that is stopped can't.
            heard_s = self.streams[held.stream].last_beat_s
            never_arrived = held.sent_s is not None and heard_s - held.sent_s > self.resend_s
            if never_seen or never_arrived:
                worker.received = max(worker.received, number)
                del worker.leases[number]
                self.streams[held.stream].give_back(held.range)

    def _grants(self, now_s: float) -> Iterator[Action]:
        """Lease waiting slices: to the worker with the least in hand, from the stream with the fewest leased."""
        while (match := self._match(now_s)) is not None:
            yield self._grant(*match, now_s)

    def _match(self, now_s: float) -> tuple[str, StreamSlices, Range] | None:
        in_hand = ((worker.num_in_hand, name) for name, worker in self.workers.items())
        free = sorted(load for load in in_hand if load[0] < LEASES_IN_HAND)
        if not free:
            return None
        streams = sorted(self.streams.values(), key=lambda stream: (len(stream.leased), stream.id))
        for _, name in free:
            for stream in streams:
                if stream.source in self.workers[name].sources and (offered := stream.offer(name, now_s)) is not None:
                    return name, stream, offered
        return None

    def _grant(self, name: str, stream: StreamSlices, offered: Range, now_s: float) -> Grant:
        worker, (start, stop) = self.workers[name], offered
        stream.take(offered)
        worker.last_lease += 1
        worker.leases[worker.last_lease] = _Held(stream.id, offered, now_s)
        lease = Lease(
            number=worker.last_lease,
            stream=stream.id[0],
            incarnation=stream.id[1],
            start=start,
            stop=stop,
            recipe=stream.timeline.recipe_at(start),
            quarantined={place: attempt for place, attempt in stream.quarantined.items() if start <= place < stop},
        )
        return Grant(worker=name, lease=lease)


def _lost(stream: StreamSlices) -> list[Action]:
    if not stream.lost:
        return []
    return [ReportLost(stream=stream.id, lost=tuple(lost for _, lost in sorted(stream.lost.items())))]
