"""Learning-rate schedules: each step's rate is a pure function of the step and of a plateau's state.

In:  the job's `schedule` section, the step (0-based), the held-out losses seen so far.
Out: a learning rate.
Never reads an optimizer, never keeps a step counter: a resumed run asks for its step and gets the same rate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from pipeline.job import ScheduleSection


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauState:
    """What a plateau schedule remembers of the evaluations so far."""

    best_loss: float = math.inf
    num_bad: int = 0
    """Evaluations since the best one or the last drop."""
    num_drops: int = 0

    def after(self, held_out_loss: float, patience: int) -> PlateauState:
        """More than `patience` evaluations in a row without a lower loss make one drop; NaN is never lower."""
        if held_out_loss < self.best_loss:
            return replace(self, best_loss=held_out_loss, num_bad=0)
        if self.num_bad < patience:
            return replace(self, num_bad=self.num_bad + 1)
        return replace(self, num_bad=0, num_drops=self.num_drops + 1)


def learning_rate(section: ScheduleSection, base_lr: float, step: int, num_steps: int, num_drops: int = 0) -> float:
    """The rate of a step: a linear climb over the warm-up, reaching `base_lr` at its end, then the schedule's curve."""
    if step < section.warmup_steps:
        return base_lr * (step + 1) / section.warmup_steps
    since_warmup = step - section.warmup_steps
    if section.kind == "step":
        return base_lr * section.gamma ** (since_warmup // section.step_every)
    if section.kind == "cosine":
        # Divided by the last step, not by the count, so that the last step's rate is min_lr itself.
        progress = min(1.0, since_warmup / max(1, num_steps - section.warmup_steps - 1))
        return section.min_lr + (base_lr - section.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if section.kind == "plateau":
        # A base rate already under the floor stays where it is: a plateau never raises the rate.
        return max(base_lr * section.gamma**num_drops, min(section.min_lr, base_lr))
    return base_lr


class Schedule:
    """A schedule bound to a job: `lr(step)`, and `observe` after each evaluation (only a plateau listens)."""

    def __init__(self, section: ScheduleSection, base_lr: float, num_steps: int) -> None:
        self.section = section
        self.base_lr = base_lr
        self.num_steps = num_steps
        self.plateau = PlateauState()

    def lr(self, step: int) -> float:
        """Equal for equal steps and equal observed losses, in whatever order steps are asked for."""
        return learning_rate(self.section, self.base_lr, step, self.num_steps, self.plateau.num_drops)

    def observe(self, held_out_loss: float) -> None:
        self.plateau = self.plateau.after(held_out_loss, self.section.patience)

    def state_dict(self) -> dict[str, float | int]:
        """Plain numbers; `load_state_dict` of them gives the same rates from here on."""
        return asdict(self.plateau)

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.plateau = PlateauState(
            best_loss=float(state["best_loss"]), num_bad=int(state["num_bad"]), num_drops=int(state["num_drops"])
        )
