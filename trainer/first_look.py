"""The first look: what a new run does with data before its first step.

In:  a job, its model with freshly drawn weights, the look stream.
Out: the model scaled by LSUV, if its law is that; a `FirstLook` with what lint found.
Touches neither the train stream nor any random generator. Weights are changed by LSUV alone, with lint or without.

A run's first weights are made once. A resumed run has them in its checkpoint, and nothing is looked at; one that ended
before its first checkpoint begins anew, so LSUV sees the same batch again and makes the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.errors import ConfigError, Problem
from pipeline.job_model import InitSection
from pipeline.resume import Resumption
from trainer.batch import Batch
from trainer.health.detectors import HealthConfig
from trainer.lint import lint
from trainer.lint_report import LintReport
from trainer.lsuv import ScaledLayer, scale_to_unit

if TYPE_CHECKING:
    from pipeline.config_job import Job

Look = Callable[[int], Iterable[Batch]]
"""The run's first so many batches, from a stream of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLook:
    """What was seen and done before the first step."""

    lsuv: tuple[ScaledLayer, ...] = ()
    lint: LintReport | None = None
    """None: it was not asked for, or the run is resumed."""

    @property
    def lines(self) -> tuple[str, ...]:
        """For the user's eyes, a line (or a paragraph) each."""
        said = []
        if self.lsuv:
            before = [layer.std_before for layer in self.lsuv]
            said.append(
                f"lsuv: {len(self.lsuv)} layers scaled to a standard deviation of 1 on the first batch "
                f"(from {min(before):.3g} to {max(before):.3g} before)"
            )
        if self.lint is not None:
            said.append(self.lint.text(has_try_fix=True))
        return tuple(said)

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(action, fields) for the journal."""
        if self.lsuv:
            layers = [
                {"name": layer.name, "std_before": layer.std_before, "std_after": layer.std_after}
                for layer in self.lsuv
            ]
            yield "lsuv", {"layers": layers}
        if self.lint is not None:
            yield "lint", self.lint.to_dict()


def prepare(job: Job, model: nn.Module, look: Look, resumed: Resumption | None, *, num_classes: int) -> FirstLook:
    """LSUV on the model and lint on a copy of it, with the run's first batch; nothing if there is a checkpoint.

    Call it when the model is on its device and before its optimizer is made. ConfigError if LSUV can't work with the
    batch; lint never raises, and none of it runs on a resume.
    """
    config = job.config
    is_scaled = config.model.init.law == "lsuv" and (resumed is None or resumed.checkpoint is None)
    is_linted = config.health.lint and resumed is None
    if not (is_scaled or is_linted):
        return FirstLook()
    batches = list(look(1))  # to its end, so that the stream is closed before the first step
    if not batches:
        return FirstLook()
    (batch,) = batches
    scaled = scale(config.model.init, model, batch, str(job.path)) if is_scaled else ()
    report = lint_job(job, model, batch, num_classes=num_classes) if is_linted else None
    return FirstLook(lsuv=scaled, lint=report)


def lint_job(job: Job, model: nn.Module, batch: Batch, *, num_classes: int) -> LintReport:
    """Lint of a job's model, with the thresholds of its `health` section."""
    section = job.config.health
    health = HealthConfig(
        thresholds=section.thresholds, off=section.off, num_classes=num_classes, transforms=_transforms(job, batch)
    )
    is_built_in = job.config.model.kind != "factory"
    return lint(model, batch.images, batch.labels, config=health, is_built_in=is_built_in)


def scale(init: InitSection, model: nn.Module, batch: Batch, file: str) -> tuple[ScaledLayer, ...]:
    """LSUV on a model that was built with its orthogonal start already; ConfigError, located in the job's file."""
    try:
        return scale_to_unit(model, batch.images, tolerance=init.tolerance, max_tries=init.max_tries)
    except ConfigError as error:
        (problem,) = error.problems
        raise ConfigError(
            Problem(
                file=file,
                line=0,
                path="model.init",
                expected=f"for lsuv, {problem.expected}",
                got=problem.got,
                way_out=problem.way_out,
            )
        ) from error


def _transforms(job: Job, batch: Batch) -> tuple[str, ...]:
    recipes = (job.train, *(chain.recipe for chain in job.later))
    return next((tuple(node.name for node in one.chain.nodes) for one in recipes if one.digest == batch.recipe), ())
