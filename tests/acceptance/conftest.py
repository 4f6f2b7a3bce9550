"""Small sources for jobs: arrays, and a folder of JPEGs; a home for what a test starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.home import Home
from tests.images import encoded

NUM_ARRAYS = 100
NUM_PHOTOS = 40


@pytest.fixture
def empty_home() -> Iterator[Home]:
    """Where everything that a test starts belongs; the test fails unless nothing of it is left in the end."""
    home = Home()
    try:
        yield home
        home.assert_empty_soon()
    finally:
        home.remove()


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """An .npz of 100 images (24, 20, 3), all different and none symmetric, in 5 classes."""
    N, H, W, C = np.ix_(*map(np.arange, (NUM_ARRAYS, 24, 20, 3)))
    # Exact on every machine, unlike random draws, which NumPy may change between versions (NEP 19).
    images = ((N * 7919 + H * 104729 + W * 1299709 + C * 15485863) * 2654435761 >> 9) % 256
    path = tmp_path / "arrays.npz"
    np.savez(path, images=images.astype(np.uint8), labels=np.arange(NUM_ARRAYS) % 5)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two class folders with 40 JPEGs of sizes around 64x48."""
    folder = tmp_path / "photos"
    for number in range(NUM_PHOTOS):
        path = folder / ("cats", "dogs")[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("JPEG", image=photograph(number)))
    return folder


def photograph(number: int) -> np.ndarray:
    """(H, W, 3) uint8: another picture for each number."""
    H, W, C = np.ix_(*map(np.arange, (48 + number % 5, 64 - number % 7, 3)))
    return ((H * (3 + number % 4) + W * (2 + C) + 40 * C + 13 * number) // 2 % 256).astype(np.uint8)
