"""Weights drawn from a law's distribution.

In:  a distribution, its standard deviation, the shape of a weight, a generator.
Out: a float32 tensor on the CPU, laid out (outputs, inputs, taps...); equal generators give equal tensors.
Knows no modules, and not which law asks.

Drawn on the CPU also for models elsewhere, so that a seed means the same weights on every device.
"""

from __future__ import annotations

import math

import torch

from pipeline.job_model import InitSection
from trainer.init_laws import INIT_LAWS, TRUNCATED_STD, TRUNCATION, law_bound, num_kept


def draw(
    section: InitSection, std: float, shape: tuple[int, ...], generator: torch.Generator | None = None
) -> torch.Tensor:
    """A weight of the section's law, whose root mean square about its mean is `std`; one group of a layer."""
    distribution = INIT_LAWS[section.law].distribution
    if distribution == "constant":
        return torch.full(shape, section.value if section.law == "constant" else 0.0)
    if distribution == "normal":
        return _normal(shape, generator) * std
    if distribution == "uniform":
        bound = law_bound(section.law, std)
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    if distribution == "truncated_normal":
        return _truncated_normal(shape, generator) * (std / TRUNCATED_STD)
    num_rows, num_columns = shape[0], math.prod(shape[1:])
    if distribution == "orthogonal":
        scale = std * math.sqrt(max(num_rows, num_columns))
        return (_orthogonal(num_rows, num_columns, generator) * scale).reshape(shape)
    if distribution == "delta_orthogonal":
        num_taps = math.prod(shape[2:])
        scale = std * math.sqrt(max(shape[0], shape[1]) * num_taps)
        weight = torch.zeros(shape)
        centre: torch.Tensor = weight
        for num_taps_along in reversed(shape[2:]):
            centre = centre.select(-1, num_taps_along // 2)
        centre.copy_(_orthogonal(shape[0], shape[1], generator) * scale)
        return weight
    assert distribution == "sparse"
    return (_sparse(num_rows, num_columns, section.sparsity, generator) * std).reshape(shape)


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    return torch.empty(shape).normal_(generator=generator)


def _truncated_normal(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    """N(0, 1) cut at +-TRUNCATION, by the inverse of its distribution function."""
    end = math.erf(TRUNCATION / math.sqrt(2.0))
    uniform = torch.empty(shape, dtype=torch.float64).uniform_(-end, end, generator=generator)
    return (torch.erfinv(uniform) * math.sqrt(2.0)).clamp_(-TRUNCATION, TRUNCATION).float()


def _orthogonal(num_rows: int, num_columns: int, generator: torch.Generator | None) -> torch.Tensor:
    """Orthonormal rows or columns, whichever are fewer; uniform over such matrices (Mezzadri 2007: signs by R)."""
    longer, shorter = max(num_rows, num_columns), min(num_rows, num_columns)
    q: torch.Tensor
    r: torch.Tensor
    q, r = torch.linalg.qr(_normal((longer, shorter), generator))
    q *= torch.where(r.diagonal() < 0.0, -1.0, 1.0)
    return q if num_rows >= num_columns else q.T


def _sparse(num_rows: int, num_columns: int, sparsity: float, generator: torch.Generator | None) -> torch.Tensor:
    """Mean square 1 over all weights; each row has the same number of weights that are not zero."""
    kept = num_kept(num_columns, sparsity)
    places = torch.empty((num_rows, num_columns)).uniform_(generator=generator).argsort(dim=1)[:, :kept]
    values = _normal((num_rows, kept), generator) * math.sqrt(num_columns / kept)
    return torch.zeros((num_rows, num_columns)).scatter_(1, places, values)
