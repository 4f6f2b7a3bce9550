"""Writes what came of a study: FOLDER/study.html and FOLDER/study.json.

In:  a checked study, the outcome of its runs.
Out: the files; the judgements, for the terminal.
"""

from __future__ import annotations

import json
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path

from headrace.study_run import Outcome
from pipeline.study_file import Study
from trainer.study_claims import Judgement, judge
from trainer.study_page import study_page

PAGE, SUMMARY = "study.html", "study.json"


def write_page(study: Study, outcome: Outcome, folder: Path) -> tuple[Judgement, ...]:
    """Both files are whole when this returns; the judgements stand in the study's order."""
    config, records = study.config, outcome.records
    chance_loss = math.log(records[0].num_classes)
    judgements = tuple(judge(config, claim, records, chance_loss) for claim in config.claims)
    page = study_page(
        config, records, judgements, facts=_facts(outcome), details=_details(study, outcome), chance_loss=chance_loss
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    (folder / SUMMARY).write_text(json.dumps(_summary(study, outcome, judgements), indent=1) + "\n", encoding="utf-8")
    return judgements


def _facts(outcome: Outcome) -> str:
    num_steps = sum(run.num_steps for run in outcome.records)
    return (
        f"{len(outcome.records)} trainings, {num_steps:,} steps, in {outcome.wall_s / 60:.1f} minutes "
        f"({outcome.cpu_s / 60:.1f} processor minutes) on {_machine()}."
    )


def _machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores, {_processor()}, torch {version('torch')}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _details(study: Study, outcome: Outcome) -> list[tuple[str, str]]:
    config, run = study.config, outcome.records[0]
    job = study.job(next(config.cells()), config.seeds[0]).config
    model, optimizer = job.model, job.optimizer
    momentum = f", momentum {optimizer.momentum:g}" if optimizer.kind == "sgd" else ""
    first, middle, last = (step + 1 for step in config.measured_steps)
    size = f", {model.depth} hidden layers of {model.width} units" if model.kind == "mlp" else ""
    counts = f"{run.num_train_images} for training, {run.num_held_out_images} held out, {run.num_classes} classes"
    measured = f"all layers measured at steps {first}, {middle} and {last}"
    return [
        ("model", f"{model.kind}{size}"),
        ("images", counts),
        ("steps", f"{config.steps} of {job.train.batch_size} images; {measured}"),
        ("seeds", f"{', '.join(map(str, config.seeds))}: order, augmentation and initial weights"),
        ("optimizer", f"{optimizer.kind}, learning rate {optimizer.lr:g}{momentum}, {job.schedule.kind}"),
        ("batches", "runs that differ in model, optimizer or clipping only were given the same batches"),
        ("time", f"{outcome.wall_s / 60:.1f} minutes with {outcome.num_processes} processes"),
        ("machine", f"{_machine()}, Python {platform.python_version()}"),
        ("files", f"{study.path}, job {study.job_path}"),
    ]


def _summary(study: Study, outcome: Outcome, judgements: tuple[Judgement, ...]) -> dict[str, object]:
    return {
        "name": study.config.name,
        "machine": _machine(),
        "wall_s": round(outcome.wall_s, 1),
        "cpu_s": round(outcome.cpu_s, 1),
        "num_processes": outcome.num_processes,
        "num_runs": len(outcome.records),
        "claims": [
            {
                "says": one.claim.says,
                "answer": one.answer,
                "finding": one.finding,
                "num_compared": one.num_compared,
                "num_counted": len(one.pairs),
            }
            for one in judgements
        ],
    }
