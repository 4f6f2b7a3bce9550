"""What a sampled step reads from weights and optimizer state: copied rows, and what Adam divides by.

In:  named parameters, the optimizer's state.
Out: (names, one number each) on the device; tensors of one shape are measured together.
Never waits for the device.

A model of 1,000 small layers has 1,000 small weights. One by one they cost 150 us each, ten operations of a few
numbers; stacked, as much as ten operations.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.norms import real_values

MAX_V_VALUES = 4096
"""Of a parameter's exp_avg_sq, evenly spaced."""
MAX_COLUMNS = 64
"""Of a weight's rows, to see whether they are copies."""
MAX_STACKED = 2**20
"""Values measured together: four megabytes more of memory, for a moment."""

Measured = tuple[list[str], torch.Tensor]


def row_spreads(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[Measured]:
    """The largest difference between a weight's rows over its largest value; 0 for copies."""
    rows = [
        (name, real_values(parameter.detach()).flatten(1)[:, :MAX_COLUMNS])
        for name, parameter in named
        if parameter.ndim >= 2 and len(parameter) > 1
    ]
    for names, rows_GRC in _stacked((name, one, one.shape) for name, one in rows):
        largest_G = rows_GRC.abs().amax(dim=(1, 2)).clamp_min(1e-38)
        yield names, (rows_GRC - rows_GRC[:, :1]).abs().amax(dim=(1, 2)) / largest_G


def adam_roots(
    named: Iterable[tuple[str, nn.Parameter]], optimizers: Sequence[Optimizer], groups: Mapping[int, Mapping[str, Any]]
) -> Iterator[Measured]:
    """Geometric mean of sqrt(v_hat) over elements above zero: like the median of a log-normal, without a sort.

    `groups`: a parameter's id -> its optimizer group. Weights without such a state are left out, also those whose
    steps nobody has counted: v_hat is not known then.
    """
    samples: list[tuple[str, torch.Tensor, Hashable]] = []
    device_steps: dict[str, torch.Tensor] = {}
    for name, parameter in named:
        state: Mapping[str, Any] = next((one.state[parameter] for one in optimizers if parameter in one.state), {})
        second = state.get("exp_avg_sq")
        if parameter.ndim < 2 or not isinstance(second, torch.Tensor) or second.is_sparse:
            continue
        flat = real_values(second).reshape(-1)
        sample = flat[:: max(1, flat.numel() // MAX_V_VALUES)]
        group = groups[id(parameter)]
        beta = float(group.get("betas", (0.9, 0.999))[1])
        step = state.get("step", group.get("step"))  # of the group: timm's Lamb, apex' FusedAdam
        if isinstance(step, torch.Tensor) and step.device.type != "cpu":
            # The step counter of a fused or capturable optimizer: reading it would wait, so it is used where it is.
            device_steps[name] = step
            samples.append((name, sample, (len(sample), beta, None)))
        elif step:
            samples.append((name, sample, (len(sample), beta, float(step))))
    for names, values_GV, key in _stacked_with_keys(samples):
        _, beta, maybe_step = key
        is_positive = values_GV > 0.0
        logs = torch.where(is_positive, values_GV.clamp_min(1e-45).log(), 0.0)
        mean_log = 0.5 * logs.sum(dim=1) / is_positive.sum(dim=1).clamp_min(1)
        if maybe_step is None:
            steps_G = torch.stack([device_steps[name].reshape(()) for name in names]).float()
            mean_log = mean_log - 0.5 * torch.log1p(-(beta**steps_G))
        else:
            mean_log = mean_log - 0.5 * math.log1p(-(beta**maybe_step))
        yield names, torch.where(is_positive.any(dim=1), mean_log.exp(), 0.0)


def _stacked(tensors: Iterable[tuple[str, torch.Tensor, Hashable]]) -> Iterator[Measured]:
    for names, values, _ in _stacked_with_keys(tensors):
        yield names, values


def _stacked_with_keys(
    tensors: Iterable[tuple[str, torch.Tensor, Hashable]],
) -> Iterator[tuple[list[str], torch.Tensor, Any]]:
    """(names, their tensors as one in float32, their key): those of one key and device, `MAX_STACKED` values a time."""
    kinds: dict[Hashable, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    for name, tensor, key in tensors:
        kinds[(key, tensor.device, tensor.dtype)].append((name, tensor))
    for (key, _, _), members in kinds.items():  # type: ignore[misc]
        most = max(1, MAX_STACKED // max(1, members[0][1].numel()))
        for begin in range(0, len(members), most):
            part = members[begin : begin + most]
            yield [name for name, _ in part], torch.stack([one for _, one in part]).float(), key
