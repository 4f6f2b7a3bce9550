"""How each fault is put into a training that would be healthy without it.

In:  a `Run`, before its first step; or before each step, with the step's number.
Out: nothing; the run is spoilt.
What a fault changes it replaces: cases share their images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from trainer.health.layers import is_layer
from trainer.health.rules_input import NORMALIZERS
from trainer.health.suite import Run, new_optimizer

NUM_BAD = 100
"""Digits without a number in them: every batch of 64 of 1,797 has one of these with a chance of 97 %."""
NAN_AT, INF_AT, SPIKE_AT, RESUMED_AT = 100, 60, 120, 120


def layers_of(run: Run) -> list[nn.Module]:
    return [module for module in run.model.modules() if is_layer(module)]


def drawn(std: float) -> Callable[[Run], None]:
    """`std` of all weights; 0 for the wrong Xavier, whose 'std' is sqrt(6) / (fan_in + fan_out)."""

    def prepare(run: Run) -> None:
        with torch.no_grad():
            for layer in layers_of(run):
                weight = layer.weight
                assert isinstance(weight, torch.Tensor)
                nn.init.normal_(weight, std=std or math.sqrt(6) / (weight.shape[0] + weight[0].numel()))

    return prepare


def negative_biases(run: Run) -> None:
    with torch.no_grad():
        for layer in layers_of(run)[1:-1]:
            assert isinstance(layer.bias, torch.Tensor)
            layer.bias.fill_(-20.0)


def loud_head(run: Run) -> None:
    with torch.no_grad():
        weight = layers_of(run)[-1].weight
        assert isinstance(weight, torch.Tensor)
        weight *= 30.0


def raw_pixels(run: Run) -> None:
    """As if the chain had no Normalize: 0 to 255, each channel as a camera gives it."""
    low, high = run.images_NCHW.amin(), run.images_NCHW.amax()
    run.images_NCHW = (run.images_NCHW - low) / (high - low) * 255
    config = run.health.config
    kept = tuple(name for name in config.transforms if name not in NORMALIZERS)
    run.health.config = replace(config, transforms=kept)


def other_normalize(run: Run) -> None:
    """Normalize is there, with the mean and deviation of much darker and flatter images."""
    run.images_NCHW = run.images_NCHW * 8.0 + 4.0


def one_label(run: Run) -> None:
    run.labels_N = torch.full_like(run.labels_N, 3)


def nan_samples(run: Run, step: int) -> None:
    if step == NAN_AT:
        clean = run.images_NCHW
        run.images_NCHW = clean.clone()
        run.images_NCHW[:NUM_BAD] = math.nan
    elif step == NAN_AT + 1:
        run.images_NCHW = run.images_NCHW.nan_to_num(0.0)


def inf_weight(run: Run, step: int) -> None:
    if step == INF_AT:
        with torch.no_grad():
            weight = layers_of(run)[1].weight
            assert isinstance(weight, torch.Tensor)
            weight[0, 0] = math.inf


def spike(run: Run, step: int) -> None:
    if step in (SPIKE_AT, SPIKE_AT + 1):
        run.images_NCHW = run.images_NCHW * (100.0 if step == SPIKE_AT else 0.01)


def growing_rate(run: Run, step: int) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] *= 1.05


def not_in_optimizer(run: Run) -> None:
    kept = [one for name, one in run.model.named_parameters() if name != "3.weight"]
    run.optimizer = torch.optim.AdamW(kept, lr=run.case.lr)


def large_eps(run: Run) -> None:
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=run.case.lr, eps=1.0)


def forgotten_optimizer(run: Run, step: int) -> None:
    """A resume with the weights alone."""
    if step == RESUMED_AT:
        resume(run)


def resume(run: Run) -> None:
    """The process is another one: a new optimizer, and a monitor that goes on from its saved state."""
    state = run.health.state_dict()
    run.optimizer = new_optimizer(run.case, run.model)
    run.renew_health()
    run.health.load_state_dict(state)
