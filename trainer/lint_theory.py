"""What theory says of a signal on its way through layers: mean field, in numbers alone.

In:  an activation's name and parameters, a layer's fan and the mean square of its weights.
Out: the signal after the layer; by how much a gradient shrinks on its way back.
No torch, no data: wide layers with weights drawn independently, as at the start of a training.

A pre-activation's mean square is split in two (Poole et al. 2016, Schoenholz et al. 2017): `shared`, what two samples
have in common, and `apart`, what tells them apart. A sigmoid's signal stays large while `apart` dies: all of it is
shared. Both go from layer to layer by

    apart'  = fan_in E[w^2] E_t[Var_a f(sqrt(shared) t + sqrt(apart) a)]
    shared' = fan_in E[w^2] E_t[(E_a f(sqrt(shared) t + sqrt(apart) a))^2] + E[b^2]

with t and a from N(0, 1), and a gradient's squared norm a sample goes back by fan_in E[w^2] E[f'(z)^2].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.gains import FORMULAS, gains_of

Array = NDArray[np.float64]

NUM_NODES = 48
"""Of each of the two integrals. An even number, so that ReLU's kink lies between nodes: its covariance is then off by
2 % at most, which is 0.004 decades a layer."""
LARGEST = 1e60
"""A larger mean square counts as infinite: no float32 net holds its root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Pre-activations of one layer: z of a sample is N(0, shared + apart)."""

    shared: float
    apart: float

    @property
    def std(self) -> float:
        """Root of the mean square."""
        return math.sqrt(self.shared + self.apart)

    @property
    def is_finite(self) -> bool:
        """False: nothing can be said of what comes after."""
        return self.shared + self.apart < LARGEST


NORMALIZED = Signal(shared=0.0, apart=1.0)
"""What a norm layer delivers, and what normalised images are."""


def mapped(signal: Signal, weight_gain: float, bias_square: float = 0.0) -> Signal:
    """Through a linear layer: `weight_gain` is fan_in times the weights' mean square."""
    return Signal(shared=weight_gain * signal.shared + bias_square, apart=weight_gain * signal.apart)


def activated(signal: Signal, name: str, parameters: Mapping[str, Any]) -> Signal:
    """Through an activation; `identity` changes nothing."""
    if name == "identity":
        return signal
    nodes, weights = _nodes()
    formula = FORMULAS[name]
    z_TA = math.sqrt(signal.shared) * nodes[:, None] + math.sqrt(signal.apart) * nodes[None, :]
    with np.errstate(over="ignore"):  # exp of far ends, whose weight is nothing
        f_TA = formula.value(z_TA.ravel(), **parameters).reshape(z_TA.shape)
    mean_T = f_TA @ weights
    deviation_TA = f_TA - mean_T[:, None]  # differences, not a difference of squares: `apart` may be tiny
    return Signal(
        shared=max(0.0, float(weights @ mean_T**2)), apart=max(0.0, float(weights @ (deviation_TA**2 @ weights)))
    )


def slope_square(signal: Signal, name: str, parameters: Mapping[str, Any]) -> float:
    """E[f'(z)^2]: what a gradient's squared norm is multiplied with on its way back through the activation."""
    formula, std = FORMULAS[name], signal.std
    with np.errstate(over="ignore"):
        backward = gains_of(
            lambda z: formula.value(std * z, **parameters), lambda z: formula.slope(std * z, **parameters)
        ).backward
    return backward**-2 if math.isfinite(backward) else 0.0


@cache
def _nodes() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    return nodes, weights / math.sqrt(2.0 * math.pi)
