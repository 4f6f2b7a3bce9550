"""Autoscale: a simulated trainer and simulated workers settle, stay settled, and follow the load."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.autoscale import WAITS, Autoscale, Load
from tests.sizes import cases

TICK_S = 1.0
START_S = 0.3
"""How long a worker takes to start or to leave."""


@dataclass
class Shop:
    """A trainer that could take `demand` slices a second, and workers that make one a second each, as long as the
    machine has cores for them."""

    demand: float
    cores: float = 1000.0
    lowest: int = 1
    highest: int = 64
    size: int = 1
    noise: float = 0.0
    window: float = 1000.0
    """Slices in flight at most: so many workers at most have something to do."""

    def __post_init__(self) -> None:
        self.autoscale = Autoscale()
        self.coin = random.Random(0)
        self.now_s = 0.0
        self.delivered = 0.0
        self.waited: deque[float] = deque(maxlen=10)
        self.running = self.size
        self.changed_s = 0.0
        self.sizes: list[tuple[float, int]] = [(0.0, self.size)]

    @property
    def rate(self) -> float:
        return min(self.demand, self.running, self.cores, self.window)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / TICK_S)):
            self.now_s += TICK_S
            if self.running != self.size and self.now_s - self.changed_s >= START_S:
                self.running = self.size
            wobble = 1.0 + self.noise * self.coin.uniform(-1.0, 1.0)
            self.delivered += self.rate * wobble * TICK_S
            self.waited.append(1.0 - min(1.0, self.rate * wobble / self.demand))
            makes = min(1.0, self.cores / self.running)
            busy = min(self.running, round(self.rate / makes + self.coin.uniform(-0.5, 0.5)))
            load = Load(
                num_workers=self.running, num_idle=self.running - busy, num_delivered=int(self.delivered),
                waited_fraction=sum(self.waited) / len(self.waited),
            )  # fmt: skip
            wanted = self.autoscale.look(load, self.size, self.lowest, self.highest, self.now_s)
            if wanted is not None:
                assert wanted != self.size
                assert self.lowest <= wanted <= self.highest
                self.size, self.changed_s = wanted, self.now_s
                self.sizes.append((self.now_s, wanted))

    def num_changes_since(self, since_s: float) -> int:
        return sum(at_s > since_s for at_s, _ in self.sizes)


@settings(max_examples=cases(50))
@given(demand=st.floats(0.3, 50.0), size=st.integers(1, 64), noise=st.sampled_from([0.0, 0.03]))
@example(demand=35.25, size=17, noise=0.03)  # takes two more after 2,243 s
def test_it_settles_where_the_trainer_does_not_wait_and_stays_there(demand: float, size: int, noise: float) -> None:
    """From any size. Later it may give back some, or take some where noise at the edge asks for it; never both."""
    shop = Shop(demand=demand, size=size, noise=noise)
    shop.run(1500.0)
    settled = shop.size
    assert shop.rate >= demand * (1.0 - WAITS - noise)
    shop.run(2400.0)
    sizes = [settled, *(size for at_s, size in shop.sizes if at_s > 1500.0)]
    falling, rising = sorted(sizes, reverse=True), sorted(sizes)
    assert sizes == falling or (noise and sizes == rising), "up and down again"
    assert shop.rate >= demand * (1.0 - WAITS - noise)
    assert shop.size <= demand / 0.75 + 3


def test_a_waiting_trainer_has_its_workers_within_a_minute() -> None:
    """FastFlow's formula, doubling at most."""
    shop = Shop(demand=6.0)
    shop.run(60.0)
    assert [size for _, size in shop.sizes] == [1, 2, 4, 6]


@pytest.mark.parametrize(("before", "after"), [(4.0, 8.0), (3.0, 12.0)])
def test_it_follows_a_load_that_doubles_and_one_that_halves(before: float, after: float) -> None:
    """The trainer may get a faster chain, or a bigger model."""
    shop = Shop(demand=before)
    shop.run(300.0)
    shop.demand = after
    shop.run(60.0)
    assert shop.rate >= after * (1.0 - WAITS)
    grown = shop.size
    shop.demand = before
    shop.run(25.0)
    assert shop.size == grown, "shrinking takes ten times as long: a pause is no reason"
    shop.run(1500.0)
    assert before <= shop.size <= before / 0.75 + 2


def test_more_workers_than_the_machine_can_feed_are_given_back_and_not_tried_again_soon() -> None:
    """Four cores: the fifth worker only takes from the others."""
    shop = Shop(demand=20.0, cores=4.0)
    shop.run(600.0)
    assert shop.size == 4
    shop.run(3600.0)
    assert shop.size == 4
    assert shop.num_changes_since(600.0) <= 2 * 6, "a trial, and back, every ten minutes at most"


def test_it_stays_within_its_bounds() -> None:
    """Also when it starts outside them."""
    shop = Shop(demand=50.0, lowest=2, highest=5, size=1)
    shop.run(300.0)
    assert shop.size == 5
    shop.demand = 0.1
    shop.run(1500.0)
    assert shop.size == 2


def test_workers_that_idle_while_the_trainer_waits_are_no_reason_to_grow() -> None:
    """The window is the limit then, and status says so."""
    shop = Shop(demand=20.0, window=2.0, size=4)
    shop.run(600.0)
    assert shop.size == 4


def test_nothing_is_concluded_while_workers_die_and_are_replaced() -> None:
    """What is measured then is about no size at all."""
    autoscale = Autoscale()
    for tick in range(400):
        load = Load(num_workers=3 - tick // 10 % 2, num_idle=0, num_delivered=tick, waited_fraction=0.5)
        assert autoscale.look(load, 3, 1, 8, tick * TICK_S) is None
