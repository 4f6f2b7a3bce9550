"""One training step.

In:  a batch, a model with its optimizer, this step's learning rate.
Out: the model one step further, and a `StepResult`.
Never moves the model on a non-finite loss or gradient: such a step is skipped, counted, and leaves no trace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from pipeline.job import ClipSection
from trainer.batch import Batch
from trainer.clipping import clip_gradients, exact_norm, global_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean cross-entropy of the batch, before the step."""
    grad_norm: float
    """Global 2-norm of the gradients, before clipping."""
    was_clipped: bool
    was_skipped: bool
    """True: the loss or a gradient was not finite, and the model is as it was."""
    lr: float
    num_samples: int
    num_correct: int
    """Samples whose largest logit is their label's."""


def train_step(model: nn.Module, optimizer: Optimizer, batch: Batch, *, lr: float, clip: ClipSection) -> StepResult:
    """One gradient step on the batch's mean cross-entropy; skipped without a trace if anything is not finite."""
    labels_N = batch.labels.to(batch.images.device, non_blocking=True)
    for group in optimizer.param_groups:
        group["lr"] = lr
    # Batch norm folds a NaN batch into its running mean in the forward pass already: kept, to undo a skipped step.
    buffers_before = [buffer.clone() for buffer in model.buffers()]

    optimizer.zero_grad(set_to_none=True)
    logits_NK = model(batch.images)
    loss = functional.cross_entropy(logits_NK, labels_N)
    loss.backward()  # type: ignore[no-untyped-call]

    # Measured after backward and before clipping, the only place where the number means the gradient itself. The
    # three numbers come to the host in one transfer: on CUDA this is the step's only wait.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    num_correct = (logits_NK.detach().argmax(dim=1) == labels_N).sum()
    numbers = torch.stack([loss.detach().double(), global_norm(gradients).double(), num_correct.double()])
    loss_value, grad_norm, correct = numbers.tolist()
    if not math.isfinite(grad_norm):
        grad_norm = exact_norm(gradients)

    was_skipped = not (math.isfinite(loss_value) and math.isfinite(grad_norm))
    was_clipped = False
    if was_skipped:
        for buffer, before in zip(model.buffers(), buffers_before, strict=True):
            buffer.copy_(before)
    else:
        was_clipped = clip_gradients(gradients, grad_norm, clip)
        optimizer.step()
    return StepResult(
        loss=loss_value,
        grad_norm=grad_norm,
        was_clipped=was_clipped,
        was_skipped=was_skipped,
        lr=lr,
        num_samples=len(labels_N),
        num_correct=int(correct),
    )
