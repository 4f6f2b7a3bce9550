"""A step's record made whole: what came from the device, and which samples stand out.

In:  a `StepStats` with gaps, the numbers of its parcel; the losses of samples.
Out: the `StepStats`; the worst samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from trainer.health.records import SampleLoss, StepStats
from trainer.norms import exact_norms

MAX_CLIP_SAMPLE = 16
NUM_WORST = 5
"""Samples named in a trace."""


def aligned(names: tuple[str, ...], names_P: tuple[str, ...], values: Sequence[float]) -> tuple[float | None, ...]:
    """One entry for each of `names`, None where there is no gradient."""
    if names_P == names:
        return tuple(values)
    known = dict(zip(names_P, values, strict=True))
    return tuple(known.get(name) for name in names)


def whole_norm(
    named: Sequence[tuple[str, nn.Parameter]], names_P: tuple[str, ...], values: list[float]
) -> tuple[list[float], float]:
    """(norms, global norm), exact if need be: float32's squares overflow from 1e19 on, which proves nothing."""
    norm = math.hypot(*values)
    if not math.isfinite(norm):
        gradients = {name: one.grad for name, one in named if one.grad is not None}
        values = exact_norms([gradients[name] for name in names_P]).tolist()
        norm = math.hypot(*values)
    return values, norm


def clip_sample(names_P: tuple[str, ...]) -> tuple[str, ...]:
    """The gradients that are measured again after clipping: all of a small model, evenly spaced ones of a large one.

    Clipping by the global norm scales all alike, so any of them tell; for clipping by value it is an estimate.
    """
    return names_P[:: max(1, -(-len(names_P) // MAX_CLIP_SAMPLE))]


def completed(
    stats: StepStats, names: tuple[str, ...], names_P: tuple[str, ...], values: Mapping[str, float]
) -> StepStats:
    """`values`: `loss`, `is_input_finite`, `clipped`, `norm:NAME`; what is not there was known before."""
    norms = {name.partition(":")[2]: value for name, value in values.items() if name.startswith("norm:")}
    if norms:
        norm = math.hypot(*norms.values()) if math.isnan(stats.grad_norm) else stats.grad_norm
        each = tuple(norms.get(name) for name in names)
        stats = replace(stats, grad_norm=norm, parameters=names, parameter_norms=each)
    if "loss" in values:
        stats = replace(stats, loss=values["loss"])
    if values.get("is_input_finite", 1.0) == 0.0:
        stats = replace(stats, is_input_finite=False)
    if "clipped" in values:
        known = dict(zip(stats.parameters, stats.parameter_norms, strict=True))
        before = math.hypot(*(known[name] or 0.0 for name in clip_sample(names_P)))
        ratio = values["clipped"] / before if before > 0.0 else 1.0
        # Two measurements of one norm differ in the last digits of float32.
        was_clipped = ratio < 1 - 1e-5
        stats = replace(stats, clipped_norm=stats.grad_norm * ratio, was_clipped=was_clipped)
    return stats


def worst_samples(losses: torch.Tensor | Sequence[float]) -> tuple[SampleLoss, ...]:
    """The samples with the largest losses, those without a finite one first."""
    values = losses.detach().float().flatten().tolist() if isinstance(losses, torch.Tensor) else list(losses)
    order = sorted(range(len(values)), key=lambda one: (math.isfinite(values[one]), -values[one]))
    return tuple(SampleLoss(index=one, loss=values[one]) for one in order[:NUM_WORST])
