"""The training loop: batches in, a trained model and its record out.

In:  a job, its open streams, its run folder.
Out: metrics and events while it runs; a final checkpoint; a `Summary`.
Never starts or stops a service, never prints, never catches what ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import ConfigError, Problem
from pipeline.job import EvalStream
from pipeline.recipe import BatchSpec
from pipeline.run_folder import RunFolder
from pipeline.user_code import load_attribute
from trainer.batch import Batch
from trainer.checkpoint import ModelRecord, config_sha256, save_checkpoint
from trainer.device import choose_device, prepare_torch
from trainer.evaluation import evaluate
from trainer.models import check_output
from trainer.optimizers import build_optimizer
from trainer.record import Progress, RunRecord, Summary, json_number
from trainer.schedules import Schedule
from trainer.step import train_step

if TYPE_CHECKING:
    from pipeline.config_job import Job


class TrainBatches(Protocol):
    """The train stream, as the loop sees it."""

    @property
    def num_steps(self) -> int: ...
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
    """A job's open streams."""

    @property
    def train(self) -> TrainBatches: ...
    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Source name -> fingerprint."""

    def evaluate(self) -> Iterator[Batch]:
        """One pass over the held-out source; not called without an `eval` section."""


def train(job: Job, streams: Streams, folder: RunFolder, on_progress: Callable[[Progress], None]) -> Summary:
    """Trains the job's model on every batch of its train stream, once, in order, and saves it.

    Equal jobs and equal batches give equal weights (on CUDA with `deterministic`). `on_progress` is called after
    each step. Whatever ends the loop early, Ctrl-C included, passes through; the metrics up to there are kept.
    """
    config = job.config
    _require_trainable(job, streams.train.spec, streams.train.classes)
    prepare_torch(config)
    device = choose_device(config.device)
    model_record = _model_record(job, streams.train)
    section = config.model
    factory = load_attribute(section.factory, job.path.absolute().parent) if section.kind == "factory" else None
    model = model_record.build(factory).to(device)
    check_output(model, section, model_record.input_shape_CHW, model_record.num_classes)
    optimizer = build_optimizer(config.optimizer, model)
    schedule = Schedule(config.schedule, config.optimizer.lr, streams.train.num_steps)
    folder.append_event("training_started", device=str(device), config=config.model_dump(mode="json"))
    record = RunRecord(folder, streams.train.num_steps)

    def evaluate_now(step: int) -> None:
        started_s = time.perf_counter()
        evaluation = evaluate(model, streams.evaluate())
        schedule.observe(evaluation.loss)
        record.add_evaluation(step, evaluation, took_s=time.perf_counter() - started_s)

    model.train()
    num_steps_done = 0
    for batch in streams.train:
        # Before a step, not after one: the batch tells that an epoch ended, and the last step is not judged twice.
        if _evaluation_is_due(config.eval, batch, record.epoch):
            evaluate_now(batch.step)
        result = train_step(model, optimizer, batch, lr=schedule.lr(batch.step), clip=config.clip)
        num_steps_done = batch.step + 1
        record.add_step(batch, result)
        on_progress(record.progress(streams.train.waited_s))
    if config.eval is not None:
        evaluate_now(num_steps_done)

    state = {
        "position": record.position,
        "epoch": record.epoch,
        "config_sha256": config_sha256(config),
        "source_fingerprints": dict(streams.fingerprints),
        "classes": streams.train.classes,
        "schedule": {name: json_number(value) for name, value in schedule.state_dict().items()},
    }
    checkpoint = save_checkpoint(folder, model, model_record, num_steps_done, state)
    folder.append_event("training_ended", step=num_steps_done, checkpoint=checkpoint.name)
    return record.summary(streams.train.waited_s, checkpoint)


def _evaluation_is_due(maybe_eval: EvalStream | None, batch: Batch, last_epoch: int) -> bool:
    if maybe_eval is None or batch.step == 0:
        return False
    if maybe_eval.every_steps:
        return batch.step % maybe_eval.every_steps == 0
    return batch.epoch != last_epoch


def _model_record(job: Job, batches: TrainBatches) -> ModelRecord:
    height, width, num_channels = batches.spec.fields[0].shape
    return ModelRecord(
        section=job.config.model.model_dump(mode="json"),
        input_shape_CHW=(num_channels, height, width),
        num_classes=len(batches.classes),
    )


def _require_trainable(job: Job, spec: BatchSpec, classes: tuple[str, ...]) -> None:
    """Refuses before the first step what would fail, or learn nothing, in it."""
    problems = []
    image = spec.fields[0]
    layout = "NCHW" if spec.finish.channels_first else "NHWC"
    dtype = "float32" if spec.finish.scale else image.dtype
    if layout != "NCHW" or dtype != "float32":
        problems.append(
            Problem(
                file=job.train.chain.file,
                line=job.train.chain.line,
                path=job.train.chain.path,
                expected="a chain whose batches are float32 NCHW",
                got=f"{dtype} {layout}",
                way_out="end the chain in Normalize, ToTensorV2",
            )
        )
    if len(classes) < 2:
        problems.append(
            Problem(
                file=str(job.path),
                line=0,
                path=f"sources.{job.config.train.source}",
                expected="at least two classes",
                got=", ".join(classes) or "none",
                way_out="is the path one level too deep? it names the folder that holds the class folders",
            )
        )
    if job.config.schedule.kind == "plateau" and job.config.eval is None:
        problems.append(
            Problem(
                file=str(job.path),
                line=0,
                path="schedule.kind",
                expected="an `eval` section, whose loss the plateau schedule goes by",
                got="none",
                way_out="add one, or choose another schedule",
            )
        )
    if problems:
        raise ConfigError(problems)
