"""Likeness: what all batches of a stream have in common, whichever chain makes them.

In:  a job; what a probed recipe delivers.
Out: whether batches of two recipes can follow each other; the Problem, located in the chain, where they can't.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import Problem
from pipeline.recipe import BatchSpec, Recipe
from trainer.finish import delivered_text, trained_text

if TYPE_CHECKING:
    from pipeline.config_job import Job


class Likeness(NamedTuple):
    """Specs of equal texts are alike."""

    text: Callable[[BatchSpec], str]
    way_out: str

    def problems(self, recipe: Recipe, spec: BatchSpec, present: BatchSpec) -> list[Problem]:
        """Why batches of this recipe can't be used where those of the present spec are."""
        if self.text(spec) == self.text(present):
            return []
        chain = recipe.chain
        return [
            Problem(
                file=chain.file,
                line=chain.line,
                path=chain.path,
                expected=f"what the job's chain delivers, {self.text(present)}",
                got=self.text(spec),
                way_out=self.way_out,
            )
        ]


ONE_SHAPE = Likeness(delivered_text, "end in the same size, dtype and layout, or set `shape: free` in the job")
ANY_SHAPE = Likeness(lambda spec: "anything", "")
"""For loops of a user's own, which know what they can take."""
ANY_SIZE = Likeness(trained_text, "`shape: free` frees height and width: end in the same channels, dtype and layout")
MODEL_SHAPE = Likeness(delivered_text, "end in the same size: an `mlp` takes images of one size, a `cnn` of any")


def likeness_of(job: Job, *, is_trained: bool) -> Likeness:
    """Of the train stream's batches; `is_trained`: `headrace train` learns from them."""
    if job.config.shape == "fixed":
        return ONE_SHAPE
    return model_likeness(job) if is_trained else ANY_SHAPE


def model_likeness(job: Job) -> Likeness:
    """Of all batches that the job's model is shown: `headrace train` can take no others."""
    return MODEL_SHAPE if job.config.model.kind == "mlp" else ANY_SIZE
