"""The random numbers of one sample: a function of its coordinates, cheap to set.

In:  (seed, epoch, offset, attempt).
Out: a NumPy generator and a Python one, the same two objects for ever, set to that sample's own sequence.
Never derives one sample's numbers from another's, and never adds coordinates together.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np


class SampleRandomness:
    """Two generators whose next numbers depend on the arguments of the last `reset` only.

    Philox has key (seed, epoch) and counter (0, 0, attempt, offset): its draws count up in the first two words,
    so samples can't run into each other's numbers.
    """

    __slots__ = ("_bit_generator", "_counter", "_key", "_state", "generator", "python")

    def __init__(self) -> None:
        self._bit_generator = np.random.Philox(key=0)
        # Lists, not arrays: NumPy reads the state word by word, and each word of an array is first made an object.
        self._key = [0, 0]
        self._counter = [0, 0, 0, 0]
        # buffer_pos 4 says that no drawn word is left over; has_uint32 says the same of half words.
        self._state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": self._counter, "key": self._key},
            "buffer": [0, 0, 0, 0],
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self.generator = np.random.Generator(self._bit_generator)
        self.python = random.Random(0)

    def reset(self, seed: int, epoch: int, offset: int, attempt: int = 0) -> None:
        """Equal coordinates give equal sequences, different ones give unrelated ones; each fits 64 bits."""
        key = self._key
        key[0] = seed
        key[1] = epoch
        counter = self._counter
        counter[2] = attempt
        counter[3] = offset
        self._bit_generator.state = self._state
        # One integer from which all four can be read back. `attempt` stands highest, being nearly always 0:
        # a shorter integer is seeded faster.
        self.python.seed((((attempt << 64 | seed) << 64) | epoch) << 64 | offset)
