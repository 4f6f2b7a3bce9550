"""A share of a study's runs, in a process of its own: `python -m headrace.study_driver STUDY.yaml PART OF [a.b=v ...]`.

In:  a study file; runs are cut into OF shares of neighbours, and this is number PART, from 0.
Out: on stdout a line of JSON for each step of each stream (`{"steps": ...}`) and for each run (`{"run": ...}`).
Runs that see the same batches are stepped side by side, so that each batch is made once. A share that begins in the
middle of a stream opens that stream too: its batches are a function of their coordinates, so they are the same.
Ends when stdin does, whatever it is doing. Anything else it prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from headrace.embedded import open_streams
from pipeline.config_job import Job
from pipeline.errors import HeadraceError, RunFailed
from pipeline.factory import load_factory
from pipeline.job import initial_workers
from pipeline.study import Cell
from pipeline.study_file import Study, load_study
from trainer.batch import Batch
from trainer.device import prepare_torch
from trainer.study_records import RunRecord, to_line
from trainer.study_training import Images, Plan, StudyRun
from trainer.trainable import require_trainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Runs that see the same batches."""

    seed: int
    cells: tuple[Cell, ...]


def lanes(study: Study, part: int, num_parts: int) -> list[Lane]:
    """This part's share of all runs, by stream and seed; the parts' shares differ by one run at most."""
    by_stream: dict[tuple[str, int], list[Cell]] = {}
    for seed in study.config.seeds:
        for cell in study.config.cells():
            by_stream.setdefault((json.dumps(study.config.stream_changes(cell), sort_keys=True), seed), []).append(cell)
    runs = [(key, cell) for key, cells in by_stream.items() for cell in cells]
    mine = runs[part * len(runs) // num_parts : (part + 1) * len(runs) // num_parts]
    kept: dict[tuple[str, int], list[Cell]] = {}
    for key, cell in mine:
        kept.setdefault(key, []).append(cell)
    return [Lane(seed=seed, cells=tuple(cells)) for (_, seed), cells in kept.items()]


def train_lane(study: Study, lane: Lane, judged: JudgedImages) -> Iterator[int | list[RunRecord]]:
    """Yields how many runs have taken another step, and at the end their records."""
    config = study.config
    plan = Plan(
        num_steps=config.steps,
        measured_steps=config.measured_steps,
        evaluate_every=config.evaluate_every,
        stop_after_skipped=config.stop_after_skipped,
    )
    jobs = [study.job(cell, lane.seed, {"torch_threads": 1}) for cell in lane.cells]
    prepare_torch(jobs[0].config)
    images = judged.of(study, lane.cells[0], lane.seed)
    runs = [
        StudyRun(
            job.config,
            cell,
            plan,
            images,
            weights_std=config.weights_std(cell),
            factory=load_factory(job),
            file=str(job.path),
        )
        for job, cell in zip(jobs, lane.cells, strict=True)
    ]
    # As many epochs as could be needed: the study says how many steps.
    job = study.job(lane.cells[0], lane.seed, {"train.epochs": config.steps})
    with open_streams(job, _num_workers(job)) as streams:
        require_trainable(job, streams.train.spec, streams.train.classes)
        for batch, _ in zip(streams.train, range(config.steps), strict=False):
            for run in runs:
                run.step(batch)
            yield len(runs)
    records = [run.record() for run in runs]
    if any(not run.is_over for run in runs):
        raise RunFailed(
            f"study: the stream ended before step {config.steps}; has the source fewer images than a batch?"
        )
    yield records


class JudgedImages:
    """Training and held-out images without augmentation; read once, and again only where a cell changes them."""

    def __init__(self) -> None:
        self._known: dict[str, Images] = {}

    def of(self, study: Study, cell: Cell, seed: int) -> Images:
        # What the train stream alone depends on makes no other images here.
        changes = {path: value for path, value in study.config.stream_changes(cell).items() if path != "train.chain"}
        key = json.dumps(changes, sort_keys=True)
        if key not in self._known:
            job = study.job(cell, seed)
            held_out, num_classes = _evaluation_batches(job)
            train_job = study.job(cell, seed, {"eval.source": job.config.train.source})
            train, _ = _evaluation_batches(train_job)
            self._known[key] = Images(train=train, held_out=held_out, num_classes=num_classes)
        return self._known[key]


def _evaluation_batches(job: Job) -> tuple[list[Batch], int]:
    with open_streams(job, _num_workers(job)) as streams:
        return [_kept(batch) for batch in streams.evaluate()], len(streams.train.classes)


def _kept(batch: Batch) -> Batch:
    """A batch of its own memory, which the stream's next one does not use again."""
    return replace(batch, images=batch.images.clone(), labels=batch.labels.clone())


def _num_workers(job: Job) -> int:
    return initial_workers(job.config)[0]


def main(file: str, part: int, num_parts: int, overrides: list[str]) -> int:
    """Train the share; an exit code."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # no stray print may look like a reply
    threading.Thread(target=_listen, name="listen", daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        try:
            _train(load_study(Path(file), overrides), part, num_parts, replies)
        except HeadraceError as error:
            print(f"headrace: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def _train(study: Study, part: int, num_parts: int, replies: IO[bytes]) -> None:
    judged = JudgedImages()
    for lane in lanes(study, part, num_parts):
        for news in train_lane(study, lane, judged):
            if isinstance(news, int):
                _reply(replies, json.dumps({"steps": news}).encode())
            else:
                for record in news:
                    _reply(replies, b'{"run":' + to_line(record) + b"}")


def _reply(replies: IO[bytes], line: bytes) -> None:
    replies.write(line + b"\n")
    replies.flush()


def _listen() -> None:
    # Not sys.stdin: a process forked while this thread reads would wait for its lock for ever.
    with os.fdopen(os.dup(0), "rb") as lines:
        lines.read()
    os.kill(os.getpid(), signal.SIGINT)  # interrupts whatever the main thread waits for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
