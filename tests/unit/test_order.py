"""Order is a bijection at every size, equal to a brute-force reference, and costs the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.order import NUM_HALF_ROUNDS, ORDER_LANE, Order, permuted

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 2**40)


def reference_index(offset: int, num_samples: int, seed: int, epoch: int) -> int:
    """The same bijection in plain integers: Feistel halves, fmix64, cycle-walking."""
    mask64 = 2**64 - 1
    words = np.random.Philox(
        key=np.array([seed, epoch], dtype=np.uint64), counter=np.array([0, 0, ORDER_LANE, 0], dtype=np.uint64)
    ).random_raw(NUM_HALF_ROUNDS)
    num_bits = max(2, (num_samples - 1).bit_length())
    num_low = num_bits // 2

    def mixed(value: int, key: int) -> int:
        value ^= key
        value ^= value >> 33
        value = value * 0xFF51AFD7ED558CCD & mask64
        value ^= value >> 33
        value = value * 0xC4CEB9FE1A85EC53 & mask64
        return value ^ (value >> 33)

    value = offset
    while True:
        low, high = value & ((1 << num_low) - 1), value >> num_low
        for number, word in enumerate(int(w) for w in words):
            if number % 2 == 0:
                low ^= mixed(high, word) & ((1 << num_low) - 1)
            else:
                high ^= mixed(low, word) & ((1 << (num_bits - num_low)) - 1)
        value = high << num_low | low
        if value < num_samples:
            return value


@given(num_samples=st.integers(1, 3000), seed=SEEDS, epoch=EPOCHS)
def test_an_epoch_visits_every_index_once(num_samples: int, seed: int, epoch: int) -> None:
    indices = permuted(np.arange(num_samples), num_samples, seed, epoch)
    assert np.array_equal(np.arange(num_samples), np.sort(indices))


@given(num_samples=st.integers(1, 10**12), seed=SEEDS, epoch=EPOCHS, data=st.data())
def test_the_order_equals_the_reference(num_samples: int, seed: int, epoch: int, data: st.DataObject) -> None:
    offsets = data.draw(st.lists(st.integers(0, num_samples - 1), min_size=1, max_size=5))
    expected = [reference_index(offset, num_samples, seed, epoch) for offset in offsets]
    assert expected == permuted(np.array(offsets), num_samples, seed, epoch).tolist()


@given(
    num_samples=st.integers(1, 200),
    seed=SEEDS,
    start=st.integers(0, 1000),
    cut=st.integers(0, 60),
    shuffle=st.booleans(),
)
def test_keys_do_not_depend_on_how_a_range_is_cut(
    num_samples: int, seed: int, start: int, cut: int, shuffle: bool
) -> None:
    order = Order(num_samples, seed=seed, shuffle=shuffle)
    assert order.keys(start, start + 60) == order.keys(start, start + cut) + order.keys(start + cut, start + 60)


def test_without_shuffling_the_index_is_the_offset() -> None:
    assert [(1, 0, 0), (1, 1, 1)] == [key[1:] for key in Order(5, seed=3, shuffle=False).keys(5, 7)]


def test_a_billion_samples_can_be_sought_anywhere() -> None:
    """O(1) memory: the keys of the last positions of epoch 1000 need no table."""
    keys = Order(10**9, seed=1, shuffle=True).keys(1001 * 10**9 - 3, 1001 * 10**9 + 3)
    assert [1000] * 3 + [1001] * 3 == [key.epoch for key in keys]
    assert 6 == len({key.sample_index for key in keys})


@pytest.mark.parametrize("num_samples", [2, 3, 4, 5, 7, 8, 13, 24])
def test_every_place_gets_every_index_equally_often(num_samples: int) -> None:
    """Chi-square of (offset, index) over 1,000 seeds; the bound is six standard deviations."""
    counts = np.zeros((num_samples, num_samples))
    for seed in range(1000):
        counts[np.arange(num_samples), permuted(np.arange(num_samples), num_samples, seed, 0)] += 1
    expected = 1000 / num_samples
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = (num_samples - 1) ** 2
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5


def test_neighbouring_seeds_and_epochs_are_unrelated() -> None:
    """Adding seed and epoch would make (0, 1) equal (1, 0)."""
    offsets = np.arange(100)
    orders = [permuted(offsets, 100, seed, epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert 16 == len({tuple(order) for order in orders})


def test_the_first_indices_never_drift() -> None:
    """Golden: a change here changes every run of every user. Update only with a new major version."""
    assert [4, 0, 8, 5, 9, 2, 3, 7, 1, 6] == permuted(np.arange(10), 10, 7, 0).tolist()


@given(num_samples=st.integers(1, 10**9), seed=SEEDS, attempt=st.integers(1, 16))
def test_a_substitute_is_an_index_of_the_source(num_samples: int, seed: int, attempt: int) -> None:
    order = Order(num_samples, seed=seed, shuffle=True)
    key = order.keys(0, 1)[0]
    substitute = order.substitute(key, attempt)
    assert 0 <= substitute.sample_index < num_samples
    assert substitute == order.substitute(key, attempt)
    assert key[:3] == substitute[:3]
