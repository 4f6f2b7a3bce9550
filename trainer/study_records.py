"""What a study keeps of each run: plain numbers, as JSON.

In:  measurements of one run.
Out: `RunRecord`, a line of results.jsonl, and back. A number that is not finite is null.
No torch, no judgement.
"""

from __future__ import annotations

import math

import msgspec


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """One step through all layers with weights, from the first to the last."""

    step: int
    """0-based."""
    grad_norm: float | None
    """Global 2-norm before clipping."""
    forward_std: tuple[float | None, ...]
    """Of each layer's output before the activation."""
    delta_rms: tuple[float | None, ...]
    """Of the loss's gradient with respect to that output."""
    forward_slope: float | None
    """Decades a layer, towards the output; null: no two layers with a finite number above zero."""
    backward_slope: float | None
    """Decades a layer, towards the input: negative where the gradient shrinks on its way back."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A model after `step` steps, on images without augmentation."""

    step: int
    train_loss: float | None
    train_accuracy: float
    held_out_loss: float | None
    held_out_accuracy: float


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a cell of the matrix with a seed."""

    cell: dict[str, str]
    seed: int
    first_loss: float | None
    last_loss: float | None
    """Mean of the last ten steps; null if one of them was not finite, or the run ended before."""
    depths: tuple[Depth, ...]
    """At the first, the middle and the last step; fewer if the run ended before."""
    judged: tuple[Judged, ...]
    num_steps: int
    """Taken or skipped; fewer than the study's if the run was given up."""
    num_skipped: int
    """Steps without a finite gradient."""
    first_skipped: int | None
    clipped_share: float
    """Of the steps that were taken."""
    max_grad_norm: float | None
    """Before clipping; of the finite ones."""
    verdicts: tuple[str, ...]
    """What gradient health said: ids of WARN and CRITICAL, in the order they came."""
    num_classes: int
    num_train_images: int
    num_held_out_images: int
    cpu_s: float
    """Processor seconds for its steps, without making the batches."""


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def to_line(record: RunRecord) -> bytes:
    return msgspec.json.encode(record)
