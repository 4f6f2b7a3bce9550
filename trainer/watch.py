"""The watch: gradient health of one run, from its steps to its files and the terminal.

In:  the run's model and optimizer; each batch and what its step did.
Out: journal events, layers.jsonl, health.json; lines for the user; exporters told; may a checkpoint be called healthy?
Changes nothing of the training; judges nothing itself, `trainer/health/` does.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from pipeline.config import load_chain
from pipeline.errors import RunFailed
from pipeline.job import JobConfig
from pipeline.job_clip import ClipSection
from pipeline.run_folder import RunFolder
from trainer.batch import Batch
from trainer.exporters import Exporter
from trainer.health.detectors import DETECTORS, HealthConfig
from trainer.health.monitor import GradientHealth
from trainer.health.observer import HealthObserver
from trainer.health.records import Change, DeepStats, Severity, StepStats, Verdict, VerdictEvent
from trainer.health.robust import from_state, to_state
from trainer.health.rules_nonfinite import NonFinite
from trainer.health.rules_step import Progress
from trainer.step import StepObserver, StepResult
from trainer.watch_text import event_text, layers_record, line_text

log = logging.getLogger("headrace.train")

Tell = Callable[[str], None]
"""Something for the user's eyes, now; may have several lines."""

HEALTH_VERSION = 1
MAX_NORMS = 200
"""Steps that a line's norm and share of clipped steps are over."""


class Watch(Protocol):
    """What the training loop asks for, whether anything is watched or not."""

    observer: StepObserver | None

    def before_step(self, batch: Batch) -> None: ...
    def after_step(self, batch: Batch, result: StepResult) -> None: ...
    def may_be_healthy(self) -> bool:
        """False while a step that was not finite has not been left behind, numbers are still on their way, or a
        critical verdict is open."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], *, is_exact: bool) -> None:
        """`is_exact`: job and environment are as they were, so that RESUME has nothing to look for."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of this attempt and those before."""

    def export_to(self, exporters: Sequence[Exporter]) -> None:
        """Who is told of verdicts, layers and cost from now on."""

    def end(self) -> None:
        """The run ends; called once, also when it fails, so it raises nothing."""


def open_watch(
    config: JobConfig, folder: RunFolder, model: nn.Module, optimizer: Optimizer, *, num_classes: int, tell: Tell
) -> Watch:
    """Watches as the job's `health` section says; `tell` gets verdicts, and a line every so many steps."""
    if not config.health.enabled:
        return Unwatched(HealthConfig(thresholds=config.health.thresholds))
    return HealthWatch(config, folder, model, optimizer, num_classes=num_classes, tell=tell)


class Unwatched:
    """Knows only whether a bad step has been left behind, and counts as the watched case does."""

    def __init__(self, config: HealthConfig) -> None:
        self.observer: StepObserver | None = None
        self._config, self._nonfinite = config, NonFinite()

    def before_step(self, batch: Batch) -> None: ...

    def after_step(self, batch: Batch, result: StepResult) -> None:
        stats = StepStats(
            step=batch.step,
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            was_skipped=result.was_skipped,
            scaler_scale=result.loss_scale if result.loss_scale > 1.0 else None,
        )
        for _ in self._nonfinite.see_step(stats, Progress(), self._config):
            pass  # nothing is said of it

    def may_be_healthy(self) -> bool:
        return not self._nonfinite.is_pending(DETECTORS["NONFINITE"].clear_after)

    def state_dict(self) -> dict[str, Any]:
        return {"nonfinite": to_state(self._nonfinite)}

    def load_state_dict(self, state: Mapping[str, Any], *, is_exact: bool) -> None:
        """Also of a `HealthWatch`: health may have been turned off since."""
        nonfinite = state["health"]["judge"]["rules"]["nonfinite"] if "health" in state else state.get("nonfinite")
        if nonfinite is not None:
            self._nonfinite = from_state(NonFinite, nonfinite)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return ()

    def export_to(self, exporters: Sequence[Exporter]) -> None: ...
    def end(self) -> None: ...


class HealthWatch:
    """Gradient health of a run; its state is part of each checkpoint, so that verdicts survive a resume."""

    def __init__(
        self,
        config: JobConfig,
        folder: RunFolder,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        num_classes: int,
        tell: Tell,
    ) -> None:
        section = config.health
        self._section, self._folder, self._tell = section, folder, tell
        self._health = GradientHealth(
            model,
            optimizer,
            every_steps=section.every_steps,
            light_every_steps=section.light_every_steps,
            config=HealthConfig(
                thresholds=section.thresholds,
                off=section.off,
                num_classes=num_classes,
                base_lr=config.optimizer.lr,
                run=str(folder.path),
            ),
            is_told=True,
            on_deep=self._measured_deep,
        )
        self.observer: StepObserver | None = HealthObserver(
            self._health, self._changed, clip_threshold=_global_threshold(config.clip)
        )
        self._recipe = ""
        self._newest_deep: DeepStats | None = None
        self._norms: deque[float] = deque(maxlen=MAX_NORMS)
        self._were_clipped: deque[bool] = deque(maxlen=MAX_NORMS)
        self._num_steps_done = 0
        self._is_written = False
        self._exporters: Sequence[Exporter] = ()

    def before_step(self, batch: Batch) -> None:
        """A verdict on the input names the transforms that made it."""
        if batch.recipe != self._recipe:
            self._recipe = batch.recipe
            self._health.changed_chain(self._transforms(batch.recipe))

    def after_step(self, batch: Batch, result: StepResult) -> None:
        with self._telling():
            self._after_step(batch, result)

    def _after_step(self, batch: Batch, result: StepResult) -> None:
        self._num_steps_done = batch.step + 1
        self._norms.append(result.grad_norm)
        self._were_clipped.append(result.was_clipped)
        every_steps = self._section.line_every_steps
        if every_steps and self._num_steps_done % every_steps == 0:
            self._tell(
                line_text(
                    self._num_steps_done,
                    self._health.verdicts,
                    self._norms,
                    self._were_clipped,
                    self._newest_deep,
                    self._health.overhead,
                )
            )
            self._is_written = False
        if not self._is_written:
            self._write()

    def may_be_healthy(self) -> bool:
        self._flush()
        with self._telling():
            self._write()
        return self._health.may_be_healthy

    def state_dict(self) -> dict[str, Any]:
        self._flush()  # told now: from the state on they are old news
        return {"health": self._health.state_dict(), "num_steps_done": self._num_steps_done}

    def load_state_dict(self, state: Mapping[str, Any], *, is_exact: bool) -> None:
        """The verdicts that follow are those of a run never interrupted; of an `Unwatched`, its bad steps are known."""
        if "nonfinite" in state:
            self._health.load_nonfinite(state["nonfinite"])
        if "health" in state:
            self._health.load_state_dict(state["health"], is_exact=is_exact)
            self._num_steps_done = state.get("num_steps_done", 0)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return self._health.verdicts

    def export_to(self, exporters: Sequence[Exporter]) -> None:
        self._exporters = exporters

    def end(self) -> None:
        try:
            self._flush()
            self._write()
        except RunFailed as error:
            log.warning("action=health_not_written error=%s", error)

    def _flush(self) -> None:
        for event in self._health.flush():
            self._changed(event)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What is done in here is a part of what watching costs."""
        start_s = time.perf_counter()
        yield
        self._health.told(time.perf_counter() - start_s)

    def _changed(self, event: VerdictEvent) -> None:
        with self._telling():
            self._tell_of(event)

    def _tell_of(self, event: VerdictEvent) -> None:
        verdict = event.verdict
        self._folder.append_event("verdict", step=event.step, change=event.change.value, verdict=verdict.to_dict())
        self._is_written = False
        for exporter in self._exporters:
            exporter.verdict(event)
        is_news = event.change is not Change.CONFIRMED
        if is_news and verdict.severity >= Severity.WARN and verdict.is_announced:
            self._tell(event_text(event))

    def _measured_deep(self, deep: DeepStats) -> None:
        self._newest_deep = deep
        self._folder.append_layers(layers_record(deep))
        for exporter in self._exporters:
            exporter.layers(deep)

    def _write(self) -> None:
        self._is_written = True
        overhead = self._health.overhead
        for exporter in self._exporters:
            exporter.cost(overhead)
        self._folder.write_health(
            {
                "version": HEALTH_VERSION,
                "time_s": round(time.time(), 3),
                "attempt": self._folder.attempt,
                "step": self._num_steps_done,
                "is_nonfinite_pending": self._health.is_nonfinite_pending,
                "num_unannounced": self._health.num_unannounced,
                "num_dropped": self._health.num_dropped,
                "verdicts": [verdict.to_dict() for verdict in self._health.verdicts],
                "overhead": {
                    **asdict(overhead),
                    "light_share": overhead.light_share,
                    "deep_share": overhead.deep_share,
                },
                "summary": str(overhead),
            }
        )

    def _transforms(self, recipe: str) -> tuple[str, ...]:
        path = self._folder.path / "chains" / f"{recipe}.yaml"
        return tuple(node.name for node in load_chain(path).nodes) if path.exists() else ()


def _global_threshold(clip: ClipSection) -> float | None:
    """A fixed bound on the norm of all gradients together; None: clipping chooses its own, or has none of that kind."""
    return clip.threshold if clip.kind == "norm" and not clip.groups else None
