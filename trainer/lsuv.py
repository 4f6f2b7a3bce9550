"""LSUV: each layer's output has unit standard deviation on a real batch, before the first step.

In:  a model, a batch of images.
Out: the model's weights, rescaled layer by layer in the order of their calls; what each was before and after.
Leaves modes, buffers and all random generators as they were. Not for a resumed run: its weights are loaded.

Layer-sequential unit-variance initialization (Mishkin & Matas 2016, "All you need is a good init", algorithm 1):
orthonormal weights, then each layer in turn divided by the standard deviation of its output. Their code runs the
model again for each layer. Here it runs once: a layer's hook rescales the layer, computes its output again, and hands
that on, so that the next layer already sees it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pipeline.errors import ConfigError, Problem
from pipeline.job_model import InitSection
from trainer.init_layers import is_norm
from trainer.initialization import initialize
from trainer.random_state import random_state_kept

_IS_ZERO = 1e-12
"""A smaller output has no scale to set: zero weights, or dead layers before it. Far below what float32 nets reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledLayer:
    """One layer of LSUV; standard deviations are over all elements of its output."""

    name: str
    std_before: float
    std_after: float
    num_tries: int
    """0: it was near enough already, or its output was zero or not finite and it was left alone."""


def lsuv(model: nn.Module, images_NCHW: torch.Tensor, init: InitSection | None = None) -> tuple[ScaledLayer, ...]:
    """Draws orthonormal weights and zero biases, then `scale_to_unit`.

    What is drawn depends on torch's global generator, which is as before afterwards.
    """
    section = init or InitSection(law="lsuv")
    with random_state_kept():
        initialize(model, section)
    return scale_to_unit(model, images_NCHW, tolerance=section.tolerance, max_tries=section.max_tries)


def scale_to_unit(
    model: nn.Module, images_NCHW: torch.Tensor, *, tolerance: float = 0.1, max_tries: int = 10
) -> tuple[ScaledLayer, ...]:
    """Every linear and convolution layer's output has a standard deviation within `tolerance` of 1 on these images.

    Norm layers work with the batch's own statistics meanwhile, dropout is off. A layer that is called several times
    is scaled at its first call; frozen and zero layers are left alone, and so are weights that another module uses
    itself (the output projection of nn.MultiheadAttention). ConfigError for images that are not finite or
    fewer than two. Not promised: the same for other images (a batch of 64 is within a few percent of any other).
    """
    _require_batch(images_NCHW)
    names: dict[nn.Module, str] = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd) and _is_free(module)
    }
    scaled: list[ScaledLayer] = []
    weight_ids: set[int] = set()

    def rescale(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        weight = module._parameters["weight"]
        assert weight is not None
        if id(weight) in weight_ids:
            return output
        weight_ids.add(id(weight))
        std_before = std = _std(output)
        num_tries = 0
        while abs(std - 1.0) > tolerance and num_tries < max_tries and math.isfinite(std) and std > _IS_ZERO:
            weight.div_(std)
            output = module.forward(*inputs)
            std = _std(output)
            num_tries += 1
        name = names[module]
        scaled.append(ScaledLayer(name=name, std_before=std_before, std_after=std, num_tries=num_tries))
        return output

    device = next(model.parameters()).device
    with torch.no_grad(), random_state_kept(), _measuring(model):
        hooks = [module.register_forward_hook(rescale) for module in names]
        try:
            model(images_NCHW.to(device))
        finally:
            for hook in hooks:
                hook.remove()
    return tuple(scaled)


def _std(output: torch.Tensor) -> float:
    return output.float().std(correction=0).item()


def _is_free(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")  # None: parametrized, so that dividing it would not last
    return weight is not None and weight.requires_grad


def _require_batch(images_NCHW: torch.Tensor) -> None:
    num_bad = int((~torch.isfinite(images_NCHW)).sum())
    if images_NCHW.shape[0] < 2 or num_bad:
        got = f"{images_NCHW.shape[0]} images, {num_bad} of their values not finite"
        way_out = "use a larger batch, and look at the chain's output: headrace preview"
        raise ConfigError(
            Problem(
                file="lsuv", line=0, path="model.init", expected="at least two images of finite values", got=got,
                way_out=way_out,
            )
        )  # fmt: skip


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Norms on the batch's statistics, everything else as in evaluation; put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.eval()
    for module in model.modules():
        if is_norm(module):
            module.training = True
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
        for buffer, before in buffers:
            buffer.copy_(before)
