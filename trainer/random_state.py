"""Every random generator that a training step may draw from.

In:  nothing, a seed, or a state that was taken before.
Out: the state, as plain values and tensors; or the generators seeded, or put back to it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_random_state(seed: int) -> None:
    """Every generator begins anew; also Python's and NumPy's, for a user's model may draw from them."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def take_random_state() -> dict[str, Any]:
    """The state of torch (CPU, and each CUDA device), Python's `random` and NumPy's global generator.

    Tensors, numbers and text only, so that it can be loaded without unpickling objects.
    """
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached_gaussian),
    }


def put_random_state(state: dict[str, Any]) -> None:
    """What is drawn next is what was drawn next when the state was taken.

    CUDA states of devices that are not there any more are left out.
    """
    torch.set_rng_state(state["torch"])
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, index)
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn inside leaves no trace outside."""
    state = take_random_state()
    try:
        yield
    finally:
        put_random_state(state)
