"""Gradient norm and clipping.

In:  gradients after backward, the job's `clip` section.
Out: their global 2-norm before clipping; the gradients clipped in place.
Never makes a finite gradient non-finite: what is not finite is not clipped, the step decides (it is skipped).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.job import ClipSection


def global_norm(gradients: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The 2-norm over all elements of all gradients (at least one), a scalar on their device."""
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=dtype) for gradient in gradients])
    return torch.linalg.vector_norm(norms)  # type: ignore[no-any-return]


def exact_norm(gradients: Sequence[torch.Tensor]) -> float:
    """Finite if and only if every element is.

    float32 squares overflow from 1e19 on, so an infinite `global_norm` proves nothing; in float64 the square of no
    float32 overflows. Slower, therefore asked for only after `global_norm` came out non-finite.
    """
    return global_norm(gradients, dtype=torch.float64).item()


def clip_gradients(gradients: Sequence[torch.Tensor], norm: float, section: ClipSection) -> bool:
    """Gradients obey the section's bound afterwards; True if they did not before. `norm` is theirs, and finite."""
    if section.kind == "norm" and norm > section.threshold:
        for gradient in gradients:
            gradient.mul_(section.threshold / norm)
        return True
    if section.kind == "value" and norm > section.threshold:  # no element exceeds the norm
        is_over = torch.stack([gradient.abs().max() for gradient in gradients]).max().item() > section.threshold
        for gradient in gradients:
            gradient.clamp_(-section.threshold, section.threshold)
        return is_over
    return False
