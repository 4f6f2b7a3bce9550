"""Where a step's non-finite numbers came from.

In:  a step that is skipped: its micro-batches, its losses, its gradients' exact norms.
Out: a `Fault`: what it showed in, which gradients, weights and samples, which micro-batch first.
Never called for a step that is taken: it reads every weight and every image, and may compute gradients again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from trainer.norms import exact_norms
from trainer.random_state import random_state_kept

Cause = Literal["loss", "gradient", "loss_scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a step was skipped; plain values."""

    cause: Cause
    """`loss`: a loss was not finite. `gradient`: all losses were, a gradient was not. `loss_scale`: so, and it had
    been multiplied by a loss scale above 1, which now halves: a few such steps are fp16 finding its scale."""
    parameters: tuple[str, ...]
    """Whose gradient is not finite, in the model's order; after the sum over micro-batches and ranks."""
    bad_weights: tuple[str, ...]
    """Which parameters are themselves not finite: the fault is older than this step."""
    bad_samples: tuple[int, ...]
    """Offsets in the batch of the samples with a pixel that is not finite."""
    micro_batch: int | None
    """The first that is not finite by itself, from 0; None: none is, or with `loss_scale` it was not looked for. (On
    several ranks each tells of its own.)"""


MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Images and labels."""


def find_fault(
    *,
    cause: Cause,
    names_P: Sequence[str],
    exact_norms_P: torch.Tensor,
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    parts: Sequence[MicroBatch],
    losses: Sequence[float],
    loss_of: Callable[[MicroBatch], torch.Tensor],
    is_alone: bool,
) -> Fault:
    """`losses`: one a micro-batch; `loss_of` computes one again; `is_alone`: no other rank's gradients are in ours."""
    is_finite_P = torch.isfinite(exact_norms_P).tolist()
    weights = [parameter.detach() for _, parameter in named_parameters]
    are_weights_finite = torch.isfinite(exact_norms(weights)).tolist()
    offset, bad_samples = 0, []
    for images, _ in parts:
        is_bad_N = torch.logical_not(torch.isfinite(images).flatten(1).all(dim=1))
        bad_samples += [offset + place for place in is_bad_N.nonzero().flatten().tolist()]
        offset += len(images)
    named = zip(named_parameters, are_weights_finite, strict=True)
    return Fault(
        cause=cause,
        parameters=tuple(name for name, is_finite in zip(names_P, is_finite_P, strict=True) if not is_finite),
        bad_weights=tuple(name for (name, _), is_finite in named if not is_finite),
        bad_samples=tuple(bad_samples),
        micro_batch=_first_bad(cause, named_parameters, parts, losses, loss_of, is_alone),
    )


def _first_bad(
    cause: Cause,
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    parts: Sequence[MicroBatch],
    losses: Sequence[float],
    loss_of: Callable[[MicroBatch], torch.Tensor],
    is_alone: bool,
) -> int | None:
    for place, loss in enumerate(losses):
        if not math.isfinite(loss):
            return place
    if len(parts) == 1 and is_alone:
        return 0
    if cause == "loss_scale":
        return None
    # Only the sum of all was kept, so each is computed once more by itself: with dropout on other draws, and beside
    # the parameters' own gradients, which DistributedDataParallel watches.
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    with random_state_kept():
        for place, part in enumerate(parts):
            found = torch.autograd.grad(loss_of(part), trainable, allow_unused=True)
            gradients = [gradient for gradient in found if gradient is not None]
            if not torch.isfinite(exact_norms(gradients)).all():
                return place
    return None
