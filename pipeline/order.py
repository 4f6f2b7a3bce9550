"""Order: positions in a stream become the coordinates of samples.

In:  num_samples, seed, whether to shuffle; then positions (epoch * num_samples + offset).
Out: `SampleKey`s; the index of a substitute for a bad sample.
Pure: no memory that grows with the source, no clock; all that is kept between calls is a cache of fixed size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER_LANE = 2**64 - 1
"""Philox lane of the order's round keys; augmentation uses the lanes 0, 1, 2, ... (one an attempt)."""
SUBSTITUTE_LANE = 2**64 - 2
BLOCK_SIZE = 512
"""Offsets that are permuted together. NumPy's cost a call dwarfs that of its elements: a slice of 16 alone took
260 µs, a block of 512 takes 800, and the slices after it find theirs in the cache. Measured, a sample: 2 µs with one
worker, 7 with four, 50 with 64, which each see few slices of a block; 16 without blocks."""
NUM_HALF_ROUNDS = 10
"""Half-rounds of the Feistel network. Fewer than 6 fail a chi-square test on small sources; 10 leave a margin."""

_U64 = np.uint64
_MIX_1, _MIX_2 = _U64(0xFF51AFD7ED558CCD), _U64(0xC4CEB9FE1A85EC53)  # fmix64 of MurmurHash3 (public domain)


class SampleKey(NamedTuple):
    """The coordinates of one sample, without source and recipe, which a stream fixes."""

    seed: int
    epoch: int
    offset: int
    """Offset in the epoch's order."""
    sample_index: int
    """Index in the source."""


class Order:
    """Within an epoch every index occurs exactly once; seeking costs the same everywhere."""

    def __init__(self, num_samples: int, *, seed: int, shuffle: bool) -> None:
        assert num_samples >= 1
        assert 0 <= seed < 2**64
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle

    def keys(self, start: int, stop: int) -> list[SampleKey]:
        """The samples at positions start..stop-1, in order; a range may cross epochs."""
        keys: list[SampleKey] = []
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            block, row = divmod(offset, BLOCK_SIZE)
            indices = _block(block, self.num_samples, self.seed, epoch) if self.shuffle else self._plain_block(block)
            taken = indices[row : row + stop - start]
            keys += [SampleKey(self.seed, epoch, offset + i, index) for i, index in enumerate(taken)]
            start += len(taken)
        return keys

    def _plain_block(self, block: int) -> range:
        return range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, self.num_samples))

    def substitute(self, key: SampleKey, attempt: int) -> SampleKey:
        """The sample that stands in for `key` at the attempt-th try (1, 2, ...), a function of coordinates only."""
        assert attempt >= 1
        generator = np.random.Philox(
            key=_words(self.seed, key.epoch), counter=_words(0, attempt, SUBSTITUTE_LANE, key.offset)
        )
        word = int(generator.random_raw())
        # The multiply-shift map of 64 random bits onto 0..n-1; its bias is below n / 2**64.
        return key._replace(sample_index=word * self.num_samples >> 64)


@lru_cache(maxsize=64)  # 1 MB at most; a window of 32 blocks in two streams
def _block(block: int, num_samples: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The indices at the offsets of one block of an epoch; the last block is shorter."""
    offsets = np.arange(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, num_samples), dtype=np.int64)
    return tuple(permuted(offsets, num_samples, seed, epoch).tolist())


def permuted(offsets: NDArray[np.int64], num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The image of `offsets` under the bijection of 0..num_samples-1 that belongs to (seed, epoch).

    A Feistel network over the next power of two, walked along its cycle until it falls below num_samples
    (cycle-walking, Black & Rogaway 2002): at most two walks a sample on average.
    """
    num_bits = max(2, (num_samples - 1).bit_length())
    values = _feistel(offsets.astype(_U64), num_bits, _round_keys(seed, epoch))
    outside = values >= num_samples
    while outside.any():
        values[outside] = _feistel(values[outside], num_bits, _round_keys(seed, epoch))
        outside = values >= num_samples
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], num_bits: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    num_low = num_bits // 2
    low_mask, high_mask = _U64((1 << num_low) - 1), _U64((1 << (num_bits - num_low)) - 1)
    low, high = values & low_mask, values >> _U64(num_low)
    for pair in range(0, NUM_HALF_ROUNDS, 2):
        low = low ^ (_mixed(high, round_keys[pair]) & low_mask)
        high = high ^ (_mixed(low, round_keys[pair + 1]) & high_mask)
    return (high << _U64(num_low)) | low


def _mixed(values: NDArray[np.uint64], round_key: np.uint64) -> NDArray[np.uint64]:
    mixed = values ^ round_key
    mixed ^= mixed >> _U64(33)
    mixed *= _MIX_1
    mixed ^= mixed >> _U64(33)
    mixed *= _MIX_2
    mixed ^= mixed >> _U64(33)
    return mixed


@lru_cache(maxsize=64)  # a window touches two epochs a stream; constructing Philox costs 20 µs
def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    # Raw Philox words are the same in every NumPy release, unlike Generator.permutation (NEP 19).
    generator = np.random.Philox(key=_words(seed, epoch), counter=_words(0, 0, ORDER_LANE, 0))
    return generator.random_raw(NUM_HALF_ROUNDS)


def _words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)
