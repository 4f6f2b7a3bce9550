"""Status: one picture of streams, workers and pools, for `headrace status`; and a smaller one for each trainer.

In:  what the dispatcher knows; its clock.
Out: `Status`, with rates over the last ten seconds; `ServiceState`.
Pure, and of bounded size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping

from pipeline.known_stream import KnownStream
from pipeline.lease_events import StreamId
from pipeline.leases import Leases
from pipeline.messages import ServiceState
from pipeline.pools import Pools
from pipeline.service_messages import Status, StreamStatus, WorkerStatus

RATE_WINDOW_S = 10.0


class Rates:
    """Slices per second of each worker, over the last RATE_WINDOW_S."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[str, int]]] = deque()

    def look(self, delivered: dict[str, int], now_s: float) -> None:
        """Remember the counts of now; call about once a second."""
        self._looks.append((now_s, delivered))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - RATE_WINDOW_S:
            self._looks.popleft()

    def of(self, worker: str) -> float:
        """From its first look in the window to the last; 0 before there are two."""
        counts = [(look_s, delivered[worker]) for look_s, delivered in self._looks if worker in delivered]
        if len(counts) < 2 or counts[-1][0] <= counts[0][0]:
            return 0.0
        return max(0, counts[-1][1] - counts[0][1]) / (counts[-1][0] - counts[0][0])


def service_state(stream_id: StreamId, source: str, leases: Leases, note: str, fingerprint: str) -> ServiceState:
    """What a trainer is told about once a second."""
    slices = leases.streams[stream_id]
    declined = (worker.declined[stream_id] for worker in leases.workers.values() if stream_id in worker.declined)
    return ServiceState(
        stream=stream_id[0],
        incarnation=stream_id[1],
        workers=len(leases.workers),
        able_workers=len(leases.able_workers(stream_id, source)),
        sources=tuple(sorted({name for worker in leases.workers.values() for name in worker.sources})),
        idle_workers=len(leases.idle_workers()),
        waiting_slices=slices.num_waiting,
        leased_slices=len(slices.leased),
        note=note,
        fingerprint=fingerprint,
        declined=next(declined, ""),
    )


def status(
    *,
    operation: str,
    up_s: float,
    num_refused_messages: int,
    note: str,
    streams: Mapping[StreamId, KnownStream],
    leases: Leases,
    pools: Pools,
    rates: Rates,
    now_s: float,
) -> Status:
    """The answer to an AskStatus."""
    return Status(
        operation=operation,
        pid=os.getpid(),
        up_s=up_s,
        num_refused_messages=num_refused_messages,
        note=note,
        workers=tuple(_worker(name, leases, pools, rates, now_s) for name in sorted(leases.workers)),
        pools=pools.statuses(now_s),
        streams=tuple(_stream(streams[stream_id], stream_id, leases, now_s) for stream_id in sorted(streams)),
    )


def _worker(name: str, leases: Leases, pools: Pools, rates: Rates, now_s: float) -> WorkerStatus:
    worker, member = leases.workers[name], pools.member(name)
    return WorkerStatus(
        worker=name,
        pool=member.pool if member else "",
        host=member.host if member else "",
        pid=member.pid if member else 0,
        sources=tuple(sorted(worker.sources)),
        num_in_hand=worker.num_in_hand,
        num_delivered=worker.num_delivered,
        slices_per_s=rates.of(name),
        silent_s=now_s - worker.last_beat_s,
        is_leaving=worker.is_leaving,
    )


def _stream(known: KnownStream, stream_id: StreamId, leases: Leases, now_s: float) -> StreamStatus:
    slices = leases.streams[stream_id]
    return StreamStatus(
        stream=stream_id[0],
        incarnation=stream_id[1],
        source=known.spec.source,
        head_step=slices.head_step,
        window=slices.window,
        num_waiting=slices.num_waiting,
        num_leased=len(slices.leased),
        num_hedged=slices.num_hedged,
        silent_s=now_s - slices.last_beat_s,
        report=known.report,
    )
