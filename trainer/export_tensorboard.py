"""tensorboard's one home: a run's curves in TensorBoard's own files.

In:  what happens in the training loop.
Out: `events.out.tfevents.*` in the run folder's tensorboard/, one file an attempt.
Never ends a run: if a write fails, it warns, once, and writes no more.

The records are written here, by tensorboard's own RecordWriter, and not through torch's SummaryWriter. That one writes
from a thread which dies with a traceback when the disk is full, takes one record for each number, and marks no run's
first start; TensorBoard takes the first mark for a start and not for a restart, and would show what came after a
checkpoint twice after the first resume.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.text.summary_v2 import text_pb  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from trainer.batch import Batch
from trainer.evaluation import Evaluation
from trainer.health.overhead import Overhead
from trainer.health.records import DeepStats, VerdictEvent
from trainer.step import StepResult

log = logging.getLogger("headrace.train")

FLUSH_S = 10.0
"""What a killed run loses at most; its metrics.jsonl has the same numbers."""
MAX_LAYERS = 64
"""Of a deeper model, so many, evenly spaced, the first and the last among them: nobody reads 1,000 curves."""
_NUMBERS = itertools.count()


class TensorBoardExporter:
    """A `trainer.exporters.Exporter`."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """What an earlier attempt wrote of `first_step` and later steps is shown no more."""
        self._step = first_step
        self._waited_s = 0.0
        self._maybe_writer: RecordWriter | None = None
        self._flushed_s = time.monotonic()
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._maybe_writer = RecordWriter(open(folder / name, "xb", buffering=1 << 16))  # noqa: SIM115
        except OSError as error:
            self._stop(error)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._flush()

    def step(self, batch: Batch, result: StepResult, waited_s: float) -> None:
        self._step = batch.step
        scalars = {
            "train/loss": result.loss,
            "train/learning_rate": result.lr,
            "gradient_norm/before_clipping": result.grad_norm,
            "gradient_norm/after_clipping": result.clipped_norm,
            "data/waited_s": waited_s - self._waited_s,
        }
        if result.loss_scale != 1.0:
            scalars["train/loss_scale"] = result.loss_scale
        self._waited_s = waited_s
        self._write_scalars(batch.step, scalars)
        if time.monotonic() - self._flushed_s > FLUSH_S:
            self._flush()

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        self._write_scalars(step, {"held_out/loss": evaluation.loss, "held_out/accuracy": evaluation.accuracy})
        self._flush()

    def layers(self, deep: DeepStats) -> None:
        every = max(1, math.ceil((len(deep.layers) - 1) / (MAX_LAYERS - 1)))
        chosen = {layer.name: layer for layer in (*deep.layers[::every], *deep.layers[-1:])}
        scalars = {}
        for name, layer in chosen.items():
            scalars[f"forward_std/{name}"] = layer.std  # also one that is not finite: that is no gap
            if not math.isnan(layer.delta_rms):
                scalars[f"backward_rms/{name}"] = layer.delta_rms
            if layer.weight_norm > 0.0 and not math.isnan(layer.update_norm):
                scalars[f"update_to_weight/{name}"] = layer.update_norm / layer.weight_norm
        self._write_scalars(deep.step, scalars)

    def verdict(self, event: VerdictEvent) -> None:
        verdict = event.verdict
        tag = f"verdicts/{verdict.id}" + (f" {verdict.kind}" if verdict.kind else "")
        text = f"{event.change.value} at step {event.step}\n{verdict}"
        # Markdown: four blanks in front are a block of code.
        self._write(Event(step=event.step, summary=text_pb(tag, "    " + text.replace("\n", "\n    "))))
        self._flush()

    def cost(self, overhead: Overhead) -> None:
        shares = {
            "health/always_on_share": overhead.light_share,
            "health/deep_share": overhead.deep_share,
            "health/telling_share": overhead.measured_told_share,
        }
        self._write_scalars(self._step, shares)

    def close(self) -> None:
        writer, self._maybe_writer = self._maybe_writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self._stop(error)

    def _write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        if self._maybe_writer is None:
            return
        event.wall_time = time.time()
        try:
            self._maybe_writer.write(event.SerializeToString())
        except OSError as error:
            self._stop(error)

    def _flush(self) -> None:
        self._flushed_s = time.monotonic()
        try:
            if self._maybe_writer is not None:
                self._maybe_writer.flush()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        writer, self._maybe_writer = self._maybe_writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()  # it tries once more to write what is left
        log.warning("action=tensorboard_stopped %s; metrics.jsonl has the same numbers", error)
