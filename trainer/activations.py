"""Activations by name: made, and swapped into any module tree by class.

In:  an activation's name or its `model.activation` section; for a swap, a model.
Out: a fresh module; or the model with its activation modules replaced in place, and which they were.
Never works in place on tensors: hooks that watch gradients need what went in. Their gains: `trainer/gains.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError, Problem
from pipeline.job_model import ActivationName, ActivationSection
from pipeline.located import nearest

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": lambda initial_slope: nn.PReLU(init=initial_slope),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "relu6": nn.ReLU6,
}
"""Name -> function that makes its module from the parameters of `ActivationSection`."""

_CLASSES: dict[type[nn.Module], str] = {nn.PReLU: "prelu"} | {
    make: name for name, make in ACTIVATIONS.items() if isinstance(make, type)
}
_PARAMETERS_OF: dict[str, Callable[[Any], dict[str, Any]]] = {
    "leaky_relu": lambda module: {"negative_slope": module.negative_slope},
    # The first channel's, since one section describes the layer; they are equal until they have learned.
    "prelu": lambda module: {"initial_slope": max(0.0, module.weight.detach().flatten()[0].item())},
    "elu": lambda module: {"alpha": module.alpha},
    "gelu": lambda module: {"approximate": module.approximate},
    "softplus": lambda module: {"beta": module.beta},
}


def as_section(activation: ActivationSection | str) -> ActivationSection:
    """The section of a plain name; ConfigError with the nearest name if there is none such, or it is `default`."""
    if isinstance(activation, ActivationSection):
        activation_name: str = activation.name
    else:
        activation_name = activation
    if activation_name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(
            Problem(
                file="activation", line=0, path="", expected=f"one of {known}", got=repr(activation_name),
                way_out=nearest(activation_name, ACTIVATIONS),
            )
        )  # fmt: skip
    return activation if isinstance(activation, ActivationSection) else ActivationSection(name=_checked(activation))


def make_activation(activation: ActivationSection | str) -> nn.Module:
    """A new module of the named activation with its parameters; `relu` alone means torch's ReLU."""
    section = as_section(activation)
    return ACTIVATIONS[section.name](**section.parameters())


def activation_of(module: nn.Module) -> ActivationSection | None:
    """What a module is called here, with its parameters; None for all but the thirteen named classes themselves.

    Subclasses are left out: they may compute anything.
    """
    name = _CLASSES.get(type(module))
    if name is None:
        return None
    parameters = _PARAMETERS_OF[name](module) if name in _PARAMETERS_OF else {}
    return ActivationSection(name=_checked(name), **parameters)


def swap_activations(
    model: nn.Module, activation: ActivationSection | str, replace: Collection[str] = ()
) -> tuple[str, ...]:
    """Every activation module of the tree is then the named one; returns the paths of those replaced.

    `replace` (or the section's own) limits it to modules of these names, so that a sigmoid which is a gate may stay.
    A module used in several places stays one module. A PReLU brings parameters: swap before the optimizer is made.
    Not seen: functional calls such as F.relu, and modules that no module of the tree registers. ConfigError if there
    is nothing to replace, since a swap without effect is a mistake.
    """
    section = as_section(activation)
    wanted = frozenset(replace) or frozenset(section.replace) or frozenset(ACTIVATIONS)
    anchor = next(model.parameters(), torch.empty(0))
    new: dict[int, nn.Module] = {}
    old: list[nn.Module] = []  # kept, so that no id is given twice
    paths = []
    for parent_path, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):
            if child is None or _CLASSES.get(type(child)) not in wanted:
                continue
            if id(child) not in new:
                made = make_activation(section).to(device=anchor.device, dtype=_floating(anchor.dtype))
                new[id(child)] = made.train(child.training)
                old.append(child)
            parent._modules[name] = new[id(child)]
            paths.append(f"{parent_path}.{name}".lstrip("."))
    if not paths:
        raise ConfigError(_nothing_to_swap(model, section, wanted))
    return tuple(paths)


def _nothing_to_swap(model: nn.Module, section: ActivationSection, wanted: Collection[str]) -> Problem:
    present = sorted({_CLASSES[type(module)] for module in model.modules() if type(module) in _CLASSES})
    return Problem(
        file="the model",
        line=0,
        path="model.activation",
        expected=f"modules to replace by {section.name}: {', '.join(name for name in ACTIVATIONS if name in wanted)}",
        got=", ".join(present) or f"a {type(model).__name__} with no activation module",
        way_out="functional calls (F.relu) can't be swapped: use torch.nn's modules, or leave model.activation out",
    )


def _floating(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _checked(name: str) -> ActivationName:
    assert name in ACTIVATIONS
    return name  # type: ignore[return-value]
