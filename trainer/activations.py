"""Activations by name, each with the gain that keeps a signal's size through it.

In:  a name of the job file.
Out: a fresh module; the gain for initialization.
Never works in place: hooks that watch gradients need what went in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A non-linearity f and its gain."""

    make: Callable[[], nn.Module]
    gain: float
    """1 / sqrt(E[f(z)^2]) for z ~ N(0, 1): weights of variance gain^2 / fan_in keep the mean square of every layer's
    input. A test integrates it. (torch's `calculate_gain` has other numbers for tanh and sigmoid, from other laws.)"""


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(make=nn.ReLU, gain=math.sqrt(2.0)),
    "leaky_relu": Activation(make=nn.LeakyReLU, gain=math.sqrt(2.0 / (1.0 + 0.01**2))),  # torch's slope
    "elu": Activation(make=nn.ELU, gain=1.2451983),
    "gelu": Activation(make=nn.GELU, gain=1.5335302),
    "silu": Activation(make=nn.SiLU, gain=1.6765324),
    "tanh": Activation(make=nn.Tanh, gain=1.5925374),
    "sigmoid": Activation(make=nn.Sigmoid, gain=1.8462286),
}
