"""Norms of gradients: one a parameter, of which everything else is made.

In:  gradients after backward (averaged, unscaled).
Out: the vector of their 2-norms, on their device.
Never waits for the device, but in `needs_exact`'s aftermath: that is for numbers that float32 can't hold.

P parameters that have a gradient. The global norm is the norm of norms_P, a parameter's share of it
norms_P**2 / sum(norms_P**2): measuring and clipping go over the gradients once, together.
"""

from __future__ import annotations

import math

import torch

_LOST_SQUARE = 2.0**-106
"""Mean square below which float32 may lose digits: 2**20 times the smallest normal number. Squares that are lost
altogether are below 2**-126, and so no more than a millionth of the sum."""


def gradient_norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """norms_P, each tensor's 2-norm in float32 (float64 gradients: in float64), from one foreach pass."""
    is_double = any(gradient.dtype == torch.float64 for gradient in gradients)
    dtype = torch.float64 if is_double else torch.float32  # bfloat16's own sums have eight bits
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype))


def exact_norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """norms_P in float64: finite if and only if every element is, zero if and only if every element is.

    float32 squares overflow from 1e19 on and vanish from 1e-23 down; in float64 no float32's square does either.
    Several times slower on a CPU, therefore for the gradients only whose float32 norm says nothing.
    """
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float64))


def global_norm(norms_P: torch.Tensor) -> torch.Tensor:
    """The 2-norm over all elements of all tensors whose norms these are, a float64 scalar."""
    return torch.linalg.vector_norm(norms_P.double())  # type: ignore[no-any-return]


def lost_below(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Per tensor, on its device: the float32 norm under which small elements may be missing from it."""
    bounds = [math.sqrt(gradient.numel() * _LOST_SQUARE) for gradient in gradients]
    return torch.tensor(bounds, dtype=torch.float64).to(gradients[0].device)


def needs_exact(norms_P: torch.Tensor, lost_below_P: torch.Tensor) -> torch.Tensor:
    """Whether any of the norms is none that float32 can be believed in: a scalar boolean on the device."""
    return torch.logical_not((norms_P >= lost_below_P) & torch.isfinite(norms_P)).any()


def made_exact(gradients: list[torch.Tensor], norms_P: torch.Tensor, lost_below_P: torch.Tensor) -> torch.Tensor:
    """norms_P in float64, with those measured again that float32 can't be believed in."""
    is_doubtful = torch.logical_not((norms_P >= lost_below_P) & torch.isfinite(norms_P)).tolist()
    places = [place for place, again in enumerate(is_doubtful) if again]
    exact_P = norms_P.double()
    if places:
        exact_P[places] = exact_norms([gradients[place] for place in places])
    return exact_P
