"""Evaluation on held-out batches.

In:  a model and one pass of batches.
Out: mean loss and accuracy over all their samples.
Never changes the model: not its weights, not its batch-norm statistics, not its mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import RunFailed
from trainer.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model makes of held-out samples."""

    loss: float
    """Mean cross-entropy over the samples (not over batches: a short last batch counts for its samples)."""
    accuracy: float
    """Share of samples whose largest logit is their label's, 0 to 1."""
    num_samples: int


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Equal for equal samples, however they are cut into batches, but for rounding."""
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64)
    num_correct = torch.zeros((), dtype=torch.int64)
    num_samples = 0
    try:
        with torch.no_grad():
            for batch in batches:
                labels_N = batch.labels.to(batch.images.device, non_blocking=True)
                logits_NK = model(batch.images)
                # Summed where the model runs: the host waits once, at the end.
                loss_sum = loss_sum.to(labels_N.device) + functional.cross_entropy(logits_NK, labels_N, reduction="sum")
                num_correct = num_correct.to(labels_N.device) + (logits_NK.argmax(dim=1) == labels_N).sum()
                num_samples += len(labels_N)
    finally:
        model.train(was_training)
    if num_samples == 0:
        raise RunFailed("evaluation: the held-out stream delivered no sample; is its source empty?")
    return Evaluation(
        loss=loss_sum.item() / num_samples, accuracy=num_correct.item() / num_samples, num_samples=num_samples
    )
