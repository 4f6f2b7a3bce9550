"""Processes that train one model together: what a mean over the whole batch needs beyond their own part.

In:  a model, wrapped in DistributedDataParallel or not.
Out: sums over the processes; the context for backward passes that don't synchronise.
Never averages gradients: DistributedDataParallel does, in the last micro-batch's backward.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Ranks:
    """One process alone sums over itself, at no cost."""

    def __init__(self, model: nn.Module) -> None:
        self._maybe_wrapped = model if isinstance(model, DistributedDataParallel) else None
        self.inner = model.module if isinstance(model, DistributedDataParallel) else model
        """The model itself: its parameters' names begin without `module.`."""
        self.size = 1
        if self._maybe_wrapped is not None:
            self.size = torch.distributed.get_world_size(self._maybe_wrapped.process_group)

    def summed(self, numbers: torch.Tensor) -> torch.Tensor:
        """Over all ranks, in place and equal on all of them; NaN on one is NaN on all."""
        if self._maybe_wrapped is not None and self.size > 1:
            torch.distributed.all_reduce(numbers, group=self._maybe_wrapped.process_group)
        return numbers

    def unsynchronised(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: only the last one's backward averages over the ranks."""
        if self._maybe_wrapped is None or is_last:
            return nullcontext()
        return self._maybe_wrapped.no_sync()
