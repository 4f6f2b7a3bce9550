"""What can be said against training before the first step.

In:  a job, what its train stream delivers.
Out: a ConfigError with everything that would fail, or learn nothing, in the first step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, Problem
from pipeline.recipe import BatchSpec

if TYPE_CHECKING:
    from pipeline.config_job import Job


def require_trainable(job: Job, spec: BatchSpec, classes: tuple[str, ...]) -> None:
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
    if job.config.model.init.law == "lsuv" and job.config.train.batch_size < 2:
        problems.append(
            Problem(
                file=str(job.path),
                line=0,
                path="train.batch_size",
                expected="at least 2 with `model.init: lsuv`, which measures deviations over a batch",
                got=str(job.config.train.batch_size),
                way_out="raise it, or take `init: auto`, which looks at no images",
            )
        )
    if problems:
        raise ConfigError(problems)
