"""What watching gradients costs, measured from outside: the same training twice, step beside step.

In:  a model to build, a number of rounds.
Out: the seconds of each pair of steps, without and with gradient health; what health says itself.
Never asserts a time. Both trainings get the same batches and end in the same weights, which is checked.

A pair is one step of each training, first the one, then the other, and the other way round in the next pair: whatever
slows the machine down slows both. With one thread the clock is that of the thread, so that other processes' turns do
not count; with more it is the wall's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import nn

from pipeline.job import ModelSection, OptimizerSection
from pipeline.job_clip import ClipSection
from trainer.batch import Batch
from trainer.health.monitor import GradientHealth
from trainer.health.observer import HealthObserver
from trainer.health.overhead import DEEP_SHARE, LIGHT_SHARE, Overhead, Pace
from trainer.models import build_model
from trainer.optimizers import build_optimizer
from trainer.step import Stepper

ROUND = 8
"""Pairs a round: one deep step; the others light where all are, else three light ones and four not measured."""
FIRST_STEP = 64
"""Early steps are deep or light whatever the interval."""
NUM_CLASSES = 10

Kind = Literal["idle", "light", "deep"]
Interval = int | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that is trained."""

    name: str
    build: Callable[[], nn.Module]
    input_shape_CHW: tuple[int, int, int]
    batch_size: int = 32

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        images_NCHW = torch.randn(self.batch_size, *self.input_shape_CHW, generator=generator)
        return Batch(
            step=step,
            epoch=0,
            start=self.batch_size * step,
            stop=self.batch_size * (step + 1),
            recipe="",
            digest="",
            images=images_NCHW.to(memory_format=torch.channels_last),
            labels=torch.randint(NUM_CLASSES, (self.batch_size,), generator=generator),
            sample_ids=torch.arange(self.batch_size),
        )


class Residual(nn.Module):
    """A narrow layer beside a shortcut, scaled so that a thousand of them train."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(width, width), nn.ReLU()
        self.scale = 1.0 / math.sqrt(num_layers)

    def forward(self, x_NC: torch.Tensor) -> torch.Tensor:
        output_NC: torch.Tensor = x_NC + self.scale * self.activation(self.linear(x_NC))
        return output_NC


def build_thin(num_layers: int = 1000, width: int = 16, num_inputs: int = 192) -> nn.Module:
    """`num_layers` linear layers, the first and the last among them: the most norms for the least computing."""
    hidden = [Residual(width, num_layers) for _ in range(num_layers - 2)]
    return nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, width), *hidden, nn.Linear(width, NUM_CLASSES))


def subjects() -> list[Subject]:
    """Those of the benchmark: what many train, and the worst case for watching."""
    shape = (3, 64, 64)
    resnet = ModelSection(kind="resnet", width=16, depth=1)
    return [
        Subject(name="resnet", build=lambda: build_model(resnet, shape, NUM_CLASSES), input_shape_CHW=shape),
        Subject(name="1,000 layers", build=build_thin, input_shape_CHW=(3, 8, 8)),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One step of each training."""

    kind: Kind
    alone_s: float
    watched_s: float
    alone_wall_s: float
    """By the clock that health uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A median and the interval that holds the true one with 95 %, by the order of the values alone."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one subject showed. Shares are of the time of a step without gradient health."""

    name: str
    num_tensors: int
    """Parameters, each with a norm of its own."""
    rounds: tuple[tuple[Pair, ...], ...]
    auto: Overhead
    """Health's own account of a run with `auto` intervals: those are the ones that hold below."""
    fixed: Overhead
    """... and of the very steps of `rounds`."""
    are_weights_equal: bool

    @property
    def alone_s(self) -> float:
        """Median step without gradient health."""
        return median(pair.alone_s for pairs in self.rounds for pair in pairs)

    @property
    def ratio(self) -> Estimate:
        """A step with gradient health by one without, in the long run at the chosen intervals."""
        light, deep = self.light_share, self.deep_share
        low, high = 1.0 + light.low + deep.low, 1.0 + light.high + deep.high
        return Estimate(value=1.0 + light.value + deep.value, low=low, high=high)

    @property
    def light_share(self) -> Estimate:
        """From outside: of measured steps and of those between them."""
        every = self.auto.light_every
        light = self._extra("light")
        if every == 1:
            return light
        idle = self._extra("idle")
        low, value, high = (
            (of_light + (every - 1) * of_idle) / every
            for of_light, of_idle in ((light.low, idle.low), (light.value, idle.value), (light.high, idle.high))
        )
        return Estimate(value=value, low=low, high=high)

    @property
    def deep_share(self) -> Estimate:
        """From outside."""
        deep, every = self._extra("deep"), self.auto.deep_every
        return Estimate(value=deep.value / every, low=deep.low / every, high=deep.high / every)

    @property
    def own_light_share(self) -> float:
        """By health's own clock in the same steps, at the chosen intervals."""
        every = self.auto.light_every
        return (self.fixed.light_s + (every - 1) * self.fixed.idle_s) / every / self._alone_wall_s

    @property
    def own_deep_share(self) -> float:
        return self.fixed.deep_s / self.auto.deep_every / self._alone_wall_s

    @property
    def _alone_wall_s(self) -> float:
        # Not health's own step_s: between two steps of the one training lies one of the other.
        return median(pair.alone_wall_s for pairs in self.rounds for pair in pairs)

    def _extra(self, kind: Kind) -> Estimate:
        """Of one step of this kind: the difference of its pair by the round's median step."""
        extras = []
        for pairs in self.rounds:
            alone_s = median(pair.alone_s for pair in pairs)
            extras += [(pair.watched_s - pair.alone_s) / alone_s for pair in pairs if pair.kind == kind]
        return estimate(extras)


def estimate(values: list[float]) -> Estimate:
    """With fewer than six values the interval is all of them."""
    ordered = sorted(values)
    # So many of n fair coins fall on one side with 95 %: 0.98 sqrt(n) from the middle.
    begin = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))))
    return Estimate(value=median(ordered), low=ordered[begin], high=ordered[-1 - begin])


def holds(own: float, outside: Estimate, bound: float) -> Literal["yes", "no", "unresolved"]:
    """`unresolved`: by its own clock it does, and seen from outside the noise reaches beyond the bound."""
    if own > bound or outside.low > bound:
        return "no"
    return "yes" if outside.high <= bound else "unresolved"


def agrees(own: float, outside: Estimate) -> bool:
    """The two measurements do not contradict each other: by a fifth (the intervals' margin), or within the noise."""
    return outside.low <= own <= outside.high or abs(own - outside.value) <= 0.2 * max(own, outside.value)


BOUNDS = {"light": LIGHT_SHARE, "deep": DEEP_SHARE}


@contextmanager
def use_threads(num_threads: int) -> Iterator[None]:
    """torch computes with so many inside; with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Training:
    """One of the two."""

    def __init__(self, subject: Subject, *, intervals: tuple[Interval, Interval] | None) -> None:
        """`intervals`: steps between deep steps and between light ones; None: nobody watches."""
        torch.manual_seed(0)
        self.model = subject.build()
        optimizer = build_optimizer(OptimizerSection(), self.model)
        self._stepper = Stepper(self.model, optimizer, clip=ClipSection(kind="norm"))
        self.maybe_health: GradientHealth | None = None
        if intervals is not None:
            deep_every, light_every = intervals
            self.maybe_health = GradientHealth(
                self.model, optimizer, every_steps=deep_every, light_every_steps=light_every, is_told=True
            )
            self._stepper.observer = HealthObserver(self.maybe_health, lambda event: None, clip_threshold=1.0)

    def step(self, batch: Batch, clock: Callable[[], float]) -> tuple[float, float]:
        """Seconds by `clock`, and on the wall."""
        start_wall, start = time.perf_counter(), clock()
        self._stepper.step(batch, lr=1e-3)
        return clock() - start, time.perf_counter() - start_wall


def measure(
    subject: Subject, *, num_rounds: int, num_auto_steps: int = 101, report: Callable[[str], None] = lambda line: None
) -> Cost:
    """`num_auto_steps`: after 40 and 100 steps health chooses its intervals."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    watched = _Training(subject, intervals=("auto", "auto"))
    for step in range(num_auto_steps):
        watched.step(subject.batch(step), clock)
    assert watched.maybe_health is not None
    auto = watched.maybe_health.overhead
    report(f"{subject.name}: intervals chosen, light steps every {auto.light_every}, deep ones every {auto.deep_every}")

    light_every = 1 if auto.light_every == 1 else 2
    alone, watched = _Training(subject, intervals=None), _Training(subject, intervals=(ROUND, light_every))
    assert watched.maybe_health is not None
    rounds = []
    for number in range(num_rounds + 1):
        rounds.append(_round(subject, alone, watched, FIRST_STEP + ROUND * number, light_every, clock))
        report(f"{subject.name}: round {number} of {num_rounds}")
    watched.maybe_health.flush()
    both = zip(alone.model.state_dict().values(), watched.model.state_dict().values(), strict=True)
    return Cost(
        name=subject.name,
        num_tensors=len(list(alone.model.parameters())),
        rounds=tuple(rounds[1:]),  # the first one warms up
        auto=auto,
        fixed=watched.maybe_health.overhead,
        are_weights_equal=all(torch.equal(one, other) for one, other in both),
    )


def _round(
    subject: Subject, alone: _Training, watched: _Training, first: int, light_every: int, clock: Callable[[], float]
) -> tuple[Pair, ...]:
    pace = Pace(deep_every=ROUND, light_every=light_every)
    pairs = []
    for step in range(first, first + ROUND):
        batch = subject.batch(step)
        kind: Kind = "deep" if pace.is_deep(step) else "light" if pace.is_light(step) else "idle"
        # Who comes first changes for the steps of each kind, too.
        is_alone_first = (step // 2 + step // ROUND) % 2 == 0
        order = (alone, watched) if is_alone_first else (watched, alone)
        seconds = {training: training.step(batch, clock) for training in order}
        alone_s, alone_wall_s = seconds[alone]
        pairs.append(Pair(kind=kind, alone_s=alone_s, watched_s=seconds[watched][0], alone_wall_s=alone_wall_s))
    return tuple(pairs)
