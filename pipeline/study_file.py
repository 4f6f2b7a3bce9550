"""A study file becomes a checked study; everything wrong with it, or with what it makes of the job, has its line.

In:  a study file (YAML), `--set a.b=v` arguments.
Out: `Study`: the checked fields, and the job of each cell.
Never trains. Every setting's job is loaded once while checking, so that no run of the matrix is refused later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from pipeline.config import load_job, overridden, read_file
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.located import Located, ProblemList, describe, nearest
from pipeline.section import Section
from pipeline.study import Cell, ClaimSection, Setting, StudyConfig, changes_stream
from pipeline.suggestions import in_yaml_words

CheckJob = Callable[[Path, Sequence[str]], object]
"""(job file, `--set` arguments): a ConfigError for a wrong job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study file, read and checked."""

    path: Path
    """As the user named it."""
    config: StudyConfig
    job_path: Path

    def job(self, cell: Cell, seed: int, more: Mapping[str, Any] = MappingProxyType({})) -> Job:
        """The base job with the cell's changes, and `more` of them."""
        return load_job(self.job_path, _as_overrides({**self.config.changes(cell), "seed": seed, **more}))


def load_study(path: Path, overrides: Sequence[str] = (), check_stream: CheckJob = load_job) -> Study:
    """A checked study, or a ConfigError with every problem of it and of the jobs that its settings make.

    `check_stream`: looks at the base job, and at the job of each setting that changes its batches; `load_job` looks at
    what is written only, and `headrace check` further.
    """
    problems = ProblemList()
    root = read_file(path, problems)
    for argument in overrides:
        root = overridden(root, argument, problems, "steps=100")
    config = _checked(root, problems)
    if problems.problems or config is None:
        raise ConfigError(problems.in_order())
    study = Study(path=path, config=config, job_path=path.parent / config.job)
    _check_jobs(study, root, problems, check_stream)
    if problems.problems:
        raise ConfigError(problems.in_order())
    return study


def _checked(root: Located, problems: ProblemList) -> StudyConfig | None:
    if not isinstance(root.value, dict):
        problems.add(root, "", expected="a map with `job` and `axes`", got=describe(root.plain()))
        return None
    if "axes" not in root.items and {"sources", "train"} & set(root.items):
        way_out = "headrace train runs it; a study names it as its `job`, see configs/studies/smoke.yaml"
        problems.add(root, "", expected="a study (a map with `job` and `axes`)", got="a job", way_out=way_out)
        return None
    try:
        return StudyConfig.model_validate_json(to_json(root.plain()), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            _note(dict(details), root, problems)
        return None


def _note(details: dict[str, Any], root: Located, problems: ProblemList) -> None:
    """One of pydantic's errors, at the deepest value on its way that is written in the file."""
    context = details.get("ctx", {})
    location = (*details["loc"], *context.get("place", ()))
    here, path = root, ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        if isinstance(part, int) and isinstance(here.value, tuple) and part < len(here.value):
            here = here.value[part]
        elif part in here.items:
            here = here.items[str(part)]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if details["type"] == "extra_forbidden":
        got, way_out = repr(str(location[-1])), nearest(str(location[-1]), _field_names(location))
        problems.add(here, path, expected="a known key", got=got, way_out=way_out, line=here.key_line)
    elif details["type"] == "missing":
        problems.add(here, path, expected=_purpose(location), got="nothing", line=here.key_line)
    else:
        problems.add(here, path, expected=in_yaml_words(details["type"], message), got=describe(here.plain()))


def _section(location: Sequence[int | str]) -> type[Section]:
    if len(location) == 1:
        return StudyConfig
    return Setting if location[0] == "axes" else ClaimSection


def _field_names(location: Sequence[int | str]) -> list[str]:
    return list(_section(location).model_fields)


def _purpose(location: Sequence[int | str]) -> str:
    field = _section(location).model_fields.get(str(location[-1]))
    return f"`{location[-1]}`: {' '.join((field.description or '').split())}" if field else f"`{location[-1]}`"


def _check_jobs(study: Study, root: Located, problems: ProblemList, check_stream: CheckJob) -> None:
    """Looks at the base job, then at each setting's job alone: each mistake is told once, at its setting's line."""
    try:
        job = load_job(study.job_path, _as_overrides({"seed": study.config.seeds[0]}))
        check_stream(study.job_path, ())
    except ConfigError as error:
        problems.take(error)
        return
    if job.eval is None:
        way_out = "a study judges every run on held-out images"
        expected = f"a job with an `eval` section, whose images {study.job_path} holds out"
        problems.add(root.items["job"], "job", expected=expected, got="none", way_out=way_out)
    for axis, settings in study.config.axes.items():
        for name, setting in settings.items():
            if not setting.set:
                continue
            written = root.items["axes"].items[axis].items[name].items["set"].items
            places = {f"--set {argument}": path for path, argument in _arguments(setting.set).items()}
            check = check_stream if changes_stream(setting.set) else load_job
            try:
                check(study.job_path, _as_overrides(setting.set))
            except ConfigError as error:
                for problem in error.problems:
                    key = places.get(problem.file, "")
                    place = f"axes.{axis}.{name}.set: {problem.path}"
                    if key in written:
                        line = written[key].line
                        problem = replace(problem, file=written[key].file, line=line, path=place)
                    else:
                        problem = replace(problem, path=place)
                    problems.take(ConfigError(problem))


def _arguments(changes: Mapping[str, Any]) -> dict[str, str]:
    # JSON is YAML too, in the subset that is read here.
    return {path: f"{path}={json.dumps(value)}" for path, value in changes.items()}


def _as_overrides(changes: Mapping[str, Any]) -> list[str]:
    return list(_arguments(changes).values())
