"""Gradient health for anybody's loop: one call a step, between unscale and clip.

    health = GradientHealth(model, optimizer)
    for images, labels in loader:
        loss = criterion(model(images), labels)
        loss.backward()
        for event in health.step(loss, inputs=images):
            print(event.verdict)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    health.detach()

In:  a model, its optimizer or optimizers, a loss a step.
Out: verdicts; its own cost.
Changes nothing of the training: no weight, no gradient, no random number, and on CUDA no wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.health.current import Current, is_away, rates
from trainer.health.detectors import HealthConfig
from trainer.health.judge import Judge
from trainer.health.measure import Activity, DeepProbe
from trainer.health.overhead import LEAST_DEEP_STEPS, Overhead, Pace
from trainer.health.records import DeepStats, Verdict, VerdictEvent
from trainer.health.robust import from_state, to_state
from trainer.health.trace import clip_sample, worst_samples
from trainer.health.transfer import Outbox
from trainer.norms import exact_norms, gradient_norms

SampleLosses = Callable[[], torch.Tensor | Sequence[float]]


class GradientHealth:
    """Watches a model while it trains; usable alone, needs nothing else of this project."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        every_steps: int | Literal["auto"] = "auto",
        light_every_steps: int | Literal["auto"] = "auto",
        config: HealthConfig | None = None,
        first_step: int = 0,
        is_told: bool = False,
        on_deep: Callable[[DeepStats], None] = lambda stats: None,
    ) -> None:
        """`optimizer`: all that train the model, such as Muon for its matrices and AdamW for the rest; what is in none
        of them is FROZEN. A step is over when each of them has stepped, or at the next one.
        `every_steps`: between deep steps. `auto` goes by the clock (at most 3 % of the time for deep steps, 1 % for
        the others), so two runs may differ in when they look; with numbers, equal runs give equal verdicts.
        `is_told`: the caller calls `before_forward`, `before_update` and `after_update`; else hooks do it.
        `on_deep`: gets what each deep step has measured, once it has arrived."""
        self.config = config or HealthConfig()
        self._model = model
        self._optimizers = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
        self._judge = Judge(self.config)
        self._pace = Pace()
        if every_steps != "auto":
            self._pace.deep_every, self._pace.is_deep_fixed = every_steps, True
        if light_every_steps != "auto":
            self._pace.light_every, self._pace.is_light_fixed = light_every_steps, True
        self._is_told = is_told
        self._on_deep = on_deep
        self._outbox = Outbox()
        self._activity: dict[str, Activity] = {}
        self._events: list[VerdictEvent] = []
        self._next_step = first_step
        self._current: Current | None = None
        self._probe: DeepProbe | None = None
        self._last_start: float | None = None
        self._must_look_deep = False
        self._looked_step = -LEAST_DEEP_STEPS
        """The last deep step that was out of turn: in a run gone wrong for good, each would be."""
        # Walking through 1,000 layers takes longer than their norms do, so it is done once.
        self._named = list(model.named_parameters())
        self._names = tuple(name for name, _ in self._named)
        self._hooks: list[Any] = []
        if not self._is_told:
            self._attach(first_step)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All open ones and the last that are resolved, newest last; on CUDA they lag by the steps the device is
        behind."""
        return self._judge.verdicts

    @property
    def num_unannounced(self) -> int:
        """Verdicts that were over the budget of alarms."""
        return self._judge.num_unannounced

    @property
    def num_dropped(self) -> int:
        """Resolved verdicts that are not among `verdicts` any more."""
        return self._judge.num_dropped

    @property
    def overhead(self) -> Overhead:
        return self._pace.overhead()

    @property
    def is_nonfinite_pending(self) -> bool:
        """A step that was not finite, or skipped, is less than 50 steps ago, or numbers are on their way (`flush`
        first, to know)."""
        return self._judge.is_nonfinite_pending or len(self._outbox) > 0

    @property
    def may_be_healthy(self) -> bool:
        """A checkpoint of now: no bad step is pending, and nothing critical is seen."""
        return not (self.is_nonfinite_pending or self._judge.is_critical)

    def step(
        self,
        loss: torch.Tensor | float,
        *,
        inputs: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        batch: Any = None,
        scale: float | None = None,
        grad_norm: float | None = None,
        norms_P: torch.Tensor | None = None,
        names_P: tuple[str, ...] | None = None,
        clip_threshold: float | None = None,
        sample_losses: SampleLosses | None = None,
        step: int | None = None,
    ) -> list[VerdictEvent]:
        """Call it after backward and unscale, before clipping; returns what changed since the last call.

        Every step is judged whose `grad_norm` is given, and loss is on the host; of others, those that are measured.
        `batch`: what says where the samples came from, or a function that returns it. `scale`: the loss scale.
        `grad_norm`, `norms_P` (of the parameters with a gradient, `names_P`): measured by the caller, not again here.
        `sample_losses`: called only for a step that needs explaining.
        """
        start = perf_counter()
        self._close(start)
        number = self._next_step if step is None else step
        self._next_step = number + 1
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.detach()
        lr, base_lr = rates(self._optimizers)
        self._current = current = Current(
            step=number,
            loss=math.nan if is_away(loss) else loss.item() if isinstance(loss, torch.Tensor) else loss,
            lr=lr,
            base_lr=base_lr,
            grad_norm=math.nan if grad_norm is None else grad_norm,
            clip_threshold=clip_threshold,
            scaler_scale=scale,
            optimizer_entries=sum(len(optimizer.state) for optimizer in self._optimizers),
            batch=batch,
            probe=probe,
        )
        is_bad = not (is_away(loss) or math.isfinite(current.loss)) or not math.isfinite(grad_norm or 0.0)
        current.is_light = probe is not None or is_bad or self._is_light(number, grad_norm)
        current.is_judged = current.is_light or (grad_norm is not None and not is_away(loss))
        # Behind what is on its way a step has to wait for its turn.
        current.is_plain = not current.is_light and not len(self._outbox)
        if current.is_light:
            current.measure(self._named, self._names, loss, inputs, grad_norm, norms_P, names_P)
            if probe is not None:
                known = dict(zip(current.names_P, norms_P.unbind(), strict=True)) if norms_P is not None else None
                probe.gradients(known, inputs, labels, scale)
            self._explain(current, inputs, sample_losses, is_bad=is_bad)
        if not self._is_told:
            for optimizer in self._optimizers if current.is_judged else ():
                self._hooks.append(optimizer.register_step_pre_hook(lambda *_: self._will_step()))
                self._hooks.append(optimizer.register_step_post_hook(lambda one, *_: self._has_stepped(one)))
            self._attach(self._next_step)
        current.own_s += perf_counter() - start
        events, self._events = self._events, []
        return events

    def before_forward(self, step: int) -> None:
        """Only for a caller that tells of updates: hooks for this step go on now, if it is a deep one."""
        start = perf_counter()
        self._drop_probe()  # of a step that was never measured
        self._attach(step)
        if self._probe is not None:
            self._probe.own_s += perf_counter() - start

    def before_update(self) -> None:
        """Right before the optimizer steps, after clipping."""
        current = self._current
        if current is None or not current.is_light:
            return
        start = perf_counter()
        if not self._is_told:
            known = set(clip_sample(current.names_P))
            gradients = [one.grad for name, one in self._named if name in known and one.grad is not None]
            if gradients:
                current.parcel.add("clipped", torch.linalg.vector_norm(gradient_norms(gradients)))
        if current.probe is not None:
            current.probe.before_update()
        current.own_s += perf_counter() - start

    def after_update(
        self, *, was_skipped: bool = False, clipped_norm: float | None = None, was_clipped: bool = False
    ) -> None:
        """Right after the optimizer has stepped, or has not."""
        current = self._current
        if current is None or not current.is_judged or current.is_finished:
            return
        start = perf_counter()
        current.was_skipped, current.clipped_norm, current.was_clipped = was_skipped, clipped_norm, was_clipped
        if current.probe is not None:
            current.probe.after_update()
        self._finish(current)
        current.own_s += perf_counter() - start

    def told(self, seconds: float) -> None:
        """The caller has spent these on telling of what was measured: in files, lines, to exporters."""
        self._pace.total_told_s += seconds

    def changed_chain(self, transforms: tuple[str, ...]) -> None:
        """The next steps' images come through these transforms; INPUT names them."""
        self.config = self._judge.config = replace(self.config, transforms=transforms)

    def flush(self) -> list[VerdictEvent]:
        """Waits for the device and judges all that was measured: before a checkpoint, at the end.

        Not between `step` and the optimizer's: a step that it hasn't taken by now counts as skipped."""
        self._close(None)
        self._outbox.arrived(wait=True)
        events, self._events = self._events, []
        return events

    def detach(self) -> None:
        """Takes all hooks away, those for the next step too; `verdicts` stay."""
        self._events = self.flush()
        self._drop_probe()

    def state_dict(self) -> dict[str, Any]:
        """Everything that later verdicts depend on; plain values and a few small tensors. Flushes first, so it is for
        the same places as `flush`."""
        self._events = self.flush()
        return {
            "judge": self._judge.to_dict(),
            "pace": to_state(self._pace),
            "next_step": self._next_step,
            "looked_step": self._looked_step,
            "must_look_deep": self._must_look_deep,
            "is_probed": self._probe is not None,
            "activity": {
                name: {"has_fired": activity.has_fired.cpu(), "num_observations": activity.num_observations}
                for name, activity in self._activity.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any], *, is_exact: bool = False) -> None:
        """Goes on as if never interrupted. Unless the caller vouches for the resume (`is_exact`: weights, optimizer,
        data and random states are all as they were), RESUME watches the next steps."""
        self._judge = Judge.from_dict(state["judge"], self.config)
        given = self._pace
        self._pace = from_state(Pace, state["pace"])
        # An interval given here holds; `auto` goes on with what was chosen, so that nothing depends on this clock.
        if given.is_deep_fixed:
            self._pace.deep_every, self._pace.is_deep_fixed = given.deep_every, True
        if given.is_light_fixed:
            self._pace.light_every, self._pace.is_light_fixed = given.light_every, True
        self._next_step = state["next_step"]
        self._must_look_deep, self._looked_step = state["must_look_deep"], state["looked_step"]
        device = self._named[0][1].device
        self._activity = {
            name: Activity(has_fired=one["has_fired"].to(device), num_observations=one["num_observations"])
            for name, one in state["activity"].items()
        }
        self._current, self._last_start = None, None
        self._drop_probe()
        # As it was decided then: a deep step in its turn and one out of turn have different consequences.
        if not self._is_told and state.get("is_probed", False):
            self._probe = self._new_probe()
        if not is_exact:
            self._judge.resumed()

    def load_nonfinite(self, state: dict[str, Any]) -> None:
        """Of a run that was not watched until now: its bad steps stay pending."""
        self._judge.load_nonfinite(state)

    def _drop_probe(self) -> None:
        if self._probe is not None:
            self._probe.detach()
            self._probe = None

    def _attach(self, step: int) -> None:
        """Hooks for the step to come, if it is a deep one."""
        must_look = self._must_look_deep and step >= self._looked_step + LEAST_DEEP_STEPS
        if must_look or self._pace.is_deep(step):
            self._looked_step = step if must_look else self._looked_step
            self._must_look_deep = False
            self._probe = self._new_probe()

    def _new_probe(self) -> DeepProbe:
        window = int(self.config.limit("DEAD", "min_observations"))
        return DeepProbe(self._model, self._optimizers, self._activity, window)

    def _will_step(self) -> None:
        if self._current is not None and not self._current.have_stepped:
            self.before_update()

    def _has_stepped(self, optimizer: Optimizer) -> None:
        if self._current is not None:
            self._current.have_stepped.add(id(optimizer))
            if len(self._current.have_stepped) == len(self._optimizers):
                self.after_update()

    def _is_light(self, step: int, grad_norm: float | None) -> bool:
        """At its interval; after a resume nobody vouches for; where the norm alone says that something is going on."""
        if self._pace.is_light(step) or self._judge.is_after_resume:
            return True
        return grad_norm is not None and math.isfinite(grad_norm) and self._judge.is_suspicious(grad_norm)

    def _explain(
        self, current: Current, inputs: torch.Tensor | None, sample_losses: SampleLosses | None, *, is_bad: bool
    ) -> None:
        """For the rare step that needs it, while its batch and the weights it met are still there.

        Where the loss is on the device, nobody knows yet; its trace will have the batch but no samples' losses.
        """
        is_known = not any(name == "loss" or name.startswith("norm:") for name in current.parcel.names)
        is_bad = is_bad or (is_known and not math.isfinite(current.grad_norm))
        if not is_bad and not (math.isfinite(current.grad_norm) and self._judge.wants_trace(current.grad_norm)):
            return
        if is_bad:
            self._must_look_deep = True
            if inputs is not None:
                current.is_input_finite = bool(torch.isfinite(inputs).all())
            are_finite = torch.isfinite(exact_norms([one.detach() for _, one in self._named])).tolist()
            current.bad_weights = tuple(name for name, ok in zip(self._names, are_finite, strict=True) if not ok)
        if sample_losses is not None:
            current.worst_samples = worst_samples(sample_losses())

    def _finish(self, current: Current) -> None:
        """All of the step is known: send it, and judge what has arrived by now."""
        current.is_finished = True
        while self._hooks:
            self._hooks.pop().remove()
        if current.is_plain:
            events = self._judge.note(current)
            if events is not None:
                self._events += events
                return
        parcel, probe = current.parcel, current.probe
        build = probe.reader(current.step, current.scaler_scale, current.was_skipped) if probe else None
        tensors = [*parcel.tensors, *(probe.parcel.tensors if probe else ())]
        count = parcel.size

        def read(numbers: list[float]) -> None:
            stats = current.stats(self._names, parcel.read(numbers[:count]))
            is_finite = math.isfinite(stats.loss) and math.isfinite(stats.grad_norm)
            self._must_look_deep |= not is_finite
            if not is_finite or self._judge.wants_trace(stats.grad_norm):
                stats = replace(stats, batch=current.coordinates())
            self._events += self._judge.see(stats)
            if build is not None:
                worst = current.worst_samples
                deep = replace(build(numbers[count:]), batch=current.coordinates(), worst_samples=worst)
                self._on_deep(deep)
                self._events += self._judge.see(deep)

        self._outbox.send(tensors, read)
        self._outbox.arrived()

    def _close(self, now: float | None) -> None:
        """The step before is over: if the optimizer did not step, it was skipped."""
        current, self._current = self._current, None
        if current is not None:
            if current.is_judged and not current.is_finished:
                start = perf_counter()
                current.was_skipped = not current.have_stepped
                if current.probe is not None:
                    current.probe.after_update()
                self._finish(current)
                current.own_s += perf_counter() - start
            own_s = current.own_s + (current.probe.own_s if current.probe else 0.0)
            is_plain = current.probe is None and self._probe is None
            step_s = now - self._last_start if now is not None and self._last_start is not None else None
            self._pace.ended(
                step_s=step_s,
                own_s=own_s,
                is_deep=current.probe is not None,
                is_light=current.is_light,
                is_plain=is_plain,
            )
        self._last_start = now
