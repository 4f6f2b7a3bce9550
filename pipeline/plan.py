"""A stream's plan: what a job and a source amount to, before anything is made.

In:  a checked job, a role (`train` or `eval`), the open source, its recipe.
Out: the `StreamSpec` that is registered, and its `Timeline`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pipeline.errors import ConfigError, Problem
from pipeline.job import EvalStream, JobConfig, TrainStream
from pipeline.messages import StreamSpec
from pipeline.recipe import BatchSpec, Recipe
from pipeline.sources import Source, open_source
from pipeline.timeline import Timeline, TimelineEntry
from pipeline.wire import MAX_SLICE_NBYTES, field_nbytes

Role = Literal["train", "eval"]


def section_of(config: JobConfig, role: Role) -> TrainStream | EvalStream:
    """The job's section of a stream."""
    section = config.train if role == "train" else config.eval
    assert section is not None
    return section


def plan_stream(
    config: JobConfig, job_file: str, role: Role, source: Source, recipe: Recipe, endpoint: str, start: int = 0
) -> tuple[StreamSpec, Timeline]:
    """The stream from position `start` on; ConfigError if that is past its end, or no batch can be filled."""
    section, num_samples = section_of(config, role), len(source)
    train = section if isinstance(section, TrainStream) else None
    last_batch = train.last_batch if train else "keep"
    epochs = train.epochs if train else 1
    end_position = epochs * num_samples
    if start > end_position:
        raise ConfigError(
            Problem(
                file=job_file,
                line=0,
                path=f"{role}: first position",
                expected=f"at most {end_position}, where the stream ends ({epochs} epochs of {num_samples} samples)",
                got=str(start),
            )
        )
    entry = TimelineEntry(start=start, step=0, recipe=recipe.digest, batch_size=section.batch_size)
    timeline = Timeline([entry], num_samples=num_samples, last_batch=last_batch, end_position=end_position)
    if timeline.num_steps == 0 and start == 0:
        raise ConfigError(
            Problem(
                file=job_file,
                line=0,
                path=f"{role}.batch_size",
                expected=f"at most {num_samples}, the samples of source {section.source!r}, since last_batch is drop",
                got=str(section.batch_size),
                way_out="lower batch_size, or set last_batch: keep",
            )
        )
    spec = StreamSpec(
        source=section.source,
        source_fingerprint=source.fingerprint,
        num_samples=num_samples,
        seed=config.seed,
        shuffle=train.shuffle if train else False,
        last_batch=last_batch,
        end_position=end_position,
        slice_size=config.slice_size,
        recipes=(recipe,),
        timeline=(entry,),
        endpoint=endpoint,
    )
    return spec, timeline


def open_job_source(config: JobConfig, job_file: str, line: int, name: str) -> Source:
    """The job's source of that name; what is wrong with it is located in the job file, unless in a file of its own."""
    try:
        return open_source(config.sources[name])
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
