"""Which parameters of a module tree a law of initial weights is for.

In:  a model.
Out: its weighted layers in the order of its modules, each weight once; its norm layers; views of a layer's groups.
Never draws, never runs the model.

Left alone, and listed by nobody: frozen parameters, parameters that are no layer's weight or bias (tokens, positions,
scales of the user's own modules), weights behind `torch.nn.utils.parametrize`, layers that are still lazy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from trainer.init_laws import LayerShape

Kind = Literal["linear", "convolution", "transposed", "attention", "recurrent", "embedding"]
_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedLayer:
    """One weight that a law draws, and the biases that go with it."""

    name: str
    """The weight's first name in the model."""
    kind: Kind
    weight: nn.Parameter
    biases: tuple[nn.Parameter, ...]
    shape: LayerShape
    """Of one group or block."""
    num_blocks: int = 1
    """Groups of a convolution; query, key and value of an attention; gates of a recurrent layer."""
    padding_index: int | None = None
    """Embeddings: the row that stays zero."""

    def blocks(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views of a tensor like the weight, one a block, each (outputs, inputs, taps...)."""
        parts = tensor.chunk(self.num_blocks, dim=0)
        return tuple(part.transpose(0, 1) for part in parts) if self.kind == "transposed" else parts


def weighted_layers(model: nn.Module) -> list[WeightedLayer]:
    """Every trainable weight of the layers known here, once, under the first module that holds it."""
    layers = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        for layer in _layers_of(path, module):
            weight = layer.weight
            if id(weight) in seen or not weight.requires_grad:
                continue
            seen.add(id(weight))
            layers.append(layer)
    return layers


def norm_layers(model: nn.Module) -> list[nn.Module]:
    """Batch, instance, group, layer and RMS norms, each once."""
    return [module for module in model.modules() if is_norm(module)]


def is_norm(module: nn.Module) -> bool:
    """True for torch's norm layers and what derives from them."""
    rms_norm = getattr(nn, "RMSNorm", nn.LayerNorm)  # since torch 2.4
    return isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | rms_norm)


def _layers_of(path: str, module: nn.Module) -> Iterator[WeightedLayer]:
    if isinstance(module, nn.Linear | _ConvNd | nn.Embedding | nn.EmbeddingBag):
        weight = module._parameters.get("weight")
        if weight is not None and not isinstance(weight, UninitializedParameter):  # None: it is parametrized
            yield _plain(f"{path}.weight".lstrip("."), module, weight)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(path, module)
    elif isinstance(module, nn.RNNBase):
        yield from _recurrent(path, module)


def _plain(name: str, module: nn.Module, weight: nn.Parameter) -> WeightedLayer:
    maybe_bias = module._parameters.get("bias")
    biases = () if maybe_bias is None else (maybe_bias,)
    if isinstance(module, _ConvTransposeNd):
        shape = LayerShape(
            num_outputs=module.out_channels // module.groups,
            num_inputs=module.in_channels // module.groups,
            num_taps=math.prod(module.kernel_size),
            taps_apart=math.prod(module.stride),
        )
        return WeightedLayer(
            name=name, kind="transposed", weight=weight, biases=biases, shape=shape, num_blocks=module.groups
        )
    if isinstance(module, _ConvNd):
        shape = LayerShape(
            num_outputs=module.out_channels // module.groups,
            num_inputs=module.in_channels // module.groups,
            num_taps=math.prod(module.kernel_size),
        )
        return WeightedLayer(
            name=name, kind="convolution", weight=weight, biases=biases, shape=shape, num_blocks=module.groups
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        shape = LayerShape(num_outputs=weight.shape[0], num_inputs=weight.shape[1])
        padding = module.padding_idx
        return WeightedLayer(name=name, kind="embedding", weight=weight, biases=(), shape=shape, padding_index=padding)
    return WeightedLayer(name=name, kind="linear", weight=weight, biases=biases, shape=_matrix(weight))


def _attention(path: str, module: nn.MultiheadAttention) -> Iterator[WeightedLayer]:
    """The projections into query, key and value; the one out is a Linear of its own."""
    biases = () if module.in_proj_bias is None else (module.in_proj_bias,)
    if module.in_proj_weight is not None:
        yield WeightedLayer(
            name=f"{path}.in_proj_weight".lstrip("."),
            kind="attention",
            weight=module.in_proj_weight,
            biases=biases,
            shape=_matrix(module.in_proj_weight, num_blocks=3),
            num_blocks=3,
        )
        return
    for part in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weight = getattr(module, part)
        yield WeightedLayer(
            name=f"{path}.{part}".lstrip("."), kind="attention", weight=weight, biases=biases, shape=_matrix(weight)
        )


def _recurrent(path: str, module: nn.RNNBase) -> Iterator[WeightedLayer]:
    for name, weight in module.named_parameters(recurse=False):
        if name.startswith("weight_"):
            biases = tuple(
                bias
                for other, bias in module.named_parameters(recurse=False)
                if other == name.replace("weight_", "bias_", 1)
            )
            num_gates = 1 if name.startswith("weight_hr") else _GATES[module.mode]
            yield WeightedLayer(
                name=f"{path}.{name}".lstrip("."),
                kind="recurrent",
                weight=weight,
                biases=biases,
                shape=_matrix(weight, num_blocks=num_gates),
                num_blocks=num_gates,
            )


def _matrix(weight: torch.Tensor, num_blocks: int = 1) -> LayerShape:
    return LayerShape(num_outputs=weight.shape[0] // num_blocks, num_inputs=weight.shape[1])
