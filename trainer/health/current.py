"""The step under way: what is known of it until it is judged.

In:  what the monitor learns between backward and the optimizer's step.
Out: the same, in one place; its norms, or the parcel that will bring them; the finished `StepStats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.health.measure import DeepProbe, Parcel
from trainer.health.records import SampleLoss, StepStats
from trainer.health.trace import aligned, completed, whole_norm
from trainer.norms import gradient_norms


@dataclass(slots=True, kw_only=True)
class Current:
    """The step under way; also the `StepNumbers` of a step whose parameters are not measured."""

    step: int
    loss: float
    """NaN while it is on the device."""
    lr: float
    base_lr: float
    grad_norm: float
    clip_threshold: float | None
    scaler_scale: float | None
    optimizer_entries: int
    have_stepped: set[int] = field(default_factory=set)
    """Identities of optimizers, where hooks tell."""
    clipped_norm: float | None = None
    was_clipped: bool = False
    was_skipped: bool = False
    names_P: tuple[str, ...] = ()
    """Of the parameters that have a gradient."""
    norms: tuple[float | None, ...] = ()
    is_input_finite: bool | None = None
    bad_weights: tuple[str, ...] = ()
    worst_samples: tuple[SampleLoss, ...] = ()
    batch: Any
    """Coordinates, or what makes them."""
    probe: DeepProbe | None
    parcel: Parcel = field(default_factory=Parcel)
    """What is on the device still: loss, flags, norms."""
    is_light: bool = False
    """The norm of each parameter is measured."""
    is_judged: bool = False
    """Loss and norm will be known: of a light step, and of any where the host has them already."""
    is_plain: bool = False
    """Not suspicious by all that was judged before it, nor measured."""
    is_finished: bool = False
    own_s: float = 0.0

    def coordinates(self) -> Any:
        """Where the samples came from."""
        return self.batch() if callable(self.batch) else self.batch

    def measure(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        names: tuple[str, ...],
        loss: torch.Tensor | float,
        inputs: torch.Tensor | None,
        grad_norm: float | None,
        norms_P: torch.Tensor | None,
        names_P: tuple[str, ...] | None,
    ) -> None:
        """Norms, and what of them is on the host already; the rest goes into the parcel."""
        if norms_P is None:
            gradients = [one.grad for _, one in named if one.grad is not None]
            norms_P = gradient_norms(gradients) if gradients else None
            names_P = None
        self.names_P = names_P or tuple(name for name, one in named if one.grad is not None)
        if is_away(loss):
            self.parcel.add("loss", loss.detach())
            if inputs is not None and inputs.is_floating_point():
                # One sum of everything: not finite if any value is not (or if they overflow float32 together).
                self.parcel.add("is_input_finite", torch.isfinite(inputs.detach().sum(dtype=torch.float32)))
        if norms_P is None:
            self.grad_norm = 0.0
        elif is_away(norms_P):
            self.parcel.add_all("norm:", self.names_P, norms_P)
        else:
            values = norms_P.tolist()
            if grad_norm is None:
                values, self.grad_norm = whole_norm(named, self.names_P, values)
            self.norms = aligned(names, self.names_P, values)

    def stats(self, names: tuple[str, ...], values: Mapping[str, float]) -> StepStats:
        """With what the parcel has brought."""
        stats = StepStats(
            step=self.step,
            loss=self.loss,
            lr=self.lr,
            base_lr=self.base_lr,
            grad_norm=self.grad_norm,
            clipped_norm=self.clipped_norm,
            clip_threshold=self.clip_threshold,
            was_clipped=self.was_clipped,
            was_skipped=self.was_skipped,
            parameters=names if self.norms else (),
            parameter_norms=self.norms,
            scaler_scale=self.scaler_scale,
            is_input_finite=self.is_input_finite,
            bad_weights=self.bad_weights,
            optimizer_entries=self.optimizer_entries,
            worst_samples=self.worst_samples,
        )
        return completed(stats, names, self.names_P, values)


def rates(optimizers: Sequence[Optimizer]) -> tuple[float, float]:
    """(learning rate, what its schedule began from), each the largest of any group; 0 where no group says one, as of
    an Adafactor that finds its own."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    lr = max(float(group.get("lr") or 0.0) for group in groups)
    return lr, max(float(group.get("initial_lr") or group.get("lr") or 0.0) for group in groups)


def is_away(values: torch.Tensor | float) -> TypeGuard[torch.Tensor]:
    """On a device that runs behind the host: reading a value would wait for it."""
    return isinstance(values, torch.Tensor) and values.device.type != "cpu"
