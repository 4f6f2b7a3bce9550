"""Norms of gradients: one a parameter, of which everything else is made.

In:  gradients after backward (averaged, unscaled).
Out: the vector of their 2-norms, on their device.
Never waits for the device, but in `needs_exact`'s aftermath (that is for numbers that float32 can't hold) and for
sparse gradients, which wait when they are made one.

P parameters that have a gradient. The global norm is the norm of norms_P, a parameter's share of it
norms_P**2 / sum(norms_P**2): measuring and clipping go over the gradients once, together.
"""

from __future__ import annotations

import math

import torch

_LOST_SQUARE = 2.0**-106
"""Mean square below which float32 may lose digits: 2**20 times the smallest normal number. Squares that are lost
altogether are below 2**-126, and so no more than a millionth of the sum."""


_DOUBLES = frozenset({torch.float64, torch.complex128})


def gradient_norms(gradients: list[torch.Tensor], order: float = 2) -> torch.Tensor:
    """norms_P, each tensor's 2-norm in float32 (float64 gradients: in float64), from one foreach pass.

    Gradients may be sparse or complex; those of several devices meet on the first one's. `order`: of another norm.
    """
    is_double = not _DOUBLES.isdisjoint({gradient.dtype for gradient in gradients})
    dtype = torch.float64 if is_double else torch.float32  # bfloat16's own sums have eight bits
    return _norms(gradients, order, dtype)


def exact_norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """norms_P in float64: finite if and only if every element is, zero if and only if every element is.

    float32 squares overflow from 1e19 on and vanish from 1e-23 down; in float64 no float32's square does either.
    Several times slower on a CPU, therefore for the gradients only whose float32 norm says nothing.
    """
    return _norms(gradients, 2, torch.float64)


def real_values(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers as a dense real tensor: complex ones in pairs, of a sparse one those that it has."""
    if tensor.is_sparse:
        tensor = tensor.coalesce()._values()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


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


def _norms(tensors: list[torch.Tensor], order: float, dtype: torch.dtype) -> torch.Tensor:
    try:
        return torch.stack(torch._foreach_norm(tensors, order, dtype=dtype))
    except RuntimeError:
        # Sparse, complex, or of several devices. Asking each of 1,000 tensors would cost every model a tenth more.
        norms = torch._foreach_norm([real_values(tensor) for tensor in tensors], order, dtype=dtype)
        return torch.stack([norm.to(norms[0].device) for norm in norms])
