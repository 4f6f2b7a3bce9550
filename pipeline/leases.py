"""Leases: which worker makes which slice.

In:  events (`pipeline/lease_events.py`) and the time in seconds.
Out: actions for the dispatcher to carry out.
No sockets, no clock, no threads: `step(event, now_s) -> actions`; tests drive it with plain values.

A lease ends by arrival at the trainer, by its holder's death, when its holder gives it back, or when its stream's
timeline changes. The exception is what was lost on the way, a slice that was sent and has not arrived, or a lease that
its worker never saw: it ends after `resend_s`. A lease that is merely late, while the training loop waits for it and a
worker idles, is hedged: given out once more, and the first arrival ends both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Condemn,
    Dismiss,
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
    WorkerDeclined,
    WorkerGone,
    WorkerJoined,
    WorkerLeaving,
)
from pipeline.lease_stream import Copy, Range, StreamSlices
from pipeline.lease_workers import FreeWorkers, Held, Worker
from pipeline.messages import Lease


class Leases:
    """Each waiting slice inside a stream's window is leased to one living worker at a time, or hedged to two."""

    def __init__(self, *, worker_ttl_s: float = 10.0, stream_ttl_s: float = 60.0, resend_s: float = 2.0) -> None:
        self.worker_ttl_s = worker_ttl_s
        """Seconds of silence after which a worker is dead: ten missed beats of 1 s; chosen, not measured."""
        self.stream_ttl_s = stream_ttl_s
        self.resend_s = resend_s
        """Seconds after which a sent slice or lease counts as lost; far above any delay on one host."""
        self.workers: dict[str, Worker] = {}
        self.streams: dict[StreamId, StreamSlices] = {}
        self._free = FreeWorkers()

    def step(self, event: Event, now_s: float) -> list[Action]:
        """What is to be done after `event`."""
        actions: list[Action] = []
        match event:
            case WorkerBeaten():
                if (worker := self.workers.get(event.worker)) is None:
                    return [AskToJoin(worker=event.worker)]
                worker.beaten(event, now_s)
                self._free.put(event.worker, worker)
            case StreamBeaten():
                stream = self.streams.get(event.stream)
                if stream is None or stream.revision < event.revision:
                    return [AskToRegister(stream=event.stream)]
                arrived, voided = stream.beaten(event, now_s)
                for copies in arrived:
                    self._arrived(copies)
                for copies in voided:
                    self._end_copies(copies)
            case StreamRegistered():
                self._register(event, now_s)
            case StreamLeft():
                self._forget_stream(event.stream)
            case WorkerJoined():
                self._end_all_leases(event.worker)
                self._free.remove(event.worker)
                worker = self.workers[event.worker] = Worker(event.sources, now_s)
                self._free.put(event.worker, worker)
            case WorkerLeaving():
                return self._leaving(event.worker, now_s)
            case WorkerGone():
                actions += self._worker_gone(event)
            case SliceGivenBack():
                actions += self._given_back(event, now_s)
            case LeaseRefused():
                self._refused(event)
            case WorkerDeclined():
                self._declined(event)
            case Ticked():
                actions += self._ticked(event, now_s)
        actions += self._grants(now_s)
        return actions

    def idle_workers(self) -> list[str]:
        """Those with nothing in hand that would take something."""
        return self._free.idle()

    def able_workers(self, stream: StreamId, source: str, among: Iterable[str] | None = None) -> list[str]:
        """Those that have the source and have not declined the stream."""
        names = self.workers if among is None else among
        return [name for name in names if self.workers[name].serves(stream, source)]

    def _register(self, event: StreamRegistered, now_s: float) -> None:
        """A newer incarnation replaces the older one; what an older one still says is void."""
        name, incarnation = event.stream
        if any(known[0] == name and known[1] > incarnation for known in self.streams):
            return
        for known in [known for known in self.streams if known[0] == name and known != event.stream]:
            self._forget_stream(known)
        stream = self.streams.get(event.stream)
        if stream is None or (event.revision > stream.revision and not _is_same(stream, event)):
            self._forget_stream(event.stream)
            self.streams[event.stream] = StreamSlices(event, now_s)
        elif event.revision > stream.revision:
            for copies in stream.change(event.timeline, event.revision, event.window):
                self._end_copies(copies)

    def _forget_stream(self, stream: StreamId) -> None:
        for worker in self.workers.values():
            worker.declined.pop(stream, None)
        forgotten = self.streams.pop(stream, None)
        for copies in forgotten.leased.values() if forgotten else ():
            self._end_copies(copies)

    def _arrived(self, copies: list[Copy]) -> None:
        """One of the copies has: the one that its worker has sent, as far as beats tell."""
        sender = next((copy for copy in copies if self._held(copy).sent_s is not None), copies[0])
        self.workers[sender.worker].num_delivered += 1
        self._end_copies(copies)

    def _held(self, copy: Copy) -> Held:
        return self.workers[copy.worker].leases[copy.number]

    def _end_copies(self, copies: list[Copy]) -> None:
        for copy in copies:
            self._end(copy.worker, copy.number)

    def _end(self, name: str, number: int) -> Held | None:
        """The lease that ends here, None if it had ended before; its worker may be free for another."""
        worker = self.workers.get(name)
        held = worker.leases.pop(number, None) if worker else None
        if worker is not None and held is not None and number > worker.received:
            self._free.put(name, worker)
        return held

    def _leaving(self, name: str, now_s: float) -> list[Action]:
        """Nobody waits for a worker that is not known here: it may end, too."""
        worker = self.workers.get(name)
        if worker is not None:
            worker.last_beat_s = now_s
            worker.is_leaving = True
            self._free.put(name, worker)
        return [Dismiss(worker=name)] if worker is None or not worker.leases else []

    def _worker_gone(self, event: WorkerGone) -> list[Action]:
        """Give back what the worker held; the slice it was working on may be to blame."""
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return []
        self._free.remove(event.worker)
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
            if event.blame and not event.is_preparing and number == in_hand:
                place = event.at[1] if event.at else None
                stream.blame(
                    held.range,
                    event.worker,
                    cause=event.cause,
                    by_itself=event.by_itself,
                    position=place,
                    attempt=event.attempt,
                )
                actions += _lost(stream)
            else:
                stream.give_back(held.range, event.worker)
        return actions

    def _end_all_leases(self, name: str) -> None:
        worker = self.workers.get(name)
        for held in worker.leases.values() if worker else ():
            self.streams[held.stream].give_back(held.range, name)

    def _given_back(self, event: SliceGivenBack, now_s: float) -> list[Action]:
        worker = self.workers.get(event.worker)
        held = worker.leases.get(event.lease) if worker else None
        if worker is None or held is None or event.failed.position not in range(*held.range):
            return []
        self._end(event.worker, event.lease)
        stream = self.streams[held.stream]
        others = any(name != event.worker for name in self.able_workers(stream.id, stream.source))
        stream.read_failed(held.range, event.failed, event.worker, avoid=others, now_s=now_s)
        return _lost(stream)

    def _refused(self, event: LeaseRefused) -> None:
        if (held := self._end(event.worker, event.lease)) is not None:
            self.streams[held.stream].give_back(held.range, event.worker)

    def _declined(self, event: WorkerDeclined) -> None:
        """It gets no more of the stream until it joins again."""
        worker = self.workers.get(event.worker)
        if worker is None or event.stream not in self.streams:
            return
        worker.declined[event.stream] = event.cause
        for number in [number for number, held in worker.leases.items() if held.stream == event.stream]:
            self._refused(LeaseRefused(worker=event.worker, lease=number))

    def _ticked(self, event: Ticked, now_s: float) -> list[Action]:
        actions: list[Action] = []
        # Streams first: a worker's death then says nothing about one that is gone as well.
        for stream in list(self.streams.values()):
            if event.drained and now_s - stream.last_beat_s > self.stream_ttl_s:
                self._forget_stream(stream.id)
                actions.append(Retire(stream=stream.id))
            else:
                actions += _lost(stream)
        for name, worker in list(self.workers.items()):
            if event.drained and now_s - worker.last_beat_s > self.worker_ttl_s:
                in_peace = worker.is_leaving and not worker.leases
                actions.append(Condemn(worker=name, in_peace=in_peace))
                silence = f"silent for {self.worker_ttl_s:g} s"
                actions += self._worker_gone(WorkerGone(worker=name, cause=silence, blame=not in_peace))
            else:
                self._end_lost_leases(name, worker, now_s)
                if worker.is_leaving and not worker.leases:
                    actions.append(Dismiss(worker=name))
        if event.drained:
            actions += self._hedges(now_s)
        return actions

    def _end_lost_leases(self, name: str, worker: Worker, now_s: float) -> None:
        for number, held in list(worker.leases.items()):
            never_seen = number > worker.received and now_s - held.granted_s > self.resend_s
            # Only a trainer that has spoken since can say that a slice did not arrive; one that is stopped can't.
            heard_s = self.streams[held.stream].last_beat_s
            never_arrived = held.sent_s is not None and heard_s - held.sent_s > self.resend_s
            if never_seen or never_arrived:
                self._end(name, number)
                self.streams[held.stream].give_back(held.range, name)

    def _hedges(self, now_s: float) -> Iterator[Action]:
        """Lease what is late once more, to workers that have nothing in hand."""
        idle = self._free.idle()
        for stream in self.streams.values() if idle else ():
            for held, copy in stream.late(now_s):
                able = self.able_workers(stream.id, stream.source, among=idle)
                if (name := next((name for name in able if name != copy.worker), None)) is None:
                    break
                idle.remove(name)
                yield self._grant(name, stream, held, now_s)

    def _grants(self, now_s: float) -> Iterator[Action]:
        """Lease waiting slices: to the worker with the least in hand, from the stream with the fewest leased."""
        while self._free and (ready := [stream for stream in self.streams.values() if stream.is_ready(now_s)]):
            if len(ready) > 1:
                ready.sort(key=lambda stream: (len(stream.leased), stream.id))
            match = self._match(ready, now_s)
            if match is None:
                return
            yield self._grant(*match, now_s)

    def _match(self, ready: list[StreamSlices], now_s: float) -> tuple[str, StreamSlices, Range] | None:
        for name in self._free:
            worker = self.workers[name]
            for stream in ready:
                if worker.serves(stream.id, stream.source) and (offered := stream.offer(name, now_s)) is not None:
                    return name, stream, offered
        return None

    def _grant(self, name: str, stream: StreamSlices, offered: Range, now_s: float) -> Grant:
        worker, (start, stop) = self.workers[name], offered
        worker.last_lease += 1
        worker.leases[worker.last_lease] = Held(stream.id, offered, now_s)
        stream.take(offered, Copy(name, worker.last_lease, now_s))
        self._free.put(name, worker)
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


def _is_same(stream: StreamSlices, event: StreamRegistered) -> bool:
    """True if only the timeline's course can differ: what was cut and given out still means the same."""
    old, new = stream.timeline, event.timeline
    return (
        (stream.source, stream.slice_size) == (event.source, event.slice_size)
        and (old.num_samples, old.last_batch, old.end_position) == (new.num_samples, new.last_batch, new.end_position)
        and (old.entries[0].step, old.entries[0].start) == (new.entries[0].step, new.entries[0].start)
    )


def _lost(stream: StreamSlices) -> list[Action]:
    if not stream.lost:
        return []
    return [ReportLost(stream=stream.id, lost=tuple(lost for _, lost in sorted(stream.lost.items())))]
