"""What can be said against training before the first step.

In:  a job; what its train stream delivers, or as much of that as is known before anything is made.
Out: everything that would fail, or learn nothing, in the first step.
Never imports torch: `headrace check` asks too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, Problem
from pipeline.recipe import BatchSpec, Recipe

if TYPE_CHECKING:
    from pipeline.config_job import Job


def require_trainable(job: Job, spec: BatchSpec, classes: tuple[str, ...]) -> None:
    """Refuses before the first step what would fail, or learn nothing, in it."""
    dtype = "float32" if spec.finish.scale else spec.fields[0].dtype
    problems = chain_problems(job.train, dtype, is_channels_first=spec.finish.channels_first)
    problems += class_problems(job, classes) + setting_problems(job)
    if problems:
        raise ConfigError(problems)


def chain_problems(recipe: Recipe, dtype: str, *, is_channels_first: bool) -> list[Problem]:
    """Why no model can be trained on such batches; `dtype`: of the finished images."""
    if is_channels_first and dtype == "float32":
        return []
    return [
        Problem(
            file=recipe.chain.file,
            line=recipe.chain.line,
            path=recipe.chain.path,
            expected="a chain whose batches are float32 NCHW",
            got=f"{dtype} {'NCHW' if is_channels_first else 'NHWC'}",
            way_out="end the chain in Normalize, ToTensorV2",
        )
    ]


def class_problems(job: Job, classes: tuple[str, ...]) -> list[Problem]:
    """Why there is nothing to tell apart."""
    if len(classes) >= 2:
        return []
    path = f"sources.{job.config.train.source}"
    file, line = job.place(path)
    return [
        Problem(
            file=file,
            line=line,
            path=path,
            expected="at least two classes",
            got=", ".join(classes) or "none",
            way_out="is the path one level too deep? it names the folder that holds the class folders",
        )
    ]


def setting_problems(job: Job) -> list[Problem]:
    """What the job's own settings make impossible, whatever its data."""
    problems = []
    if job.config.schedule.kind == "plateau" and job.config.eval is None:
        file, line = job.place("schedule.kind")
        problems.append(
            Problem(
                file=file,
                line=line,
                path="schedule.kind",
                expected="an `eval` section, whose loss the plateau schedule goes by",
                got="none",
                way_out="add one, or choose another schedule",
            )
        )
    if job.config.model.init.law == "lsuv" and job.config.train.batch_size < 2:
        file, line = job.place("train.batch_size")
        problems.append(
            Problem(
                file=file,
                line=line,
                path="train.batch_size",
                expected="at least 2 with `model.init: lsuv`, which measures deviations over a batch",
                got=str(job.config.train.batch_size),
                way_out="raise it, or take `init: auto`, which looks at no images",
            )
        )
    return problems
