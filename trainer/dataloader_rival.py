"""torch's own DataLoader, set up as well as we know how: the benchmark's rival.

In:  a map-style data set of finished samples, batch size, number of workers.
Out: batches for ever.
Never used by training; it never sees our streams.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

PREFETCH_FACTOR = 4
"""Batches waiting for each worker."""
_ENDLESS = 1 << 40
"""Samples of an epoch: an epoch's edge would make the workers idle, which is not what is measured."""


def rival_batches(
    dataset: Any, *, batch_size: int, num_workers: int, on_worker_start: Callable[[int], None]
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Shuffled (images, labels), collated in the workers into shared memory, pinned where there is a GPU.

    `on_worker_start(number)` runs first in each worker.
    """
    samples: Dataset[Any] = dataset
    loader = DataLoader(
        samples,
        batch_size=batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=_ENDLESS),
        num_workers=num_workers,
        persistent_workers=True,
        prefetch_factor=PREFETCH_FACTOR,
        multiprocessing_context="fork",  # starts soonest, and shares what was imported
        worker_init_fn=on_worker_start,
        pin_memory=torch.cuda.is_available(),
    )
    yield from loader
