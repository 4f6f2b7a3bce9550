"""Buffers: memory for batches, used again only when no tensor refers to it any more.

In:  a shape and dtype; tensors that the user lets go of, whenever that is.
Out: tensors over pooled memory, 64-byte aligned (torch's allocator), pinned for CUDA.
A user may keep any tensor for ever: its memory is then simply not used again.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray


class BufferPool:
    """Blocks of one size; at most `max_free` wait for their next use, the rest is given back to the system."""

    def __init__(self, *, max_free: int, pinned: bool = False) -> None:
        self._max_free = max_free
        self._pinned = pinned
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()
        self._nbytes = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised contiguous tensor; its block returns to the pool when the last view of it is gone."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        block = self._take_block(nbytes)
        # A fresh array object over the block: torch keeps it alive exactly as long as any tensor uses the storage,
        # saved activations and views included, and its finalizer then returns the block.
        owner = block[:nbytes]
        weakref.finalize(owner, self._give_back, block)
        return torch.from_numpy(owner).view(dtype).view(shape)

    def _take_block(self, nbytes: int) -> NDArray[np.uint8]:
        with self._lock:
            if nbytes > self._nbytes:
                self._nbytes = nbytes
                self._free.clear()
            if self._free:
                return self._free.pop()
            block_nbytes = self._nbytes
        return torch.empty(block_nbytes, dtype=torch.uint8, pin_memory=self._pinned).numpy()

    def _give_back(self, block: NDArray[np.uint8]) -> None:
        with self._lock:
            if block.nbytes == self._nbytes and len(self._free) < self._max_free:
                self._free.append(block)
