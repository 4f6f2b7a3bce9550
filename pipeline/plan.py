"""A stream's plan: what a job and a source amount to, before anything is made.

In:  a checked job, a role (`train` or `eval`), the open source, its recipe.
Out: the `StreamSpec` that is registered, and its `Timeline`.
"""

from __future__ import annotations

from typing import Literal

from pipeline.errors import ConfigError, Problem
from pipeline.job import EvalStream, JobConfig, TrainStream
from pipeline.messages import StreamSpec
from pipeline.recipe import BatchSpec, Recipe
from pipeline.sources.protocol import Source
from pipeline.timeline import Timeline, TimelineEntry
from pipeline.wire import field_nbytes

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


def window_for(config: JobConfig, batch_size: int, spec: BatchSpec) -> int:
    """Batches in flight: window_batches, or fewer if window_nbytes is reached first; at least one."""
    batch_nbytes = sum(field_nbytes(field, batch_size) for field in spec.fields)
    return max(1, min(config.window_batches, config.window_nbytes // batch_nbytes))
