"""Initial weights by name of their law, for any module tree.

In:  a model, a law or the job's `model.init` section; where they are known, the activation and an example input.
Out: the model's weights drawn anew, its biases zero, its norms one and zero; a record of what each weight got.
Never touches frozen parameters, buffers, or parameters that are no layer's own (tokens, positions, scales).

What a law needs to know of a layer, the activation that follows, is read from one forward pass of the example. Without
one, or where the pass shows nothing, from the order of the modules; and where that shows no activation either, the
caller's `activation` is taken. The rules for what is no plain hidden layer are in `docs/initialization.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.errors import ConfigError, Problem
from pipeline.job_model import LAW_PARAMETERS, ActivationSection, InitSection
from pipeline.located import nearest
from trainer.activations import activation_of, as_section
from trainer.gains import gains
from trainer.init_draw import draw
from trainer.init_laws import (
    EMBEDDING_STD,
    INIT_LAWS,
    auto_section,
    law_bound,
    law_gain,
    law_std,
)
from trainer.init_layers import WeightedLayer, is_norm, norm_layers, weighted_layers
from trainer.init_trace import Followers, Trace, trace

_FALLBACK = ActivationSection(name="relu")
"""Follows a hidden layer in a model that shows no activation anywhere: most nets with functional ones have this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitializedWeight:
    """What one weight was drawn from; lint and reports read it."""

    name: str
    law: str
    """The law itself, also under `auto`; `normal` for an embedding under a law that goes by fans."""
    std: float
    """As the law has it, at the end of a residual branch after its scaling."""
    bound: float
    """No weight is larger; inf where the law has no such bound."""
    gain: float
    fan_in: float
    fan_out: float
    activation: str
    """That follows; `identity` where none does."""
    is_normed: bool
    """A norm follows first, so the scale cancels."""
    is_first: bool
    """It takes in the images."""
    is_head: bool
    branch_factor: float = 1.0
    """What the end of a residual branch was multiplied with."""


def initialize(
    model: nn.Module,
    init: InitSection | str,
    activation: ActivationSection | str | None = None,
    *,
    example: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[InitializedWeight, ...]:
    """Every trainable layer's weight has its law's standard deviation, every bias of them is zero.

    Equal models and equal generators (torch's global one if there is none) give equal weights on any device. A tied
    weight is drawn once, under its first module. `default` changes nothing. `lsuv` draws its orthogonal start only:
    `trainer/lsuv.py` goes on from there. Raises ConfigError for names that are no law or activation.
    """
    section = as_init_section(init)
    if section.law == "default":
        return ()
    is_said = activation is not None and not (
        isinstance(activation, ActivationSection) and activation.name == "default"
    )
    said = as_section(activation) if activation is not None and is_said else None
    layers = weighted_layers(model)
    seen = trace(model, layers, example) if example is not None else Trace()
    by_order = _followers_by_order(model, layers, said)
    with torch.no_grad():
        records = [
            _draw_layer(layer, section, seen.followers.get(id(layer.weight), by_order[id(layer.weight)]), generator)
            for layer in layers
        ]
        for norm in norm_layers(model):
            _reset_norm(norm)
        factors = _scale_branch_ends(section, seen)
    return tuple(
        _scaled(record, factors.get(id(layer.weight), 1.0)) for layer, record in zip(layers, records, strict=True)
    )


def as_init_section(init: InitSection | str) -> InitSection:
    """The section of a plain name; ConfigError with the nearest name if there is none such."""
    if isinstance(init, InitSection):
        return init
    if init not in LAW_PARAMETERS:
        expected, way_out = f"one of {', '.join(LAW_PARAMETERS)}", nearest(init, LAW_PARAMETERS)
        raise ConfigError(Problem(file="init", line=0, path="", expected=expected, got=repr(init), way_out=way_out))
    return InitSection(law=init)  # type: ignore[arg-type]


def _draw_layer(
    layer: WeightedLayer, section: InitSection, followers: Followers, generator: torch.Generator | None
) -> InitializedWeight:
    # A recurrent layer's gates have their functions inside.
    has_activation = not followers.is_head and layer.kind != "recurrent"
    activation = followers.activation if has_activation else None
    name = activation.name if activation is not None else "identity"
    layer_gains = gains(name, activation.parameters() if activation is not None else None)
    if section.law == "auto":
        section = auto_section(
            name,
            layer_gains,
            is_first=followers.is_first,
            is_head=followers.is_head,
            is_normed_convolution=followers.is_normed and layer.kind == "convolution",
        )
    if layer.kind == "embedding" and _goes_by_fans(section):
        section = InitSection(law="normal", std=EMBEDDING_STD)
    std = law_std(section, layer.shape, layer_gains)
    _fill(layer, lambda shape: draw(section, std, shape, generator), is_by_block=_is_by_block(section))
    for bias in layer.biases:
        if bias.requires_grad:
            bias.zero_()
    return InitializedWeight(
        name=layer.name,
        law=section.law,
        std=std,
        bound=law_bound(section.law, std),
        gain=law_gain(section, layer_gains),
        fan_in=layer.shape.fan_in,
        fan_out=layer.shape.fan_out,
        activation=name,
        is_normed=followers.is_normed,
        is_first=followers.is_first,
        is_head=followers.is_head,
    )


def _goes_by_fans(section: InitSection) -> bool:
    return INIT_LAWS[section.law].own_gain != "none"


def _is_by_block(section: InitSection) -> bool:
    """Orthogonal is what a matrix is, not a weight: each group is one. (1,024 draws of one channel would be slow.)"""
    return INIT_LAWS[section.law].distribution in ("orthogonal", "delta_orthogonal", "sparse")


def _fill(layer: WeightedLayer, drawn: Callable[[tuple[int, ...]], torch.Tensor], *, is_by_block: bool) -> None:
    weight = layer.weight
    if is_by_block:
        for block in layer.blocks(weight):
            block.copy_(drawn(tuple(block.shape)))
    else:
        weight.copy_(drawn(tuple(weight.shape)))
    if layer.padding_index is not None:
        weight[layer.padding_index].zero_()


def _reset_norm(norm: nn.Module) -> None:
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        maybe_parameter = getattr(norm, name, None)
        if isinstance(maybe_parameter, nn.Parameter) and maybe_parameter.requires_grad:
            maybe_parameter.fill_(value)


def _scale_branch_ends(section: InitSection, seen: Trace) -> dict[int, float]:
    """Ends of residual branches multiplied as `residual` says: the norm's weight, where one ends the branch."""
    if section.residual == "none" or (section.residual == "law" and section.law != "auto"):
        return {}
    scaled = 1.0 / math.sqrt(max(seen.num_branches, 1))
    factors: dict[int, float] = {}
    for parameter, is_norm_weight in seen.branch_ends:
        is_zero = section.residual == "zero" or (section.residual == "law" and is_norm_weight)
        if id(parameter) not in factors:
            factors[id(parameter)] = 0.0 if is_zero else scaled
            if parameter.requires_grad:
                parameter.mul_(factors[id(parameter)])
    return factors


def _scaled(record: InitializedWeight, factor: float) -> InitializedWeight:
    if factor == 1.0:
        return record
    bound = record.bound * factor if factor else 0.0  # no weight is larger than zero then, whatever the law's bound
    return replace(record, std=record.std * factor, bound=bound, branch_factor=factor)


def _followers_by_order(
    model: nn.Module, layers: Sequence[WeightedLayer], said: ActivationSection | None
) -> dict[int, Followers]:
    """What the order of the modules tells: the next activation before the next layer; the last layer is the head."""
    ids = [id(layer.weight) for layer in layers]
    weight_ids = set(ids)
    open_ids: list[int] = []  # layers that wait for their activation: several where one module has several weights
    found: dict[int, ActivationSection] = {}
    normed: set[int] = set()
    for module in model.modules():
        own = [id(weight) for weight in module.parameters(recurse=False) if id(weight) in weight_ids]
        maybe_activation = activation_of(module)
        if own:
            open_ids = own
        elif maybe_activation is not None:
            found |= dict.fromkeys(open_ids, maybe_activation)
            open_ids = []
        elif is_norm(module):
            normed |= set(open_ids)
    fallback = said or (None if found else _FALLBACK)
    first = ids[:1]
    head = ids[-1:] if len(ids) > 1 or said is None else []  # a lone layer whose activation is said is no head
    return {
        each: Followers(
            activation=found.get(each, None if each in head else fallback),
            is_normed=each in normed,
            is_first=each in first,
            is_head=each in head and each not in found,
        )
        for each in weight_ids
    }
