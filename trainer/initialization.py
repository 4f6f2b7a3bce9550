"""Initial weights by name of their law.

In:  a model, a law of `INIT_LAWS`, the activation that follows its layers.
Out: the model's linear and convolution weights drawn anew, their biases zero.
Never touches norm layers (they start at weight one, bias zero) or a user's own model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from trainer.activations import ACTIVATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class InitLaw:
    """A distribution of weights, its expected standard deviation, and who proposed it."""

    std: Callable[[int, int, float], float]
    """(fan_in, fan_out, gain) -> expected standard deviation of one weight."""
    draw: Callable[[torch.Tensor, float], object]
    """(weight, std): fills the weight in place."""
    origin: str


def _uniform(weight: torch.Tensor, std: float) -> None:
    bound = math.sqrt(3.0) * std  # the standard deviation of U(-b, b) is b / sqrt(3)
    nn.init.uniform_(weight, -bound, bound)


def _normal(weight: torch.Tensor, std: float) -> None:
    nn.init.normal_(weight, 0.0, std)


def _orthogonal(weight: torch.Tensor, std: float) -> None:
    # Orthonormal rows of length n (or columns, whichever is longer) have mean square 1/n.
    longer = max(weight.shape[0], weight[0].numel())
    nn.init.orthogonal_(weight, gain=std * math.sqrt(longer))


def _xavier_std(fan_in: int, fan_out: int, gain: float) -> float:
    return math.sqrt(2.0 / (fan_in + fan_out))  # as a uniform bound: sqrt(6 / (fan_in + fan_out))


def _kaiming_std(fan_in: int, fan_out: int, gain: float) -> float:
    return gain / math.sqrt(fan_in)


def _orthogonal_std(fan_in: int, fan_out: int, gain: float) -> float:
    # A convolution's weight is one matrix of (channels out) x fan_in; see `_fans` for what fan_out is there.
    return gain / math.sqrt(max(fan_in, fan_out))


INIT_LAWS: dict[str, InitLaw] = {
    "zeros": InitLaw(std=lambda fan_in, fan_out, gain: 0.0, draw=_normal, origin="to see symmetry not break"),
    "normal": InitLaw(std=lambda fan_in, fan_out, gain: 0.01, draw=_normal, origin="Krizhevsky et al. 2012, section 5"),
    "xavier_uniform": InitLaw(std=_xavier_std, draw=_uniform, origin="Glorot & Bengio 2010, equation 16"),
    "xavier_normal": InitLaw(std=_xavier_std, draw=_normal, origin="Glorot & Bengio 2010, equation 12"),
    "kaiming_uniform": InitLaw(std=_kaiming_std, draw=_uniform, origin="He et al. 2015, equation 10"),
    "kaiming_normal": InitLaw(std=_kaiming_std, draw=_normal, origin="He et al. 2015, equation 10"),
    "orthogonal": InitLaw(std=_orthogonal_std, draw=_orthogonal, origin="Saxe et al. 2014"),
}
"""`default` is not here: it leaves torch's own weights and biases alone."""


def initialize(model: nn.Module, law: str, activation: str) -> None:
    """Every linear and convolution weight has the law's standard deviation, every bias of them is zero.

    The last layer is drawn like the others. `default` changes nothing.
    """
    if law == "default":
        return
    gain = ACTIVATIONS[activation].gain
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                fan_in, fan_out = _fans(module.weight, is_matrix=law == "orthogonal")
                INIT_LAWS[law].draw(module.weight, INIT_LAWS[law].std(fan_in, fan_out, gain))
                if module.bias is not None:
                    module.bias.zero_()


def _fans(weight: torch.Tensor, *, is_matrix: bool) -> tuple[int, int]:
    """Connections into and out of one unit; for a weight taken as one matrix, simply its columns and rows."""
    fan_in = weight[0].numel()
    field = 1 if is_matrix else math.prod(weight.shape[2:])
    return fan_in, weight.shape[0] * field
