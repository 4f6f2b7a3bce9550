"""The training loop: batches in, a trained model and its record out.

In:  a job, its open streams, its run folder; where an earlier attempt left off; a wish to stop.
Out: metrics, events and checkpoints while it runs; a final checkpoint; a `Summary`.
Never starts or stops a service, never prints, never catches what ends it but a wish to stop.

Once in a while, before a step and in this order: an evaluation, then a checkpoint, which so contains it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pipeline.factory import load_factory
from pipeline.job import EvalStream
from pipeline.recipe import BatchSpec
from pipeline.resume import Resumption
from pipeline.run_folder import RunFolder
from pipeline.user_code import load_module, loaded_digest
from trainer.batch import Batch
from trainer.checkpoint import (
    Copies,
    ModelRecord,
    Snapshot,
    config_sha256,
    differing_environment,
    restore,
    take_snapshot,
)
from trainer.checkpoint_writer import CheckpointWriter
from trainer.device import choose_device, prepare_torch
from trainer.evaluation import evaluate
from trainer.exporters import close_all, open_exporters
from trainer.first_look import prepare
from trainer.health.records import open_verdicts
from trainer.models import check_output
from trainer.optimizers import build_optimizer
from trainer.random_state import random_state_kept
from trainer.record import Progress, RunRecord, Summary, json_number
from trainer.repeat import require_equal
from trainer.schedules import Schedule
from trainer.step import Stepper
from trainer.stopping import StopNow, StopRequest
from trainer.trainable import require_trainable
from trainer.watch import Tell, open_watch
from trainer.watch_text import end_text

if TYPE_CHECKING:
    from pipeline.config_job import Job

log = logging.getLogger("headrace.train")


class TrainBatches(Protocol):
    """The train stream, as the loop sees it."""

    @property
    def num_steps(self) -> int:
        """Steps from the run's beginning to its end, those of earlier attempts included."""

    @property
    def spec(self) -> BatchSpec: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def waited_s(self) -> float:
        """Seconds the loop has waited for batches so far."""

    def __iter__(self) -> Iterator[Batch]:
        """Each batch once, in order, to the end of the last epoch."""


class Streams(Protocol):
    """A job's open streams; `train` begins where the run does, or where an earlier attempt left off."""

    @property
    def train(self) -> TrainBatches: ...
    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Source name -> fingerprint."""

    @property
    def worker_fingerprint(self) -> str:
        """What the workers' libraries make of a fixed image; "" while none has been admitted."""

    def evaluate(self, step: int) -> Iterator[Batch]:
        """One pass over the held-out source, before the training's `step`; not called without an `eval` section."""

    def look(self, num_batches: int) -> Iterator[Batch]:
        """The run's first batches from a stream of their own, which ends with them."""


def train(
    job: Job,
    streams: Streams,
    folder: RunFolder,
    on_progress: Callable[[Progress], None],
    resumed: Resumption | None = None,
    stop: StopRequest | None = None,
    tell: Tell = lambda text: None,
) -> Summary:
    """Trains the job's model on every batch of its train stream, once, in order, and saves it.

    Equal jobs and equal batches give equal weights (on CUDA with `deterministic`), however often the run was killed
    and resumed. `on_progress` is called after each step, `tell` with what a user should read now. A wish to stop ends
    it after its step, with a checkpoint (`Summary.stopped_by`); whatever else ends it early, a full disk or a second
    Ctrl-C, passes through, and the metrics up to there are kept.
    """
    training = _Training(job, streams, folder, resumed, stop or StopRequest(), tell)
    try:
        training.begin()
        return training.run(on_progress)
    except KeyboardInterrupt:
        raise  # at once: a checkpoint that is being written stays half written, and is removed at the next resume
    except BaseException:
        training.writer.end()
        raise
    finally:
        training.end()


class _Training:
    """One attempt at a run; once made, it holds threads and perhaps a port, until `end`."""

    def __init__(
        self, job: Job, streams: Streams, folder: RunFolder, resumed: Resumption | None, stop: StopRequest, tell: Tell
    ) -> None:
        config = job.config
        require_trainable(job, streams.train.spec, streams.train.classes)
        prepare_torch(config)
        self._device = choose_device(config.device)
        self._config, self._streams, self._folder, self._stop, self._tell = config, streams, folder, stop, tell
        section, factory = config.model, load_factory(job)
        self._model_record = _model_record(job, streams.train, resumed)
        self._model = self._model_record.build(factory).to(self._device)
        check_output(self._model, section, self._model_record.input_shape_CHW, self._model_record.num_classes)
        self._first_look = prepare(
            job, self._model, streams.look, resumed, num_classes=self._model_record.num_classes
        )  # before the optimizer: LSUV scales weights
        self._optimizer = build_optimizer(config.optimizer, self._model)
        self.watch = open_watch(
            config, folder, self._model, self._optimizer, num_classes=self._model_record.num_classes, tell=tell
        )
        self._stepper = Stepper(
            self._model,
            self._optimizer,
            clip=config.clip,
            precision=config.precision,
            accumulate=config.train.accumulate,
            observer=self.watch.observer,
        )
        self._schedule = Schedule(config.schedule, config.optimizer.lr, streams.train.num_steps)
        self._record = RunRecord(folder, streams.train.num_steps, config.checkpoint.keep_best)
        self._recorded = dict(resumed.recorded) if resumed else {}
        self._resumed = resumed
        self.writer = CheckpointWriter(folder, config.checkpoint.keep)
        self._copies = Copies()
        self._saved: tuple[int, int] | None = None
        """Steps done, and step of the last evaluation, as in the newest checkpoint."""
        if resumed is not None and resumed.checkpoint is not None:
            self._restore(resumed)
        self._exporters = open_exporters(config.health, folder.path, self._record.num_steps_done, self.watch.verdicts)
        self.watch.export_to(self._exporters)

    def begin(self) -> None:
        """Tells that the run begins, and what the first look at it has found."""
        self._folder.append_event(
            "training_started",
            step=self._record.num_steps_done,
            device=str(self._device),
            config=self._config.model_dump(mode="json"),
            step_settings=self._stepper.describe(),
            source_fingerprints=dict(self._streams.fingerprints),
            classes=self._streams.train.classes,
            factory_sha256=self._model_record.factory_sha256,
        )
        for action, fields in self._first_look.events():
            self._folder.append_event(action, **fields)
        for line in self._first_look.lines:
            self._tell(line)

    def run(self, on_progress: Callable[[Progress], None]) -> Summary:
        """To the end of the last epoch, or until the stop is requested."""
        record, waited = self._record, self._streams.train
        self._model.train()
        try:
            for batch in self._stop.while_waiting(self._streams.train):
                self._before_step(batch)
                lr = self._schedule.lr(batch.step)
                result = self._stepper.step(batch, lr=lr)
                record.add_step(batch, result)
                self.watch.after_step(batch, result)
                for exporter in self._exporters:
                    exporter.step(batch, result, waited.waited_s)
                on_progress(record.progress(waited.waited_s))
                self.writer.check()
            if self._config.eval is not None and record.evaluated_step != record.num_steps_done:
                self._evaluate(record.num_steps_done)
        except StopNow:
            if record.num_steps_done == 0:
                raise  # nothing was done that a checkpoint would have to keep
            return self._stopped()
        self._checkpoint()
        self.writer.wait()
        self._folder.append_event("training_ended", step=record.num_steps_done, checkpoint=self._last_checkpoint.name)
        return self._summary()

    def end(self) -> None:
        """Called once, however the run ends; raises nothing."""
        self.watch.end()
        close_all(self._exporters)

    def _before_step(self, batch: Batch) -> None:
        """What is done once in a while. Before a step, not after one: the batch tells that an epoch ended."""
        record = self._record
        self.watch.before_step(batch)
        if (recorded := self._recorded.pop(batch.step, None)) is not None:
            before = self._resumed.worker_fingerprint if self._resumed else ""
            require_equal(recorded, batch, then=before, now=self._streams.worker_fingerprint)
        is_best = False
        if _evaluation_is_due(self._config.eval, batch, record):
            is_best = self._evaluate(batch.step)
        every_steps = self._config.checkpoint.every_steps
        if is_best or (every_steps and batch.step and batch.step % every_steps == 0):
            self._checkpoint()

    def _evaluate(self, step: int) -> bool:
        """True if it is the best one so far, by `keep_best`."""
        started_s = time.perf_counter()
        with random_state_kept():  # how often a run is judged must not change what it learns
            evaluation = evaluate(self._model, self._stop.while_waiting(self._streams.evaluate(step)))
        self._schedule.observe(evaluation.loss)
        for exporter in self._exporters:
            exporter.evaluated(step, evaluation)
        return self._record.add_evaluation(step, evaluation, took_s=time.perf_counter() - started_s)

    def _checkpoint(self) -> None:
        """Nothing if the newest checkpoint is of this very state."""
        record = self._record
        present = (record.num_steps_done, record.evaluated_step)
        if present != self._saved:
            best = record.best_step
            self.writer.save(self._snapshot, () if best is None else (best,))
            self._saved = present

    def _snapshot(self) -> Snapshot:
        record, batches = self._record, self._streams.train
        # First: what the watch says of the last steps is in the journal by then, and belongs to what the mark keeps.
        is_healthy, watched = self.watch.may_be_healthy(), self.watch.state_dict()
        mark = self._folder.mark()
        state: dict[str, Any] = {
            "time_s": round(time.time(), 3),
            "attempt": self._folder.attempt,
            "healthy": is_healthy,
            "position": record.position,
            "epoch": record.epoch,
            "num_samples": record.num_samples,
            "num_steps": batches.num_steps,
            "finished": record.num_steps_done == batches.num_steps
            and (self._config.eval is None or record.evaluated_step == record.num_steps_done),
            **msgspec.to_builtins(mark),
            "config_sha256": config_sha256(self._config),
            "source_fingerprints": dict(self._streams.fingerprints),
            "worker_fingerprint": self._streams.worker_fingerprint,
            "classes": list(batches.classes),
            "schedule": {name: json_number(value) for name, value in self._schedule.state_dict().items()},
            "evaluation": record.evaluation_state(),
            "best": record.best_state(),
            "model": msgspec.to_builtins(self._model_record),
        }
        states = {
            "record": record.state_dict(),
            "schedule": self._schedule.state_dict(),
            "stepper": self._stepper.state_dict(),
            "watch": watched,
        }
        step = record.num_steps_done
        return take_snapshot(self._model, self._optimizer, self._copies, step=step, states=states, state=state)

    def _restore(self, resumed: Resumption) -> None:
        assert resumed.checkpoint is not None
        made_by = self._config.model.factory
        states = restore(resumed.checkpoint, self._model, self._optimizer, made_by=made_by)
        self._record.load_state_dict(states["record"])
        self._schedule.load_state_dict(states["schedule"])
        self._stepper.load_state_dict(states["stepper"])
        differences = differing_environment(resumed.state)
        is_exact = resumed.is_as_it_was and not differences
        self.watch.load_state_dict(states.get("watch", {}), is_exact=is_exact)
        self._saved = (self._record.num_steps_done, self._record.evaluated_step)
        for difference in differences:
            log.warning("action=environment_differs %s; the result may differ in its last bits", difference)
            self._folder.append_event("environment_differs", difference=difference)

    def _stopped(self) -> Summary:
        record = self._record
        self._checkpoint()
        self.writer.wait()
        self._folder.append_event("stopped", step=record.num_steps_done, why=self._stop.why)
        return self._summary(stopped_by=self._stop.why)

    @property
    def _last_checkpoint(self) -> Any:
        return self.writer.last or (self._resumed and self._resumed.checkpoint)

    def _summary(self, stopped_by: str = "") -> Summary:
        verdicts = self.watch.verdicts  # all of them: the last checkpoint has waited for what was still on its way
        return self._record.summary(
            self._streams.train.waited_s,
            self._last_checkpoint,
            stopped_by=stopped_by,
            num_checkpoints=self.writer.num_written,
            stall_s=self.writer.stall_s,
            gradients=end_text(verdicts) if self._config.health.enabled else "",
            num_open_verdicts=len(open_verdicts(verdicts)),
        )


def _evaluation_is_due(maybe_eval: EvalStream | None, batch: Batch, record: RunRecord) -> bool:
    if maybe_eval is None or batch.step in (0, record.evaluated_step):
        return False  # at the step of a checkpoint it may be done already
    if maybe_eval.every_steps:
        return batch.step % maybe_eval.every_steps == 0
    return batch.epoch != record.epoch


def _model_record(job: Job, batches: TrainBatches, resumed: Resumption | None) -> ModelRecord:
    """A run's model is made once, for the run's first batch: with `shape: free` later ones may have another shape."""
    section = job.config.model
    factory_sha256 = ""
    if section.kind == "factory":
        factory_sha256 = loaded_digest(load_module(section.factory, job.path.absolute().parent))
    if resumed is not None and resumed.checkpoint is not None:
        record = msgspec.convert(resumed.state["model"], ModelRecord)
        return msgspec.structs.replace(record, factory_sha256=factory_sha256)
    height, width, num_channels = batches.spec.fields[0].shape
    return ModelRecord(
        section=section.model_dump(mode="json"),
        input_shape_CHW=(num_channels, height, width),
        num_classes=len(batches.classes),
        factory_sha256=factory_sha256,
    )
