"""What a step computes in, and the loss scale that half precision needs.

In:  the job's `precision`, an optimizer, the device's kind.
Out: autocast for the forward pass; a loss times the scale, gradients back at their own size, once a step.
Never steps, and never decides that a step is skipped: `trainer/step.py` does, and tells.

After Micikevicius et al. 2018 ("Mixed Precision Training"): gradients under 2**-24 vanish in float16, so the loss is
multiplied, by more while nothing overflows (twice every 2,000 steps) and by half as much after an overflow. bfloat16
has float32's range and needs no scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Optimizer

Precision = Literal["fp32", "bf16", "fp16"]

INITIAL_SCALE = 65536.0
"""2**16, torch's own start."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device_type: str) -> AbstractContextManager[Any]:
    """Layers inside compute in the named precision, as far as torch holds it to be safe; weights stay what they are."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type, dtype=_DTYPES[precision])


class LossScale:
    """torch's GradScaler over *all* gradients, with its skips counted; without a scale every part of it is idle.

    Once a step: `scaled` for each backward, `unscale`, and in the end `ended`.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], device_type: str, initial: float | None
    ) -> None:
        """`initial`: None for no scale. `parameters`: the model's, also those that the optimizer doesn't have."""
        self.num_overflows = 0
        """Steps skipped because scaled gradients overflowed: a few are how the scale finds its size."""
        self._scaler = GradScaler(device_type, init_scale=initial or INITIAL_SCALE, enabled=initial is not None)
        self._optimizers: list[Optimizer] = [optimizer]
        ours = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if others := [parameter for parameter in parameters if id(parameter) not in ours]:
            # It never steps. It is what GradScaler unscales by, and a gradient that is measured has to be unscaled.
            self._optimizers.append(SGD(others, lr=0.0))

    @property
    def is_enabled(self) -> bool:
        return self._scaler.is_enabled()

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the scale, on its device."""
        return self._scaler.scale(loss)

    def unscale(self) -> None:
        """Every gradient divided by the scale; once a step, after the last backward."""
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)

    def step(self) -> None:
        """The optimizer's step; call it only for finite gradients."""
        self._scaler.step(self._optimizers[0])

    def ended(self, *, has_overflowed: bool) -> None:
        """The next step's scale: half as much if any gradient was not finite."""
        self.num_overflows += has_overflowed
        if self.is_enabled:
            self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; `load_state_dict` of them goes on with the same scale."""
        return {"scaler": self._scaler.state_dict(), "num_overflows": self.num_overflows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A job whose precision was changed begins with a scale of its own, or goes on without."""
        self.num_overflows = state["num_overflows"]
        if self.is_enabled and state["scaler"]:
            self._scaler.load_state_dict(dict(state["scaler"]))
