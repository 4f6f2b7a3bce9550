"""What will become of the signal, foretold from the weights alone.

In:  a model, an example of its input's shape (its values don't matter).
Out: `Prediction`: for each layer what `trainer/health` would measure there; or why nothing can be foretold.
Looks at no data, and leaves the model as it was.

Theory is for plain chains of layers: each takes in what the one before gives, perhaps through an activation, a norm,
pooling. Where branches part and meet again nothing is foretold, and the measurement alone counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from trainer.activations import ACTIVATIONS
from trainer.health.layers import CallOrder, Layer
from trainer.health.records import DeepStats, LayerStats
from trainer.init_layers import WeightedLayer, weighted_layers
from trainer.init_trace import Followers, Trace, trace
from trainer.lint_theory import NORMALIZED, Signal, activated, mapped, slope_square
from trainer.random_state import random_state_kept

_SPELLED = {name: getattr(make, "__name__", "") for name, make in ACTIVATIONS.items()} | {"prelu": "PReLU"}
"""Activation's name -> its class, as `LayerStats` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainLayer:
    """One linear or convolution layer of the forward pass, with what theory needs of it."""

    name: str
    """The module's."""
    kind: str
    stretch: int
    is_normalized: bool
    """A norm reads its output."""
    activation: str
    """That follows, `identity` if none does."""
    parameters: dict[str, Any]
    """The activation's."""
    num_inputs: int
    num_outputs: int
    fan_in: float
    weight_rms: float
    bias_rms: float

    @property
    def weight_gain(self) -> float:
        """By which the layer multiplies a signal's mean square."""
        return self.fan_in * self.weight_rms**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What theory says of a model's first forward and backward pass."""

    deep: DeepStats | None
    """As if it had been measured, to be judged by the same rules; a gradient's size is one of many, only its changes
    mean something. None: theory has nothing to say."""
    why_not: str = ""
    activations: Mapping[str, str] = field(default_factory=dict)
    """Layer -> class of the activation that follows, functional ones too."""


def predict(model: nn.Module, example_NCHW: torch.Tensor) -> Prediction:
    """Theory's `std`, `sample_std` and gradient of each layer, to a few percent a layer where layers are wide."""
    frozen = [one for one in model.parameters() if not one.requires_grad and one.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)  # so that the graph shows these layers as well
    try:
        return _predicted(model, example_NCHW)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _predicted(model: nn.Module, example_NCHW: torch.Tensor) -> Prediction:
    known = {id(layer.weight): layer for layer in weighted_layers(model)}
    seen = trace(model, list(known.values()), example_NCHW)
    order = _call_order(model, example_NCHW)
    followers = {layer.name: seen.followers.get(id(layer.module._parameters.get("weight"))) for layer in order}
    spelled = {
        layer.name: layer.activation or _spelled(followers[layer.name])
        for layer in order
        if layer.activation or _spelled(followers[layer.name])
    }
    why_not = _why_no_chain(order, known, seen)
    if why_not:
        return Prediction(deep=None, why_not=why_not, activations=spelled)
    layers = [_plain(layer, known, followers[layer.name]) for layer in order]
    if any(not _fits(one, other) for one, other in pairwise(layers)):
        return Prediction(deep=None, why_not="its layers are no plain chain", activations=spelled)
    return Prediction(deep=foretold(layers, spelled), activations=spelled)


def foretold(layers: Sequence[PlainLayer], spelled: Mapping[str, str] | None = None) -> DeepStats:
    """Theory's numbers for a chain whose input is normalised: mean 0, std 1, nothing shared between samples."""
    signals: list[Signal] = []
    slopes: list[float] = []
    signal = NORMALIZED
    for place, layer in enumerate(layers):
        z = mapped(signal, layer.weight_gain, layer.bias_rms**2)
        signals.append(z)
        is_known = z.is_finite
        y = NORMALIZED if layer.is_normalized else z
        slope = slope_square(y, layer.activation, layer.parameters) if is_known else math.nan
        # Back through a norm: divided by what it divided by.
        slopes.append(slope / max(z.apart, 1e-60) if layer.is_normalized else slope)
        signal = activated(y, layer.activation, layer.parameters) if is_known else z
        is_last = place + 1 == len(layers)
        if not is_last and layers[place + 1].stretch != layer.stretch and not layer.is_normalized:
            signal = NORMALIZED  # a norm after the activation
    deltas = [1.0] * len(layers)
    for place in range(len(layers) - 2, -1, -1):
        after = layers[place + 1]
        deltas[place] = deltas[place + 1] * math.sqrt(after.weight_gain * slopes[place])
    rows = zip(layers, signals, deltas, strict=True)
    return DeepStats(
        step=0,
        layers=tuple(_row(layer, signal, delta, (spelled or {}).get(layer.name, "")) for layer, signal, delta in rows),
        parameters=(),
    )


def _row(layer: PlainLayer, signal: Signal, delta: float, activation: str) -> LayerStats:
    return LayerStats(
        name=layer.name,
        kind=layer.kind,
        activation=activation,
        stretch=layer.stretch,
        is_normalized=layer.is_normalized,
        fan_in=int(layer.fan_in),
        num_units=1,  # `delta` is a norm already
        std=signal.std if signal.is_finite else math.inf,
        sample_std=math.sqrt(signal.apart) if signal.is_finite else math.inf,
        delta_rms=delta,
        weight_rms=layer.weight_rms,
    )


def _call_order(model: nn.Module, example_NCHW: torch.Tensor) -> list[Layer]:
    """Layers in the order of their first calls; empty if the model can't take the example."""
    order = CallOrder(model, lambda layer, output: None, lambda layer, module, values: None)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with random_state_kept(), torch.enable_grad():
            model.eval()(example_NCHW)
    except Exception:  # the user's own code, which says what is wrong with it when it is trained
        return []
    finally:
        order.detach()
        for module, was_training in modes:
            module.training = was_training
    return order.layers


def _spelled(followers: Followers | None) -> str:
    return _SPELLED[followers.activation.name] if followers is not None and followers.activation is not None else ""


def _why_no_chain(order: Sequence[Layer], known: dict[int, WeightedLayer], seen: Trace) -> str:
    if len(order) < 2:
        return "it has fewer than two layers"
    if seen.num_branches:
        return "it has shortcuts"
    odd = [
        layer.name
        for layer in order
        if not isinstance(layer.module, nn.Linear | _ConvNd) or id(layer.module._parameters.get("weight")) not in known
    ]
    if odd:
        return f"{odd[0]} is no plain linear or convolution layer"
    if any(id(layer.module._parameters.get("weight")) not in seen.followers for layer in order):
        return "its graph does not show all of its layers"
    return ""


def _plain(layer: Layer, known: dict[int, WeightedLayer], followers: Followers | None) -> PlainLayer:
    module = layer.module
    assert isinstance(module, nn.Linear | _ConvNd)
    assert followers is not None
    num_inputs, num_outputs = (
        (module.in_features, module.out_features)
        if isinstance(module, nn.Linear)
        else (module.in_channels, module.out_channels)
    )
    activation = followers.activation
    bias = module.bias
    return PlainLayer(
        name=layer.name,
        kind=type(module).__name__,
        stretch=layer.stretch,
        is_normalized=layer.is_normalized,
        activation=activation.name if activation is not None else "identity",
        parameters=activation.parameters() if activation is not None else {},
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        fan_in=known[id(module.weight)].shape.fan_in,
        weight_rms=_rms(module.weight),
        bias_rms=0.0 if bias is None or layer.is_normalized else _rms(bias),
    )


def _rms(parameter: torch.Tensor) -> float:
    return float(parameter.detach().double().square().mean().sqrt())


def _fits(one: PlainLayer, other: PlainLayer) -> bool:
    """The second can have taken in what the first gave: a flattened image has several values a channel."""
    if other.kind == "Linear":
        return other.num_inputs % one.num_outputs == 0
    return one.kind != "Linear" and other.num_inputs == one.num_outputs
