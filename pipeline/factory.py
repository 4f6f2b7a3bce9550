"""The user's model factory, found where the job names it.

In:  a checked job of any model kind.
Out: the function itself; what is wrong with its name or its options has the job's own file:line.
Never calls it, and never imports torch (the user's module may).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, Problem
from pipeline.located import nearest
from pipeline.user_code import load_attribute

if TYPE_CHECKING:
    from pipeline.config_job import Job

_GIVEN = ("input_shape", "num_classes")
"""What every factory is called with, beside the job's `model.options`."""


def load_factory(job: Job) -> Callable[..., Any] | None:
    """What `model.factory` names; None for the built-in models, ConfigError if it isn't there or can't be called so."""
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
    if problems := list(_signature_problems(job, factory)):
        raise ConfigError(problems)
    return factory


def factory_place(job: Job) -> str:
    """`model.factory` so that a file of it is found from any folder; "" for the built-in models."""
    reference = job.config.model.factory
    if job.config.model.kind != "factory":
        return ""
    file = reference.partition(":")[0]
    return f"{job.path.absolute().parent / reference}" if file.endswith(".py") else reference


def _signature_problems(job: Job, factory: Callable[..., Any]) -> Iterator[Problem]:
    """What the factory has no parameter for, and what it lacks; nothing for a function that doesn't tell."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # of some functions written in C
        return
    reference, options = job.config.model.factory, job.config.model.options
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    own = [each.name for each in named if each.name not in _GIVEN]

    def problem(path: str, expected: str, got: str, way_out: str = "") -> Problem:
        file, line = job.place(path)
        return Problem(file=file, line=line, path=path, expected=expected, got=got, way_out=way_out)

    if not takes_any and not {each.name for each in named} >= set(_GIVEN):
        takes = ", ".join(each.name for each in named) or "nothing by name"
        yield problem("model.factory", f"a factory that takes {' and '.join(_GIVEN)}", f"{reference} takes {takes}")
    for name in options if not takes_any else ():
        if name not in own:
            expected = f"an option of {reference}, which has {', '.join(own) or 'none'}"
            yield problem(f"model.options.{name}", expected, repr(name), nearest(name, own))
    for each in named:
        if each.default is each.empty and each.name in own and each.name not in options:
            expected = f"`{each.name}`, for which {reference} has no default"
            yield problem(f"model.options.{each.name}", expected, "nothing")
