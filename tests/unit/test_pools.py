"""Pools: who is gone, what size is wanted, what is repeated until it is followed."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.messages import Join
from pipeline.pools import POOL_TTL_S, Pools
from pipeline.service_messages import Condemned, PoolBeat, Resize

ME = b"pool-1"


def beat(number: int, *workers: str, **changes: Any) -> PoolBeat:
    made = PoolBeat(
        pool="p", host="here", pid=1, started_ns=100, number=number, size=2, min_workers=1, max_workers=8,
        automatic=False, num_restarts=0, workers=workers,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def join(worker: str, pool: str = "p") -> Join:
    return Join(worker=worker, host="here", pid=1, fingerprint="f", sources=("photos",), pool=pool)


def known(*workers: str) -> Pools:
    """A pool that has named these workers, all joined."""
    pools = Pools()
    pools.beaten(ME, beat(1, *workers), 0.0)
    for worker in workers:
        pools.joined(join(worker))
    return pools


def test_a_worker_that_is_named_no_more_is_gone_and_one_that_just_joined_is_not() -> None:
    """Its Join may overtake the beat that was sent before it started."""
    pools = known("a", "b")
    pools.joined(join("c"))
    pools.joined(join("other", pool="q"))
    assert ["b"] == pools.beaten(ME, beat(2, "a"), 1.0)
    pools.gone("b")
    assert [] == pools.beaten(ME, beat(3, "a", "c"), 2.0)
    assert ["c"] == pools.beaten(ME, beat(4, "a"), 3.0)


def test_beats_that_waited_for_a_dispatcher_say_nothing_of_a_worker_that_started_after_them() -> None:
    """Pool and worker start first; the Join comes through another socket, and is read before all of them."""
    pools = Pools()
    pools.joined(join("a"))
    assert [[]] * 4 == [pools.beaten(ME, beat(number), 5.0) for number in (1, 2, 3, 4)]
    assert [] == pools.beaten(ME, beat(5, "a"), 5.0)
    assert ["a"] == pools.beaten(ME, beat(6), 6.0)


def test_workers_of_an_earlier_process_of_the_pool_are_gone_at_the_first_beat_of_the_next() -> None:
    """They died with it. A worker of the new process that has joined already was never named by the old one."""
    pools = known("a", "b")
    pools.joined(join("new"))
    assert ["a", "b"] == pools.beaten(ME, beat(1, started_ns=200), 1.0)
    assert [] == pools.beaten(ME, beat(2, "new", started_ns=200), 2.0)


def test_an_older_beat_changes_nothing() -> None:
    """It was late, or is of a process that was replaced while it was stopped."""
    pools = known("a")
    assert [] == pools.beaten(b"pool-0", beat(9, started_ns=50), 1.0)
    assert [] == pools.beaten(b"pool-0", beat(1), 1.0)
    assert pools.want("p", 3, automatic=False)[0] == ME


def test_a_size_is_ordered_with_each_beat_until_the_pool_has_it() -> None:
    """A Resize may be lost; and each beat is answered, so that the pool knows that it is heard."""
    pools = known("a", "b")
    assert [Resize(pool="p", size=2, automatic=False)] == pools.orders("p")
    order = Resize(pool="p", size=4, automatic=True)
    assert (ME, order) == pools.want("p", 4, automatic=True)
    pools.beaten(ME, beat(2, "a", "b"), 1.0)
    assert ([order], False) == (pools.orders("p"), pools.is_obeyed("p"))
    pools.beaten(ME, beat(3, "a", "b", size=4, automatic=True), 2.0)
    assert ([order], True) == (pools.orders("p"), pools.is_obeyed("p"))


def test_a_condemned_worker_is_named_to_its_pool_until_the_pool_has_ended_it() -> None:
    """It may be stopped, and would hold its place in the pool for ever."""
    pools = known("a", "b")
    assert (ME, Condemned(pool="p", worker="a")) == pools.condemn("a")
    pools.beaten(ME, beat(2, "a", "b"), 1.0)
    assert Condemned(pool="p", worker="a") in pools.orders("p")
    pools.joined(join("a"))
    assert Condemned(pool="p", worker="a") not in pools.orders("p"), "it was only away"
    pools.condemn("a")
    pools.beaten(ME, beat(3, "b"), 2.0)
    assert 1 == len(pools.orders("p"))
    assert pools.condemn("nobody") is None


def test_a_pool_that_is_silent_for_long_is_forgotten() -> None:
    """Pools come and go for weeks."""
    pools = known("a")
    pools.tick(POOL_TTL_S)
    assert ["p"] == pools.names()
    assert 2.0 == pools.statuses(2.0)[0].silent_s
    pools.tick(POOL_TTL_S + 1.0)
    assert [] == pools.names()


def test_a_pool_that_is_started_again_as_it_was_gets_the_size_that_it_was_scaled_to() -> None:
    """Who starts it may not have heard of the scaling yet; `headrace scale` was answered, and must not be undone."""
    pools = known("a", "b")
    pools.want("p", 4, automatic=False)
    pools.beaten(ME, beat(2, "a", "b", size=4), 1.0)
    assert pools.is_obeyed("p")
    pools.beaten(b"pool-2", beat(1, started_ns=200), 2.0)
    assert [Resize(pool="p", size=4, automatic=False)] == pools.orders("p")
    assert not pools.is_obeyed("p")


def test_a_pool_that_is_started_again_with_another_size_keeps_it() -> None:
    """That is the later word."""
    pools = known("a", "b")
    pools.want("p", 4, automatic=False)
    pools.beaten(ME, beat(2, "a", "b", size=4), 1.0)
    pools.beaten(b"pool-2", beat(1, size=3, started_ns=200), 2.0)
    assert [Resize(pool="p", size=3, automatic=False)] == pools.orders("p")
