"""The paths of a job file, made independent of the working folder.

In:  a job's plain values, the folder of its file.
Out: the same values with absolute paths and `file.py` references.
Never looks whether a path exists, nor at more of the disk than links.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_PATH_FIELDS = ("path", "labels")


def with_absolute_paths(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy where paths and `file.py` references no longer depend on the working folder."""
    made = dict(plain)
    if isinstance(plain.get("sources"), dict):
        made["sources"] = {name: _absolute_source(source, folder) for name, source in plain["sources"].items()}
    for stream in ("train", "eval"):
        section = plain.get(stream)
        if isinstance(section, dict) and "chain" in section:
            made[stream] = {**section, "chain": absolute_chain(section["chain"], folder)}
    model = plain.get("model")
    if isinstance(model, dict) and isinstance(model.get("factory"), str):
        made["model"] = {**model, "factory": absolute_reference(model["factory"], folder)}
    if isinstance(plain.get("plugins"), list):
        made["plugins"] = [
            absolute_reference(entry, folder) if isinstance(entry, str) else entry for entry in plain["plugins"]
        ]
    return made


def absolute(text: str, folder: Path) -> str:
    """A path as text, relative to `folder` unless it is absolute or begins with `~/`."""
    # Only the user's own home: another's may not exist, which is an error of another kind.
    return str(folder / (Path(text).expanduser() if text.startswith("~/") else text))


def chain_path(text: str, folder: Path) -> str:
    """The one name of a chain file, whoever names it and from where: absolute, its folder without links and `..`.

    By it a timeline knows the file again. A link that is the file itself stays one: another target is an edit.
    """
    path = absolute(text, folder)
    try:
        return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    except ValueError:  # characters that no path can have; whoever opens it says so
        return path


def absolute_chain(chain: Any, folder: Path) -> Any:
    """A job's `chain` with the names of its chain file, or of those of its schedule."""
    if isinstance(chain, str):
        return chain_path(chain, folder)
    if isinstance(chain, list) and any(isinstance(entry, dict) and "from_epoch" in entry for entry in chain):
        return [_absolute_use(entry, folder) for entry in chain]
    return chain


def absolute_reference(reference: str, folder: Path) -> str:
    """`file.py` and `file.py:factory` with the file's absolute path; a module's name as it is."""
    module_part, colon, attribute = reference.partition(":")
    return f"{absolute(module_part, folder)}{colon}{attribute}" if module_part.endswith(".py") else reference


def _absolute_use(entry: Any, folder: Path) -> Any:
    if isinstance(entry, dict) and isinstance(entry.get("use"), str):
        return {**entry, "use": chain_path(entry["use"], folder)}
    return entry


def _absolute_source(source: Any, folder: Path) -> Any:
    if not isinstance(source, dict):
        return source
    made = dict(source)
    for key in _PATH_FIELDS:
        if isinstance(source.get(key), str) and source[key]:
            made[key] = absolute(source[key], folder)
    if isinstance(source.get("factory"), str):
        made["factory"] = absolute_reference(source["factory"], folder)
    return made
