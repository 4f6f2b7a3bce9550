"""A job file's values become a checked JobConfig and its recipes.

In:  Located values of a job file, with overrides put in.
Out: `JobConfig`, `Job`, recipes; pydantic's errors as located problems.
Never reads YAML itself (chain files come through a function argument), never builds a chain.

An `eval` section is required where samples are held out: a source with `split: {part: held_out}`, or a source
that `train` does not use. A job with one source and no such split may do without.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from pipeline.config_chain import read_chain
from pipeline.errors import ConfigError, Problem
from pipeline.job import DecodeSection, JobConfig
from pipeline.located import Located, ProblemList, describe, nearest
from pipeline.recipe import Chain, Decode, Recipe
from pipeline.user_code import plugin_name, source_digest

ChainLoader = Callable[[Path], Chain | None]
_PATH_FIELDS = ("path", "labels")
_STREAMS = ("train", "eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job file, read and checked; its chains are parsed, not built."""

    path: Path
    """The job file as the user named it."""
    config: JobConfig
    """Its fields; paths are absolute."""
    train: Recipe
    eval: Recipe | None
    source_lines: dict[str, int] = field(default_factory=dict)
    """Line of each source's entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedJob:
    """What could be read of a job file, right or wrong; a recipe is there if its chain could be read."""

    config: JobConfig | None
    train: Recipe | None
    eval: Recipe | None
    plugins: tuple[str, ...]
    """The references whose source was found, `file.py` made absolute."""
    source_lines: dict[str, int]
    problems: tuple[Problem, ...]


def source_lines(root: Located) -> dict[str, int]:
    """Line of each entry of `sources`."""
    sources = root.items.get("sources")
    return {name: entry.key_line or entry.line for name, entry in sources.items.items()} if sources else {}


def read_job(root: Located, folder: Path, problems: ProblemList) -> JobConfig | None:
    """The checked fields, paths made absolute against `folder`; None, with problems noted, if any is wrong."""
    if not isinstance(root.value, dict):
        problems.add(root, "", expected="a map with `sources` and `train`", got=describe(root.plain()))
        return None
    num_before = len(problems.problems)
    _check_streams(root, problems)
    plain = _with_absolute_paths(root.plain(), folder)
    try:
        # From JSON, strictly: text is no number, 1 is no boolean, but a list may become a tuple and text a path.
        config = JobConfig.model_validate_json(to_json(plain), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            _note(details, root, problems, is_known=len(problems.problems) > num_before)
        return None
    return config


def job_recipes(
    root: Located, config: JobConfig | None, folder: Path, problems: ProblemList, load_chain: ChainLoader
) -> tuple[dict[str, Recipe], tuple[str, ...]]:
    """Stream name -> recipe, for the chains that can be read; and the plug-ins whose source was found."""
    digests, plugins = _plugin_digests(root, folder, problems)
    section = config.decode if config is not None else DecodeSection()
    decode = Decode(color=section.color, depth=section.depth, max_pixels=section.max_pixels)
    recipes: dict[str, Recipe] = {}
    for stream in _STREAMS:
        at = root.items[stream].items.get("chain") if stream in root.items else None
        chain = _read_stream_chain(at, f"{stream}.chain", folder, problems, load_chain) if at is not None else None
        if chain is not None:
            recipes[stream] = Recipe(chain=chain, decode=decode, plugins=digests)
    return recipes, plugins


def override(root: Located, dotted: str, value: Located, problems: ProblemList, above: str = "") -> Located:
    """The job with the value at `a.b` put or replaced; maps on the way are made, and checked with the rest."""
    name, _, rest = dotted.partition(".")
    if not isinstance(root.value, dict):
        way_out = "set the whole value instead" if isinstance(root.value, tuple) else ""
        expected = f"a path into the job; {describe(root.plain())} has no parts"
        problems.add(value, f"{above}.{dotted}".lstrip("."), expected=expected, got=repr(dotted), way_out=way_out)
        return root
    if not rest:
        return root.with_item(name, value)
    below = root.items.get(name) or Located(value={}, file=value.file, line=value.line, key_line=value.line)
    return root.with_item(name, override(below, rest, value, problems, f"{above}.{name}".lstrip(".")))


def _check_streams(root: Located, problems: ProblemList) -> None:
    sources = root.items["sources"].items if "sources" in root.items else {}
    used = [root.items[name].items.get("source") for name in _STREAMS if name in root.items]
    for stream, source in zip([name for name in _STREAMS if name in root.items], used, strict=True):
        if sources and source is not None and isinstance(source.value, str) and source.value not in sources:
            way_out = nearest(source.value, sources)
            got = describe(source.value)
            problems.add(source, f"{stream}.source", expected="a name in `sources`", got=got, way_out=way_out)
    if "eval" in root.items and root.items["eval"].value is not None:
        return
    train_source = used[0].value if used and used[0] is not None else None
    for name, source in sources.items():
        split = source.items.get("split")
        part = split.items.get("part") if split is not None else None
        is_held_out = part is not None and part.value == "held_out"
        if is_held_out or (name != train_source and train_source in sources):
            why = "is held out" if is_held_out else "is not trained on"
            way_out = f"add `eval: {{source: {name}, chain: ...}}`, or remove the source"
            expected = f"an `eval` section, since {name} {why}"
            problems.add(source, "eval", expected=expected, got="none", way_out=way_out, line=source.key_line)
            return


def _with_absolute_paths(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy where paths and `file.py` references no longer depend on the working folder."""
    made = dict(plain)
    if isinstance(plain.get("sources"), dict):
        made["sources"] = {name: _absolute_source(source, folder) for name, source in plain["sources"].items()}
    for stream in _STREAMS:
        section = plain.get(stream)
        if isinstance(section, dict) and isinstance(section.get("chain"), str):
            made[stream] = {**section, "chain": _absolute(section["chain"], folder)}
    model = plain.get("model")
    if isinstance(model, dict) and isinstance(model.get("factory"), str):
        made["model"] = {**model, "factory": _absolute_reference(model["factory"], folder)}
    if isinstance(plain.get("plugins"), list):
        made["plugins"] = [
            _absolute_reference(entry, folder) if isinstance(entry, str) else entry for entry in plain["plugins"]
        ]
    return made


def _absolute_source(source: Any, folder: Path) -> Any:
    if not isinstance(source, dict):
        return source
    made = dict(source)
    for key in _PATH_FIELDS:
        if isinstance(source.get(key), str) and source[key]:
            made[key] = _absolute(source[key], folder)
    if isinstance(source.get("factory"), str):
        made["factory"] = _absolute_reference(source["factory"], folder)
    return made


def _absolute(text: str, folder: Path) -> str:
    # Only the user's own home: another's may not exist, which is an error of another kind.
    return str(folder / (Path(text).expanduser() if text.startswith("~/") else text))


def _absolute_reference(reference: str, folder: Path) -> str:
    module_part, colon, attribute = reference.partition(":")
    return f"{_absolute(module_part, folder)}{colon}{attribute}" if module_part.endswith(".py") else reference


def _read_stream_chain(
    at: Located, path: str, folder: Path, problems: ProblemList, load_chain: ChainLoader
) -> Chain | None:
    if not isinstance(at.value, str):
        if not isinstance(at.value, tuple):
            got = describe(at.plain())
            problems.add(at, path, expected="a chain file's path, or a list of transforms", got=got)
            return None
        return read_chain(at, path, problems)
    file = Path(_absolute(at.value, folder))
    if not os.path.isfile(file):  # unlike Path.is_file it is also False for a name that is too long
        siblings = [sibling.name for sibling in file.parent.glob("*.yaml")] if os.path.isdir(file.parent) else []
        way_out = nearest(file.name, siblings)
        expected = "a chain file's path, relative to the job file"
        problems.add(at, path, expected=expected, got=f"no file {at.value!r}", way_out=way_out)
        return None
    return load_chain(file)


def _plugin_digests(root: Located, folder: Path, problems: ProblemList) -> tuple[dict[str, str], tuple[str, ...]]:
    """Plug-in name -> SHA-256 of its source, and the references of those found."""
    plugins = root.items.get("plugins")
    entries = plugins.value if plugins is not None and isinstance(plugins.value, tuple) else ()
    digests: dict[str, str] = {}
    references = []
    for index, entry in enumerate(entries):
        if not isinstance(entry.value, str):
            continue  # pydantic has noted it
        try:
            name, digest = plugin_name(entry.value), source_digest(entry.value, folder)
        except ConfigError as error:
            (problem,) = error.problems
            problems.add(
                entry, f"plugins[{index}]", expected=problem.expected, got=problem.got, way_out=problem.way_out
            )
            continue
        if name in digests:
            problems.add(entry, f"plugins[{index}]", expected="each plug-in once", got=f"{name!r} again")
        digests[name] = digest
        references.append(_absolute_reference(entry.value, folder))
    return digests, tuple(references)


def _note(details: ErrorDetails, root: Located, problems: ProblemList, *, is_known: bool) -> None:
    """One of pydantic's errors, at the place it concerns."""
    location = details["loc"]
    if not location and is_known:
        return  # the whole-job check for unknown sources; `_check_streams` has noted it with its line
    here, path, sections = _follow(root, location)
    kind = details["type"]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "extra_forbidden":
        known = _field_names(sections)
        got, way_out = repr(str(location[-1])), nearest(str(location[-1]), known)
        problems.add(here, path, expected="a known key", got=got, way_out=way_out, line=here.key_line)
    elif kind == "missing":
        problems.add(here, path, expected=_purpose(sections, str(location[-1])), got="nothing", line=here.key_line)
    elif kind == "union_tag_not_found":
        problems.add(here, f"{path}.kind", expected="the kind of source", got="nothing", line=here.key_line)
    elif kind == "union_tag_invalid":
        context = details.get("ctx", {})
        tags = [tag.strip(" '") for tag in str(context.get("expected_tags", "")).split(",")]
        at = here.items.get("kind", here)
        way_out = nearest(str(at.value), tags)
        problems.add(at, f"{path}.kind", expected=f"one of {', '.join(tags)}", got=describe(at.value), way_out=way_out)
    else:
        way_out = "write true or false" if kind == "bool_type" else ""
        if kind == "literal_error":
            way_out = nearest(str(here.value), [choice.strip(" '") for choice in re.split(",| or ", message)])
        elif message.startswith(("greater", "less")):
            message = f"a number {message}"
        problems.add(here, path, expected=message, got=describe(here.plain()), way_out=way_out)


def _follow(root: Located, location: tuple[int | str, ...]) -> tuple[Located, str, list[type[BaseModel]]]:
    """The deepest written value on the way, the whole path as text, and the models the last key may belong to.

    pydantic puts the chosen kind of a source into the location; it is no key of the file and is passed over.
    """
    here, path = root, ""
    sections: list[type[BaseModel]] = [JobConfig]
    annotation: Any = JobConfig
    for part in location:
        kinds = [section for section in _models(annotation) if _kind(section) == part]
        if kinds and len(list(_models(annotation))) > 1:
            annotation = kinds[0]
            continue
        sections = list(_models(annotation))
        annotation = _below(annotation, part)
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
        if isinstance(part, int) and isinstance(here.value, tuple) and part < len(here.value):
            here = here.value[part]
        elif part in here.items:
            here = here.items[str(part)]
    return here, path, sections


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections an annotation may stand for, through Annotated, unions and None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _models(argument)


def _kind(section: type[BaseModel]) -> Any:
    return section.model_fields["kind"].default if "kind" in section.model_fields else None


def _below(annotation: Any, part: int | str) -> Any:
    """The annotation of the field `part`, or of the entries of a dict."""
    for section in _models(annotation):
        if part in section.model_fields:
            return section.model_fields[str(part)].annotation
    return typing.get_args(annotation)[1] if typing.get_origin(annotation) is dict else None


def _field_names(sections: Iterable[type[BaseModel]]) -> list[str]:
    return [name for section in sections for name in section.model_fields]


def _purpose(sections: Iterable[type[BaseModel]], name: str) -> str:
    for section in sections:
        description = section.model_fields[name].description if name in section.model_fields else None
        if description:
            return f"`{name}`: {' '.join(description.split())}"
    return f"`{name}`"
