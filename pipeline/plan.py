"""A stream's plan: what a job and a source amount to, before anything is made.

In:  a checked job, a role (`train` or `eval`), the open source.
Out: the timeline's first entries; the `StreamSpec` that is registered, and its `Timeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import ConfigError, Problem
from pipeline.job import EvalStream, JobConfig, TrainStream
from pipeline.messages import StreamSpec
from pipeline.recipe import BatchSpec, Recipe
from pipeline.sources import Source, open_source
from pipeline.sources.settings import settings_of
from pipeline.swaps import schedule
from pipeline.timeline import LastBatch, Timeline, TimelineEntry
from pipeline.wire import MAX_SLICE_NBYTES, field_nbytes

if TYPE_CHECKING:
    from pipeline.config_job import Job

Role = Literal["train", "eval"]


def section_of(config: JobConfig, role: Role) -> TrainStream | EvalStream:
    """The job's section of a stream."""
    section = config.train if role == "train" else config.eval
    assert section is not None
    return section


def first_entries(job: Job, role: Role, num_samples: int, start: int = 0) -> tuple[TimelineEntry, ...]:
    """The timeline of a stream that begins at position `start`, as the job's chains and their schedule have it.

    ConfigError if that is past its end, or no batch can be filled.
    """
    section, recipe = section_of(job.config, role), job.train if role == "train" else job.eval
    assert recipe is not None
    last_batch, end_position = _ends(section, num_samples)
    if start > end_position:
        raise ConfigError(
            Problem(
                file=str(job.path),
                line=0,
                path=f"{role}: first position",
                expected=f"at most {end_position}, where the stream ends "
                f"({end_position // num_samples} epochs of {num_samples} samples)",
                got=str(start),
            )
        )
    file = job.train_file if role == "train" else job.eval_file
    first = TimelineEntry(start=start, step=0, recipe=recipe.digest, batch_size=section.batch_size, file=file)
    timeline = Timeline([first], num_samples=num_samples, last_batch=last_batch, end_position=end_position)
    if timeline.num_steps == 0 and start == 0:
        place, line = job.place(f"{role}.batch_size")
        raise ConfigError(
            Problem(
                file=place,
                line=line,
                path=f"{role}.batch_size",
                expected=f"at most {num_samples}, the samples of source {section.source!r}, since last_batch is drop",
                got=str(section.batch_size),
                way_out="lower batch_size, or set last_batch: keep",
            )
        )
    later = [(chain.from_epoch, chain.recipe.digest, chain.file) for chain in job.later] if role == "train" else []
    return schedule(first, later, num_samples=num_samples, last_batch=last_batch, end_position=end_position)


def timeline_of(job: Job, role: Role, num_samples: int, entries: Sequence[TimelineEntry]) -> Timeline:
    """What the entries make of the job's stream."""
    last_batch, end_position = _ends(section_of(job.config, role), num_samples)
    return Timeline(entries, num_samples=num_samples, last_batch=last_batch, end_position=end_position)


def job_recipes(job: Job, role: Role) -> dict[str, Recipe]:
    """Every recipe that the job names for a stream, by digest."""
    maybe_recipes = (job.train, *(chain.recipe for chain in job.later)) if role == "train" else (job.eval,)
    return {recipe.digest: recipe for recipe in maybe_recipes if recipe is not None}


def plan_stream(
    job: Job,
    role: Role,
    source: Source,
    endpoint: str,
    entries: Sequence[TimelineEntry],
) -> tuple[StreamSpec, Timeline]:
    """The stream that a timeline cuts; without recipes, since who registers it knows which are still needed."""
    section, num_samples = section_of(job.config, role), len(source)
    timeline = timeline_of(job, role, num_samples, entries)
    spec = StreamSpec(
        source=section.source,
        source_fingerprint=source.fingerprint,
        num_samples=num_samples,
        seed=job.config.seed,
        shuffle=section.shuffle if isinstance(section, TrainStream) else False,
        last_batch=timeline.last_batch,
        end_position=timeline.end_position,
        slice_size=job.config.slice_size,
        recipes=(),
        timeline=tuple(entries),
        endpoint=endpoint,
        source_settings=settings_of(job.config.sources[section.source]),
    )
    return spec, timeline


def named_recipes(entries: Sequence[TimelineEntry], recipes: Mapping[str, Recipe]) -> tuple[Recipe, ...]:
    """The recipes that a timeline names, each once, in the order of their first entries."""
    return tuple(recipes[digest] for digest in dict.fromkeys(entry.recipe for entry in entries))


def _ends(section: TrainStream | EvalStream, num_samples: int) -> tuple[LastBatch, int]:
    """What becomes of an epoch's last batch, and the position after the last epoch."""
    if isinstance(section, TrainStream):
        return section.last_batch, section.epochs * num_samples
    return "keep", num_samples


def open_job_source(config: JobConfig, job_file: str, line: int, name: str) -> Source:
    """The job's source of that name; what is wrong with it is located in the job file, unless in a file of its own."""
    try:
        return open_source(config.sources[name], Path(job_file).absolute().parent)
    except ConfigError as error:
        raise ConfigError(
            problem
            if problem.line
            else replace(
                problem,
                file=job_file,
                line=line,
                path=f"sources.{name}",
                got=f"{problem.got}, at {problem.file}",
            )
            for problem in error.problems
        ) from error


def require_equal_classes(config: JobConfig, job_file: str, open_one: Callable[[str], Source]) -> None:
    """Labels are indices into a source's classes, so both streams must count them alike."""
    if config.eval is None:
        return
    train, held_out = (open_one(section.source).classes for section in (config.train, config.eval))
    if train != held_out:
        only_train, only_held_out = sorted(set(train) - set(held_out)), sorted(set(held_out) - set(train))
        raise ConfigError(
            Problem(
                file=job_file,
                line=0,
                path=f"sources.{config.eval.source}",
                expected=f"the {len(train)} classes of {config.train.source!r}"
                + (f", with {', '.join(only_train[:5])}" if only_train else ""),
                got=f"{len(held_out)} classes" + (f", with {', '.join(only_held_out[:5])}" if only_held_out else ""),
                way_out="name the class folders (or labels) alike on both sides",
            )
        )


def window_for(config: JobConfig, batch_size: int, spec: BatchSpec) -> int:
    """Batches in flight: window_batches, or fewer if window_nbytes is reached first; at least one."""
    batch_nbytes = sum(field_nbytes(field, batch_size) for field in spec.fields)
    slice_nbytes = sum(field_nbytes(field, min(config.slice_size, batch_size)) for field in spec.fields)
    if slice_nbytes > MAX_SLICE_NBYTES:
        raise ConfigError(
            Problem(
                file="the job",
                line=0,
                path="slice_size",
                expected=f"slices of at most {MAX_SLICE_NBYTES} bytes",
                got=f"{config.slice_size} samples of this chain, {slice_nbytes} bytes",
                way_out="lower slice_size, or let the chain deliver smaller images",
            )
        )
    return max(1, min(config.window_batches, config.window_nbytes // batch_nbytes))
