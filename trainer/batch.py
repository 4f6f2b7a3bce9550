"""A batch as the training loop sees it: tensors and the coordinates they are a function of."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of a stream; equal coordinates mean equal bytes (law 1)."""

    step: int
    """0-based number of the batch in its stream."""
    epoch: int
    """Epoch of its first sample."""
    start: int
    """First position (epoch * N + offset)."""
    stop: int
    """One past the last position; `stop - start` samples."""
    recipe: str
    """Digest of the recipe that made it."""
    digest: str
    """Hex SHA-256 over the samples' digests, labels and ids, in order."""
    images: torch.Tensor
    """Finished images: float32 NCHW in channels_last memory after Normalize and ToTensorV2."""
    labels: torch.Tensor
    """int64 (N,)."""
    sample_ids: torch.Tensor
    """int64 (N,): index in the source of what was really delivered (after any substitution), on the CPU."""
