"""A past step of a run: what its folder says about it, checked against itself.

In:  a run's folder, a step, where its sources are now.
Out: `PastStep`: job, source, batch, recipe, quarantine, and the digest that was recorded.
Reads only, also while the run goes on; never opens a checkpoint's tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config_job import Job
from pipeline.errors import ConfigError, Problem, RunFailed
from pipeline.job import PluginSource, SourceConfig
from pipeline.json_lines import iter_lines
from pipeline.quarantine import attempts_at
from pipeline.recipe import Recipe
from pipeline.run_history import load_recipe, load_run_job, read_quarantine, read_timeline
from pipeline.sources import Source, open_source, parse_source_argument
from pipeline.timeline import BatchRange, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class PastStep:
    """All that makes a step's batch again, and what it must come to."""

    run: Path
    job: Job
    source: Source
    timeline: Timeline
    batch: BatchRange
    recipe: Recipe
    chain_file: str
    """Where the chain came from; "" for one inside the job file."""
    quarantined: Mapping[int, int]
    digest: str
    """As metrics.jsonl has it."""
    attempt: int
    """Of the run, in which the step was trained on."""
    worker_fingerprint: str
    """Of the workers that made it, as the newest checkpoint has it; "" if there is none."""

    @property
    def epoch(self) -> int:
        """Of the batch's first sample."""
        return self.batch.start // self.timeline.num_samples

    @property
    def chain_name(self) -> str:
        """What the user calls the chain."""
        return Path(self.chain_file).name if self.chain_file else "inside the job file"


def look_up(run: Path, step: int, source_arguments: Sequence[str], base: Path) -> PastStep:
    """What the folder says of a step; ConfigError for no such run, step or source, RunFailed if it contradicts itself.

    `base` is appended to sys.path: a job's plug-ins may be modules beside the file it was read from.
    """
    if str(base.resolve()) not in sys.path:
        sys.path.append(str(base.resolve()))
    job = _with_sources(load_run_job(run), source_arguments)
    record = _record(run, step)
    section = job.config.train
    source = _open(run, job, section.source, _source_fingerprint(run, section.source), base)
    entries = read_timeline(run)
    if not entries:
        raise RunFailed(
            f"{run / 'timeline.jsonl'}: no entry can be read, though steps were trained\n  {_CONTRADICTION}"
        )
    timeline = Timeline(
        entries,
        num_samples=len(source),
        last_batch=section.last_batch,
        end_position=section.epochs * len(source),
    )
    batch = _batch(run, timeline, step, record)
    return PastStep(
        run=run,
        job=job,
        source=source,
        timeline=timeline,
        batch=batch,
        recipe=load_recipe(run, batch.recipe, job),
        chain_file=timeline.entry_at(step).file,
        quarantined=attempts_at(read_quarantine(run).get("train", ()), step),
        digest=str(record["digest"]),
        attempt=int(record.get("attempt", 1)),
        worker_fingerprint=_worker_fingerprint(run),
    )


_CONTRADICTION = (
    "to go on: restore the folder from a copy; a file in it was edited, lost or mixed up with another run's"
)


def _with_sources(job: Job, arguments: Sequence[str]) -> Job:
    """The job with sources where they are now; split, columns and the like stay as they were."""
    sources: dict[str, SourceConfig] = dict(job.config.sources)
    for argument in arguments:
        name, given = parse_source_argument(argument)
        if name not in sources:
            raise _refusal("command line", "--source", f"one of {', '.join(sources)}", name)
        known, path = sources[name], getattr(given, "path", None)
        is_moved = path is not None and given.kind == known.kind and "={" not in argument
        sources[name] = known.model_copy(update={"path": path}) if is_moved else given
    return replace(job, config=job.config.model_copy(update={"sources": sources}))


def _open(run: Path, job: Job, name: str, fingerprint: str, base: Path) -> Source:
    """The source as it was in the run; ConfigError if it is not there, or has other samples now."""
    way_out = f"name the place where it lies now, or a copy from then: --source {name}=DIR"
    if isinstance(job.config.sources[name], PluginSource):
        way_out = "name the folder that its factory is in, which was the job's: --base FOLDER"
    try:
        source = open_source(job.config.sources[name], base, fingerprint)
    except ConfigError as error:
        raise ConfigError(
            problem if problem.line else replace(problem, path=f"sources.{name}", way_out=way_out)
            for problem in error.problems
        ) from error
    if fingerprint and source.fingerprint != fingerprint:
        raise _refusal(
            str(run / "job.yaml"),
            f"sources.{name}",
            f"the samples of the run (fingerprint {fingerprint[:16]})",
            f"others: {len(source)} samples, fingerprint {source.fingerprint[:16]}",
            f"undo what was added, removed or resized since; or {way_out}",
        )
    return source


def _batch(run: Path, timeline: Timeline, step: int, record: Mapping[str, Any]) -> BatchRange:
    """The step's batch by the timeline; RunFailed if metrics.jsonl has it elsewhere."""
    recorded = f"position {record['position']}, recipe {record['recipe']}"
    try:
        batch = timeline.batch(step)
        found = f"position {batch.start}, recipe {batch.recipe}"
    except IndexError:
        found = f"no such step: {timeline.num_samples} samples give {timeline.num_steps} steps"
    if found != recorded:
        raise RunFailed(
            f"{run}: step {step} is not where it was\n"
            f"  metrics.jsonl:                 {recorded}\n"
            f"  timeline.jsonl and the source: {found}\n"
            f"  causes: the source has {timeline.num_samples} samples now and had another number then (--source names"
            f" another place), or a file of this folder was edited"
        )
    return batch


def _record(run: Path, step: int) -> dict[str, Any]:
    """The step's line of metrics.jsonl, of the last attempt that did it; ConfigError if there is none."""
    path = run / "metrics.jsonl"
    found, least, greatest = None, None, -1
    for line in iter_lines(path):  # not kept: those of a run of days don't fit into memory
        least = line["step"] if least is None else min(least, line["step"])
        greatest = max(greatest, line["step"])
        if line["step"] == step:
            found = line
    if found is not None:
        return found
    if least is None:
        raise _refusal(str(path), "", "a run that has trained on at least one batch", "no step in it")
    expected = f"a step from {least} to {greatest}, which this run has trained on"
    got = f"{step}, whose line is lost" if least < step < greatest else str(step)
    raise _refusal(str(path), "--step", expected, got)


def _source_fingerprint(run: Path, name: str) -> str:
    """As the journal has it since the run's start; "" if it hasn't."""
    started = (line for line in iter_lines(run / "journal.jsonl") if line.get("action") == "training_started")
    return next(
        (str(line["source_fingerprints"].get(name, "")) for line in started if "source_fingerprints" in line), ""
    )


def _worker_fingerprint(run: Path) -> str:
    """As the newest checkpoint that can be read has it; "" if none does."""
    for path in sorted(run.glob("checkpoints/step-*/state.json"), reverse=True):
        try:
            state: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict)
        except (OSError, msgspec.MsgspecError):
            continue
        return str(state.get("worker_fingerprint", ""))
    return ""


def _refusal(file: str, path: str, expected: str, got: str, way_out: str = "") -> ConfigError:
    return ConfigError(Problem(file=file, line=0, path=path, expected=expected, got=got, way_out=way_out))
