"""Kinds of clipping, each for one group of parameters.

In:  the group's gradients and their norm, the rule of the job file.
Out: the gradients clipped in place, and what was done.
Never called in a step that is skipped: statistics and gradients see finite numbers only, and finite they stay.

A rule works in two parts: `prepare` leaves on the device what has to travel to the host with the step's other numbers;
`clip` gets it back as numbers, and clips. U output units of all the group's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from pipeline.job_clip import ClipRule
from trainer.auto_clip import AutoBound
from trainer.norms import exact_norms, global_norm, gradient_norms

_TINY_FACTOR = 2.0**-100
"""Below it a factor comes near to what float32 can hold in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A parameter of a group."""

    name: str
    parameter: nn.Parameter
    unit_dim: int
    """The dimension along which its output units are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """What a rule did to a group."""

    clipped_norm: float
    """2-norm of the group's gradients afterwards."""
    bound: float
    """`value`: of each element; `norm`, `auto`: of the norm; `agc`: of a unit's gradient as a share of its weights;
    infinite: there was none."""
    was_clipped: bool


class Rule(Protocol):
    """One kind of clipping, with its state."""

    def prepare(self, members: Sequence[Member], dtype: torch.dtype) -> list[torch.Tensor]:
        """Scalars on the device, equally many in every step; `dtype` is one in which no square is lost."""

    def clip(self, members: Sequence[Member], norm: float, numbers: Sequence[float]) -> Bounded:
        """`norm` is the group's and finite, `numbers` are what `prepare` returned."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values; empty where nothing is remembered."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of a rule of the same kind."""


def make_rule(rule: ClipRule) -> Rule:
    """The rule's kind, with nothing remembered yet."""
    if rule.kind == "value":
        return ValueRule(rule.threshold)
    if rule.kind == "agc":
        return AdaptiveRule(rule.ratio, rule.min_weight_norm)
    if rule.kind == "auto":
        return AutoRule(rule)
    return NormRule(rule.threshold if rule.kind == "norm" else math.inf)


class _Stateless:
    def prepare(self, members: Sequence[Member], dtype: torch.dtype) -> list[torch.Tensor]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class NormRule(_Stateless):
    """The group's norm is at most the threshold afterwards, its direction as before.

    Pascanu, Mikolov & Bengio 2013 ("On the difficulty of training recurrent neural networks", algorithm 1).
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def clip(self, members: Sequence[Member], norm: float, numbers: Sequence[float]) -> Bounded:
        return _scale_down(members, norm, self._threshold)


class AutoRule(_Stateless):
    """As `NormRule`, with a percentile of the group's norms in the steps before for a threshold."""

    def __init__(self, rule: ClipRule) -> None:
        self._auto = AutoBound(rule)

    def clip(self, members: Sequence[Member], norm: float, numbers: Sequence[float]) -> Bounded:
        bounded = _scale_down(members, norm, self._auto.bound())
        self._auto.observe(norm)
        return bounded

    def state_dict(self) -> dict[str, Any]:
        return self._auto.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._auto.load_state_dict(state)


class ValueRule(_Stateless):
    """Each element is in [-threshold, threshold] afterwards, and as it was if it was there before.

    It turns the gradient. (torch's clip_grad_value_; Mikolov 2012, as told by Pascanu et al. 2013, section 3.2.)
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def clip(self, members: Sequence[Member], norm: float, numbers: Sequence[float]) -> Bounded:
        """Only where the norm exceeds the threshold: the host then waits a second time in this step."""
        if norm <= self._threshold:  # no element exceeds the norm
            return Bounded(clipped_norm=norm, bound=self._threshold, was_clipped=False)
        gradients = _gradients(members)
        largest = torch.stack([gradient.abs().max().double() for gradient in gradients]).max()
        torch._foreach_clamp_min_(gradients, -self._threshold)
        torch._foreach_clamp_max_(gradients, self._threshold)
        clipped_norm, before = torch.stack([global_norm(gradient_norms(gradients)), largest]).tolist()
        if not math.isfinite(clipped_norm):
            clipped_norm = global_norm(exact_norms(gradients)).item()
        return Bounded(clipped_norm=clipped_norm, bound=self._threshold, was_clipped=before > self._threshold)


class AdaptiveRule(_Stateless):
    """Each output unit's gradient has at most `ratio` times the norm of that unit's weights afterwards.

    Adaptive gradient clipping: Brock et al. 2021 ("High-Performance Large-Scale Image Recognition Without
    Normalization", equation 3). A parameter of one dimension is one unit, as in timm's `agc.py`.
    """

    def __init__(self, ratio: float, min_weight_norm: float) -> None:
        self._ratio = ratio
        self._min_weight_norm = min_weight_norm
        self._factors_U = torch.empty(0)
        """Of all parameters' units in a row, each up to 1; from `prepare` to `clip`."""

    def prepare(self, members: Sequence[Member], dtype: torch.dtype) -> list[torch.Tensor]:
        """The norm that the group is going to have, and how many of its units are over their bound."""
        norms_U = torch.cat([_unit_norms(_gradient(member), member.unit_dim, dtype) for member in members])
        weights = [_unit_norms(member.parameter.detach(), member.unit_dim, dtype) for member in members]
        bounds_U = torch.cat(weights).clamp(min=self._min_weight_norm) * self._ratio
        self._factors_U = (bounds_U / norms_U).clamp(max=1.0)  # a unit without gradient: infinite, so 1
        return [global_norm(norms_U * self._factors_U), (norms_U > bounds_U).sum().double()]

    def clip(self, members: Sequence[Member], norm: float, numbers: Sequence[float]) -> Bounded:
        clipped_norm, num_over = numbers
        if num_over:
            nums_units = [_num_units(member.parameter, member.unit_dim) for member in members]
            for member, factors in zip(members, torch.split(self._factors_U, nums_units), strict=True):
                gradient = _gradient(member)
                shape = [1] * gradient.ndim
                if gradient.ndim >= 2:
                    shape[member.unit_dim] = -1
                gradient.mul_(factors.view(shape).to(gradient.dtype))
        return Bounded(clipped_norm=clipped_norm, bound=self._ratio, was_clipped=num_over > 0)


def _scale_down(members: Sequence[Member], norm: float, threshold: float) -> Bounded:
    if norm <= threshold:
        return Bounded(clipped_norm=norm, bound=threshold, was_clipped=False)
    factor = threshold / norm
    # A gradient of 1e37 times a factor that float32 rounds to zero is zero; in two halves it is not.
    for part in (factor,) if factor > _TINY_FACTOR else (math.sqrt(factor),) * 2:
        torch._foreach_mul_(_gradients(members), part)
    return Bounded(clipped_norm=threshold, bound=threshold, was_clipped=True)


def _gradient(member: Member) -> torch.Tensor:
    gradient = member.parameter.grad
    assert gradient is not None
    return gradient


def _gradients(members: Sequence[Member]) -> list[torch.Tensor]:
    return [_gradient(member) for member in members]


def _unit_norms(tensor: torch.Tensor, unit_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """One a unit, in a row."""
    if tensor.ndim < 2:
        return torch.linalg.vector_norm(tensor, dtype=dtype).reshape(1)  # type: ignore[no-any-return]
    others = [dim for dim in range(tensor.ndim) if dim != unit_dim]
    return torch.linalg.vector_norm(tensor, dim=others, dtype=dtype)  # type: ignore[no-any-return]


def _num_units(tensor: torch.Tensor, unit_dim: int) -> int:
    return tensor.shape[unit_dim] if tensor.ndim >= 2 else 1
