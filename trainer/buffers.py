"""Buffers: memory for batches, used again only when no tensor refers to it any more.

In:  a shape and dtype; tensors that the user lets go of, whenever that is.
Out: tensors over pooled memory, 64-byte aligned (torch's allocator), pinned for CUDA.
A user may keep any tensor for ever: its memory is then simply not used again.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(slots=True)
class _Block:
    memory: NDArray[np.uint8]
    owner: weakref.ref[NDArray[np.uint8]] | None = None
    """The array that torch keeps alive as long as any tensor looks into the memory."""

    @property
    def is_in_use(self) -> bool:
        return self.owner is not None and self.owner() is not None


class BufferPool:
    """Blocks of one size; at most `max_free` wait for their next use, the rest is given back to the system.

    Whether a block is free is looked up when the next one is taken. No finalizer tells: Python would swallow a Ctrl-C
    that comes while one runs, which happened to one in four.
    """

    def __init__(self, *, max_free: int, pinned: bool = False) -> None:
        self._max_free = max_free
        self._pinned = pinned
        self._blocks: list[_Block] = []
        self._lock = threading.Lock()
        self._nbytes = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised contiguous tensor; its block is free again when the last view of it is gone."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        with self._lock:
            block = self._free_block(nbytes)
            # A fresh array object over the block: torch keeps it alive exactly as long as any tensor uses the
            # storage, saved activations and views included.
            owner = block.memory[:nbytes]
            block.owner = weakref.ref(owner)
        return torch.from_numpy(owner).view(dtype).view(shape)

    def _free_block(self, nbytes: int) -> _Block:
        self._nbytes = max(self._nbytes, nbytes)
        in_use: list[_Block] = []
        free: list[_Block] = []
        for block in self._blocks:
            if block.is_in_use:
                in_use.append(block)
            elif block.memory.nbytes == self._nbytes and len(free) < self._max_free:
                free.append(block)
        if not free:
            memory = torch.empty(self._nbytes, dtype=torch.uint8, pin_memory=self._pinned).numpy()
            free.append(_Block(memory))
        self._blocks = in_use + free
        return free[0]
