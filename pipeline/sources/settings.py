"""A source's settings: what of a job's source is the same on every machine, unlike where it lies.

In:  a job's source, or a worker's own and the settings that a stream came with.
Out: the settings to send; the worker's own source under them; the `--source` argument that says so.
Never takes a path, a factory or its options from a peer: what is opened, and what is imported, is the worker's own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import pydantic

from pipeline.errors import ConfigError, Problem
from pipeline.job import SourceConfig

JOBS_OWN = frozenset({"split", "content", "path_column", "label_column", "classes"})
"""All that decides which samples a place holds, and is safe to be told: it names nothing to open or to import."""


def settings_of(source: SourceConfig) -> dict[str, Any]:
    """What the source has set otherwise than by default, as plain values."""
    return source.model_dump(mode="json", include=set(JOBS_OWN), exclude_defaults=True)


def with_settings(own: SourceConfig, settings: Mapping[str, Any]) -> SourceConfig:
    """The worker's source with the job's settings, but for those that its own command line gave.

    ConfigError if a peer sent what no job can hold.
    """
    taken = _fitting(own, settings)
    given = own.model_dump(exclude_unset=True)
    try:
        return type(own).model_validate({**taken, **given})
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        problem = Problem(file="the stream", line=0, path="source_settings", expected="as in a job file", got=faults)
        raise ConfigError(problem) from error


def other_argument(name: str, own: SourceConfig, settings: Mapping[str, Any]) -> str:
    """The `--source` argument that has the job's settings, ready for a shell; "" if the worker's own has them too."""
    taken = _fitting(own, settings)
    if settings_of(own) == taken:
        return ""
    place = own.model_dump(mode="json", include={"kind", "path", "labels"}, exclude_none=True)
    return "--source " + shlex.quote(f"{name}={json.dumps({**place, **taken})}")


def _fitting(own: SourceConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    known = JOBS_OWN & set(type(own).model_fields)
    return {key: value for key, value in settings.items() if key in known}
