"""Gains: by how much an activation shrinks a normal signal, and its gradient, computed and not guessed.

In:  an activation's name and parameters; or functions of an array.
Out: `Gains` for z ~ N(0, 1): forward 1/sqrt(E[f(z)^2]), backward 1/sqrt(E[f'(z)^2]), and the mean E[f(z)].
Numbers in, numbers out: no torch.

Weights of mean zero and variance g^2/fan_in give pre-activations of variance g^2 E[f(z)^2] (He et al. 2015,
equation 7, where f is ReLU and E[f^2] = 1/2): with the forward gain it stays 1 from layer to layer. The same argument
backward, with fan_out and f' (their equation 13), gives the backward gain. Both hold whatever the mean of f: E[f^2] is
the second moment about zero. But a mean m > 0 is a part of the signal that all samples share, so it carries no
information: `shared` = m^2 / E[f^2] is 0.32 for ReLU, 0.85 for sigmoid and 0.71 for softplus.

tanh: torch's `calculate_gain` returns 5/3, a convention without a derivation in its source; the forward gain here is
1.5925. Both work: with 5/3 pre-activations settle at a standard deviation of 1.086 and gradients grow by 0.041 decades
a layer, with ours at 1 and by 0.036. Ours is the one rule for all activations. torch's 3/4 for SELU is empirical as
well; SELU's own is 1 (Klambauer et al. 2017 chose its constants to have that).

Why not Gauss-Hermite over the whole line: where f or f' has a kink or a step it converges as slowly as 1/n (with 64
nodes the backward gains of elu, selu and hardswish are off by 5e-3, 7e-3 and 2e-3). Gauss-Legendre on panels that end
at every whole number, where all of these lie, is exact to 1e-9; a test compares the two where f is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_REACH = 12
"""The integral ends here: N(0, 1) has 4e-33 of its mass beyond."""
_NODES_A_PANEL = 24

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """What one activation does to z ~ N(0, 1)."""

    forward: float
    """Weights of standard deviation forward/sqrt(fan_in) keep the mean square of every layer's pre-activation."""
    backward: float
    """Weights of standard deviation backward/sqrt(fan_out) keep that of the gradient."""
    mean: float
    """E[f(z)]."""

    @property
    def shared(self) -> float:
        """Share of the output's mean square that is its mean: the part all samples have in common."""
        return (self.mean * self.forward) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """f and f' as functions of an array; both take the activation's parameters as keywords."""

    value: Callable[..., Array]
    slope: Callable[..., Array]
    text: str


def gains(name: str, parameters: Mapping[str, Any] | None = None) -> Gains:
    """The gains of a named activation to 1e-9; `identity` has 1 and 1. Raises KeyError for other names."""
    formula = FORMULAS[name]
    given = dict(parameters or {})
    return gains_of(lambda z: formula.value(z, **given), lambda z: formula.slope(z, **given))


def gains_of(value: Function, slope: Function) -> Gains:
    """The gains of any f with kinks at whole numbers only; inf where E[f^2] or E[f'^2] is zero."""
    z, weight = _nodes()
    f, slopes = value(z), slope(z)
    return Gains(
        forward=_inverse_root(float(weight @ (f * f))),
        backward=_inverse_root(float(weight @ (slopes * slopes))),
        mean=float(weight @ f),
    )


def _inverse_root(mean_square: float) -> float:
    return 1.0 / math.sqrt(mean_square) if mean_square > 0.0 else math.inf


@cache
def _nodes() -> tuple[Array, Array]:
    """Points z and weights w with sum(w f(z)) = E[f(z)]."""
    x, w = np.polynomial.legendre.leggauss(_NODES_A_PANEL)
    left = np.arange(-_REACH, _REACH, dtype=np.float64)[:, None]
    z = (left + (x + 1.0) / 2.0).ravel()
    density = np.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
    return z, np.tile(w / 2.0, 2 * _REACH) * density


def _sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def _softplus(z: Array, beta: float = 1.0) -> Array:
    return np.logaddexp(0.0, beta * z) / beta


def _leaky(z: Array, negative_slope: float = 0.01) -> Array:
    return np.where(z > 0.0, z, negative_slope * z)


def _leaky_slope(z: Array, negative_slope: float = 0.01) -> Array:
    return np.where(z > 0.0, 1.0, negative_slope)


def _elu(z: Array, alpha: float = 1.0) -> Array:
    return np.where(z > 0.0, z, alpha * np.expm1(np.minimum(z, 0.0)))


def _elu_slope(z: Array, alpha: float = 1.0) -> Array:
    return np.where(z > 0.0, 1.0, alpha * np.exp(np.minimum(z, 0.0)))


def _normal_cdf(z: Array) -> Array:
    return np.array([0.5 * math.erfc(-each / math.sqrt(2.0)) for each in z])


def _tanh_approximation(z: Array) -> tuple[Array, Array]:
    """tanh's argument in GPT-2's GELU, through tanh, and the argument's slope."""
    factor = math.sqrt(2.0 / math.pi)
    return np.tanh(factor * (z + 0.044715 * z**3)), factor * (1.0 + 3.0 * 0.044715 * z**2)


def _gelu(z: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * z * (1.0 + _tanh_approximation(z)[0])
    return z * _normal_cdf(z)


def _gelu_slope(z: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        bent, slope = _tanh_approximation(z)
        return 0.5 * (1.0 + bent) + 0.5 * z * (1.0 - bent**2) * slope
    return _normal_cdf(z) + z * np.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)


def _mish_slope(z: Array) -> Array:
    bent = np.tanh(_softplus(z))
    return bent + z * (1.0 - bent**2) * _sigmoid(z)


def _hardswish_slope(z: Array) -> Array:
    return np.where(z <= -3.0, 0.0, np.where(z >= 3.0, 1.0, (2.0 * z + 3.0) / 6.0))


FORMULAS: dict[str, Formula] = {
    "identity": Formula(value=lambda z: z, slope=np.ones_like, text="z"),
    "sigmoid": Formula(value=_sigmoid, slope=lambda z: _sigmoid(z) * (1.0 - _sigmoid(z)), text="1 / (1 + exp(-z))"),
    "tanh": Formula(value=np.tanh, slope=lambda z: 1.0 - np.tanh(z) ** 2, text="tanh(z)"),
    "relu": Formula(value=lambda z: np.maximum(z, 0.0), slope=lambda z: np.where(z > 0.0, 1.0, 0.0), text="max(z, 0)"),
    "leaky_relu": Formula(value=_leaky, slope=_leaky_slope, text="z > 0: z; else negative_slope z"),
    "prelu": Formula(
        value=lambda z, initial_slope=0.25: _leaky(z, initial_slope),
        slope=lambda z, initial_slope=0.25: _leaky_slope(z, initial_slope),
        text="z > 0: z; else a z, where a is learned from initial_slope",
    ),
    "elu": Formula(value=_elu, slope=_elu_slope, text="z > 0: z; else alpha (exp(z) - 1)"),
    "selu": Formula(
        value=lambda z: _SELU_SCALE * _elu(z, _SELU_ALPHA),
        slope=lambda z: _SELU_SCALE * _elu_slope(z, _SELU_ALPHA),
        text="1.0507 elu(z), where alpha = 1.6733",
    ),
    "gelu": Formula(value=_gelu, slope=_gelu_slope, text="z P(N(0, 1) < z)"),
    "silu": Formula(
        value=lambda z: z * _sigmoid(z),
        slope=lambda z: _sigmoid(z) * (1.0 + z * (1.0 - _sigmoid(z))),
        text="z / (1 + exp(-z))",
    ),
    "mish": Formula(value=lambda z: z * np.tanh(_softplus(z)), slope=_mish_slope, text="z tanh(log(1 + exp(z)))"),
    "hardswish": Formula(
        value=lambda z: z * np.clip(z + 3.0, 0.0, 6.0) / 6.0, slope=_hardswish_slope, text="z clip(z + 3, 0, 6) / 6"
    ),
    "softplus": Formula(
        value=_softplus, slope=lambda z, beta=1.0: _sigmoid(beta * z), text="log(1 + exp(beta z)) / beta"
    ),
    "relu6": Formula(
        value=lambda z: np.clip(z, 0.0, 6.0),
        slope=lambda z: np.where((z > 0.0) & (z < 6.0), 1.0, 0.0),
        text="clip(z, 0, 6)",
    ),
}
"""Activation -> its formula; `identity` is a layer that no activation follows."""
