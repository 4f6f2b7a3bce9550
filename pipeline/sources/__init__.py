"""Sources: random access to raw samples by index.

In:  a source's part of the job file, or a worker's `--source NAME=…`.
Out: an open `Source`, or a `SourceConfig`. A further kind is one file and a line in `open_source`.
Never decodes an image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydantic

from pipeline.errors import ConfigError, Problem
from pipeline.job import (
    ArraysSource,
    DigitsSource,
    FolderSource,
    ManifestSource,
    PluginSource,
    SourceConfig,
)
from pipeline.sources.arrays import open_arrays
from pipeline.sources.digits import open_digits
from pipeline.sources.folder import open_folder
from pipeline.sources.manifest import open_manifest
from pipeline.sources.plugin import open_plugin
from pipeline.sources.protocol import RawSample, Source

__all__ = ["RawSample", "Source", "open_source", "parse_source_argument"]

_FORMS = "NAME=DIR, NAME=file.csv, NAME=x.npz, NAME=digits or NAME={json of the source}"


def open_source(config: SourceConfig, base: Path, wanted: str = "") -> Source:
    """The source of one configuration; equal content gives equal fingerprints wherever it lies.

    `base`: the folder that a plug-in's factory is looked for in, which is that of the job file.
    `wanted`: the fingerprint a run goes by. An index with it is used even if files have come or gone since, so that
    a worker that starts late sees the samples its run began with; a missing one is then a failed read.
    """
    match config:
        case FolderSource():
            return open_folder(config, wanted)
        case ManifestSource():
            return open_manifest(config, wanted)
        case ArraysSource():
            return open_arrays(config)
        case DigitsSource():
            return open_digits(config)
        case PluginSource():
            return open_plugin(config, base)


def parse_source_argument(text: str) -> tuple[str, SourceConfig]:
    """Name and configuration of a `--source` argument; its paths become absolute, from the current folder."""
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise _refusal(_FORMS, repr(text))
    if value.startswith("{"):
        return name, _from_json(value)
    if value == "digits":
        return name, DigitsSource()
    path = Path(value).absolute()
    match path.suffix.lower():
        case ".csv":
            return name, ManifestSource(path=path)
        case ".npz":
            return name, ArraysSource(path=path)
        case ".npy":
            raise _refusal("images and labels", value, f'{name}={{"kind": "arrays", "path": …, "labels": …}}')
        case _:
            return name, FolderSource(path=path)


def _from_json(value: str) -> SourceConfig:
    try:
        plain: Any = json.loads(value)
        config: SourceConfig = pydantic.TypeAdapter(SourceConfig).validate_python(plain)
    except json.JSONDecodeError as error:
        raise _refusal("JSON", f"{error.msg} at character {error.pos}: {value}") from error
    except pydantic.ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise _refusal("a source as in a job file", "; ".join(faults)) from error
    paths = {key: path.absolute() for key in ("path", "labels") if (path := getattr(config, key, None)) is not None}
    return config.model_copy(update=paths)


def _refusal(expected: str, got: str, way_out: str = "") -> ConfigError:
    problem = Problem(file="command line", line=0, path="--source", expected=expected, got=got, way_out=way_out)
    return ConfigError(problem)
