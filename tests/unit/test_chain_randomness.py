"""The generators of a sample: set by its coordinates, whatever was drawn before."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.randomness import SampleRandomness

words = st.integers(0, 2**63 - 1) | st.integers(0, 3)
coordinates = st.tuples(words, words, words, st.integers(0, 5))


def draws(randomness: SampleRandomness) -> list[Any]:
    """Each kind of draw that leaves something behind: half words, a spare normal, a part of a block."""
    generator, python = randomness.generator, randomness.python
    return [
        generator.integers(0, 9, dtype=np.uint32),
        generator.random(),
        generator.normal(),
        python.random(),
        python.gauss(0, 1),
        python.getrandbits(70),
    ]


@given(coordinates, coordinates)
def test_a_reset_forgets_what_was_drawn_before(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    used, fresh = SampleRandomness(), SampleRandomness()
    used.reset(*first)
    draws(used)
    used.reset(*second)
    fresh.reset(*second)
    assert draws(used) == draws(fresh)


@given(coordinates, coordinates)
def test_different_coordinates_draw_different_numbers(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    one, other = SampleRandomness(), SampleRandomness()
    one.reset(*first)
    other.reset(*second)
    drawn = draws(one)[1:5], draws(other)[1:5]
    same = [left == right for left, right in zip(*drawn, strict=True)]
    assert all(same) if first == second else not any(same)
