"""Scaling: pools that follow the load are told their size.

In:  what leases and trainers' reports say about each pool; time.
Out: Resize to pools that asked for it (`workers: auto`).
Pure. How many there should be is for `pipeline/autoscale.py` to say; this measures.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.autoscale import Autoscale, Load
from pipeline.known_stream import KnownStream
from pipeline.lease_events import StreamId
from pipeline.leases import Leases
from pipeline.pools import Pools
from pipeline.service_messages import Resize

LOOK_EVERY_S = 0.5


class Scaling:
    """Each automatic pool has an Autoscale of its own, for as long as it is known."""

    def __init__(self, pools: Pools, leases: Leases, streams: Mapping[StreamId, KnownStream]) -> None:
        self._pools, self._leases, self._streams = pools, leases, streams
        self._autoscales: dict[str, Autoscale] = {}
        self._last_look_s = 0.0

    def tick(self, now_s: float) -> list[tuple[bytes, Resize]]:
        """Orders to pools, with their identities."""
        if now_s - self._last_look_s < LOOK_EVERY_S:
            return []
        self._last_look_s = now_s
        orders = []
        beats = {name: beat for name in self._pools.names() if (beat := self._pools.last_beat(name)) is not None}
        automatic = {name for name, beat in beats.items() if beat.automatic}
        self._autoscales = {name: self._autoscales.get(name) or Autoscale() for name in automatic}
        for name, autoscale in self._autoscales.items():
            if not self._pools.is_obeyed(name):
                continue
            beat = beats[name]
            size = autoscale.look(self._load(name), beat.size, beat.min_workers, beat.max_workers, now_s)
            if size is not None:
                orders.append(self._pools.want(name, size, automatic=True))
        return orders

    def _load(self, pool: str) -> Load:
        idle = set(self._leases.idle_workers())
        names = [name for name in self._pools.workers_of(pool) if name in self._leases.workers]
        names = [name for name in names if not self._leases.workers[name].is_leaving]
        reports = [
            stream.report
            for stream_id, stream in self._streams.items()
            if self._leases.able_workers(stream_id, stream.spec.source, among=names)
        ]
        return Load(
            num_workers=len(names),
            num_idle=len(idle.intersection(names)),
            num_delivered=sum(self._leases.workers[name].num_delivered for name in names),
            waited_fraction=max((report.waited_fraction for report in reports if report), default=0.0),
        )
