"""The user's model factory, found where the job names it.

In:  a checked job of any model kind.
Out: the function itself; what is wrong with its name has the job's own file:line.
Never calls it, and never imports torch (the user's module may).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, Problem
from pipeline.user_code import load_attribute

if TYPE_CHECKING:
    from pipeline.config_job import Job


def load_factory(job: Job) -> Callable[..., Any] | None:
    """What `model.factory` names; None for the built-in models, ConfigError if it isn't there or can't be called."""
    reference = job.config.model.factory
    if job.config.model.kind != "factory":
        return None
    file, line = job.place("model.factory")
    try:
        found = load_attribute(reference, job.path.absolute().parent)
    except ConfigError as error:
        # A failure inside the module has its own line, which says more.
        raise ConfigError(
            problem if problem.line else replace(problem, file=file, line=line, path="model.factory")
            for problem in error.problems
        ) from error
    if not callable(found):
        expected, got = f"a function or class: {reference}", type(found).__name__
        raise ConfigError(Problem(file=file, line=line, path="model.factory", expected=expected, got=got))
    factory: Callable[..., Any] = found
    return factory
