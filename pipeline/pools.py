"""Pools: which there are, which size each is to have, and which of their workers are gone.

In:  PoolBeats, workers that joined or were condemned, wishes for another size; time.
Out: workers that their pool does not know any more; Resize and Condemned, again until they are followed.
Pure. Soft state: a pool's beats bring all of it back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.messages import Join
from pipeline.service_messages import Condemned, PoolBeat, PoolStatus, Resize

POOL_SILENT_S = 5.0
"""Seconds of silence after which a pool gets no new size, and an operator asks on until it is back: it beats each
second."""
POOL_TTL_S = 60.0
"""Seconds of silence after which a pool is forgotten; its workers are judged by their own beats."""


@dataclass(slots=True)
class _Pool:
    identity: bytes
    beat: PoolBeat
    heard_s: float
    named: set[str] = field(default_factory=set)
    """By its last beat; and by earlier ones, as far as they are workers here."""
    wanted: tuple[int, bool] | None = None
    """Size, and whether it follows the load; None once the pool has it."""
    ordered: tuple[int, bool] | None = None
    """What was wanted last, also once the pool has it: the next process in its place may begin without it."""
    held: set[tuple[int, bool]] = field(default_factory=set)
    """What its beats have told so far."""


class Pools:
    """A worker that its pool has named and names no more counts as gone; no beat from before it started says so."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._members: dict[str, Join] = {}
        self._condemned: dict[str, str] = {}
        """Worker -> its pool, which has to end it."""

    def joined(self, message: Join) -> None:
        """A worker was admitted."""
        self._members[message.worker] = message
        self._condemned.pop(message.worker, None)

    def gone(self, worker: str) -> None:
        """A worker is not there any more."""
        self._members.pop(worker, None)

    def condemn(self, worker: str) -> tuple[bytes, Condemned] | None:
        """Whom to tell that a silent worker counts as dead, if a pool is known that started it."""
        member = self._members.pop(worker, None)
        if member is None or member.pool not in self._pools:
            return None
        self._condemned[worker] = member.pool
        return self._pools[member.pool].identity, Condemned(pool=member.pool, worker=worker)

    def beaten(self, identity: bytes, beat: PoolBeat, now_s: float) -> list[str]:
        """Take over a pool's beat, unless it is older than what is known; the workers that are gone.

        A worker that was never named may have started after the beat was sent: a pool's beats wait for a dispatcher,
        and may be read after the Join. One that was named, also by an earlier process of the pool, has ended.
        """
        known = self._pools.get(beat.pool)
        if known is None:
            known = self._pools[beat.pool] = _Pool(identity, beat, now_s)
        elif (beat.started_ns, beat.number) <= (known.beat.started_ns, known.beat.number):
            return []
        if beat.started_ns > known.beat.started_ns:
            _take_place(known, beat)
        known.identity, known.beat, known.heard_s = identity, beat, now_s
        known.held.add((beat.size, beat.automatic))
        if known.wanted == (beat.size, beat.automatic):
            known.wanted = None
        named = set(beat.workers)
        for worker in [w for w, pool in self._condemned.items() if pool == beat.pool and w not in named]:
            del self._condemned[worker]
        members = set(self.workers_of(beat.pool))
        gone = members & known.named - named
        known.named = named | known.named & members - gone
        return sorted(gone)

    def orders(self, pool: str) -> list[Resize | Condemned]:
        """What a pool is told in answer to a beat: at least its size, so that it knows that it is heard."""
        known = self._pools[pool]
        size, automatic = known.wanted or (known.beat.size, known.beat.automatic)
        condemned = [Condemned(pool=pool, worker=worker) for worker, of in self._condemned.items() if of == pool]
        return [Resize(pool=pool, size=size, automatic=automatic), *condemned]

    def want(self, pool: str, size: int, *, automatic: bool) -> tuple[bytes, Resize]:
        """The pool is to have this size; whom to tell."""
        known = self._pools[pool]
        known.wanted = known.ordered = (size, automatic)
        return known.identity, Resize(pool=pool, size=size, automatic=automatic)

    def last_beat(self, pool: str) -> PoolBeat | None:
        """What the pool said last, None if it is not known."""
        known = self._pools.get(pool)
        return known.beat if known else None

    def is_obeyed(self, pool: str) -> bool:
        """True if the pool is known and has the size that it is to have."""
        known = self._pools.get(pool)
        return known is not None and known.wanted is None

    def silent_s(self, pool: str, now_s: float) -> float:
        """Seconds since a pool was heard."""
        return now_s - self._pools[pool].heard_s

    def names(self) -> list[str]:
        """All known pools."""
        return sorted(self._pools)

    def workers_of(self, pool: str) -> list[str]:
        """Its workers that have joined."""
        return [name for name, join in self._members.items() if join.pool == pool]

    def member(self, worker: str) -> Join | None:
        """How a worker introduced itself."""
        return self._members.get(worker)

    def tick(self, now_s: float) -> None:
        """Forget pools that have been silent for long."""
        for name in [name for name, pool in self._pools.items() if now_s - pool.heard_s > POOL_TTL_S]:
            del self._pools[name]
            self._condemned = {worker: pool for worker, pool in self._condemned.items() if pool != name}

    def statuses(self, now_s: float) -> tuple[PoolStatus, ...]:
        """All pools, for people."""
        return tuple(
            PoolStatus(
                pool=name,
                host=pool.beat.host,
                pid=pool.beat.pid,
                size=pool.beat.size,
                num_running=len(pool.beat.workers),
                min_workers=pool.beat.min_workers,
                max_workers=pool.beat.max_workers,
                automatic=pool.beat.automatic,
                num_restarts=pool.beat.num_restarts,
                silent_s=now_s - pool.heard_s,
            )
            for name, pool in sorted(self._pools.items())
        )


def _take_place(known: _Pool, beat: PoolBeat) -> None:
    """A process that was started again with a size of the one before gets the size that was ordered since; one that was
    started with another was meant to have it."""
    if (beat.size, beat.automatic) in known.held:
        known.wanted = known.ordered
    else:
        known.wanted = known.ordered = None
        known.held = set()
