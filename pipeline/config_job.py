"""A job file's values become a checked JobConfig.

In:  Located values of a job file, with overrides put in.
Out: `JobConfig`; pydantic's errors as located problems; `Job`, which holds the recipes of `config_recipes` as well.
Never reads YAML itself, never builds a chain.

An `eval` section is required where samples are held out: a source with `split: {part: held_out}`, or a source
that `train` does not use. A job with one source and no such split may do without.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from pipeline.config_paths import with_absolute_paths
from pipeline.config_recipes import JobRecipes
from pipeline.config_recipes import LaterChain as LaterChain
from pipeline.errors import Problem
from pipeline.job import JobConfig
from pipeline.located import Located, ProblemList, describe, nearest
from pipeline.recipe import Chain, Recipe
from pipeline.suggestions import in_yaml_words, meant_key, meant_word, models_of

_STREAMS = ("train", "eval")

Places = dict[str, tuple[str, int]]
"""Path of a field in the job -> its file (or `--set ...`) and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job file, read and checked; its chains are parsed, not built."""

    path: Path
    """The job file as the user named it."""
    config: JobConfig
    """Its fields; paths are absolute."""
    train: Recipe
    """The recipe of the first batch."""
    train_file: str = ""
    """Absolute path of its chain file, "" for a list inside the job file."""
    later: tuple[LaterChain, ...] = ()
    """The rest of the schedule, by rising epochs above 0; empty where `train.chain` is no schedule."""
    eval: Recipe | None
    eval_file: str = ""
    file_digests: dict[str, str] = field(default_factory=dict)
    """Chain file -> `content_digest` of what was read: an edit since then is news for `pipeline.watch`."""
    source_lines: dict[str, int] = field(default_factory=dict)
    """Line of each source's entry."""
    places: Places = field(default_factory=dict)
    """Where each field was written."""
    refused_files: dict[str, tuple[Problem, ...]] = field(default_factory=dict)
    """Chain files that can't be used, and why; a chain that was kept of each stands in its place."""

    def place(self, path: str) -> tuple[str, int]:
        """File and line of a field such as `train.batch_size`, or of what it would stand in; line 0 if unknown."""
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        return self.places.get(path, (str(self.path), 0))

    def recipe_of(self, chain: Chain) -> Recipe:
        """Another chain's recipe in this job: with its decode settings and its plug-ins."""
        return Recipe(chain=chain, decode=self.train.decode, plugins=self.train.plugins)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedJob:
    """What could be read of a job file, right or wrong."""

    config: JobConfig | None
    recipes: JobRecipes
    file_digests: dict[str, str]
    source_lines: dict[str, int]
    places: Places
    refused_files: dict[str, tuple[Problem, ...]]
    problems: tuple[Problem, ...]


def source_lines(root: Located) -> dict[str, int]:
    """Line of each entry of `sources`."""
    sources = root.items.get("sources")
    return {name: entry.key_line or entry.line for name, entry in sources.items.items()} if sources else {}


def places(root: Located, path: str = "") -> Places:
    """File and line of every key below; of a `--set`, its own words."""
    found: Places = {path: (root.file, root.key_line)} if path else {}
    for name, entry in root.items.items():
        found |= places(entry, f"{path}.{name}".lstrip("."))
    return found


def read_job(root: Located, folder: Path, problems: ProblemList) -> JobConfig | None:
    """The checked fields, paths made absolute against `folder`; None, with problems noted, if any is wrong."""
    is_saved_chain = "transform" in root.items and root.items.keys().isdisjoint(("sources", "train"))
    is_chain = is_saved_chain or isinstance(root.value, tuple)
    if is_chain or not isinstance(root.value, dict):
        way_out = "this is a chain file; a job names it under train.chain" if is_chain else ""
        got = describe(root.plain())
        problems.add(root, "", expected="a job (a map with `sources` and `train`)", got=got, way_out=way_out)
        return None
    num_before = len(problems.problems)
    _check_streams(root, problems)
    plain = with_absolute_paths(root.plain(), folder)
    try:
        # From JSON, strictly: text is no number, 1 is no boolean, but a list may become a tuple and text a path.
        config = JobConfig.model_validate_json(to_json(plain), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            _note(details, root, problems, is_known=len(problems.problems) > num_before)
        return None
    return config


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
        got, way_out = repr(str(location[-1])), meant_key(str(location[-1]), known, JobConfig)
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
        way_out = "write true or false" if kind == "bool_type" else str(details.get("ctx", {}).get("way_out", ""))
        if kind == "literal_error":
            choices = [choice.strip(" '") for choice in re.split(",| or ", message)]
            way_out = meant_word(path, str(here.value), choices)
        elif message.startswith(("greater", "less")):
            message = f"a number {message}"
        problems.add(here, path, expected=in_yaml_words(kind, message), got=describe(here.plain()), way_out=way_out)


def _follow(root: Located, location: tuple[int | str, ...]) -> tuple[Located, str, list[type[BaseModel]]]:
    """The deepest written value on the way, the whole path as text, and the models the last key may belong to.

    pydantic puts the chosen kind of a source into the location; it is no key of the file and is passed over.
    """
    here, path = root, ""
    sections: list[type[BaseModel]] = [JobConfig]
    annotation: Any = JobConfig
    for part in location:
        kinds = [section for section in models_of(annotation) if _kind(section) == part]
        if kinds and len(list(models_of(annotation))) > 1:
            annotation = kinds[0]
            continue
        sections = list(models_of(annotation))
        annotation = _below(annotation, part)
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
        if isinstance(part, int) and isinstance(here.value, tuple) and part < len(here.value):
            here = here.value[part]
        elif part in here.items:
            here = here.items[str(part)]
    return here, path, sections


def _kind(section: type[BaseModel]) -> Any:
    return section.model_fields["kind"].default if "kind" in section.model_fields else None


def _below(annotation: Any, part: int | str) -> Any:
    """The annotation of the field `part`, or of the entries of a dict or a list."""
    for section in models_of(annotation):
        if part in section.model_fields:
            return section.model_fields[str(part)].annotation
    place_of_entry = {dict: 1, tuple: 0}.get(typing.get_origin(annotation))
    return None if place_of_entry is None else typing.get_args(annotation)[place_of_entry]


def _field_names(sections: Iterable[type[BaseModel]]) -> list[str]:
    return [name for section in sections for name in section.model_fields]


def _purpose(sections: Iterable[type[BaseModel]], name: str) -> str:
    for section in sections:
        description = section.model_fields[name].description if name in section.model_fields else None
        if description:
            return f"`{name}`: {' '.join(description.split())}"
    return f"`{name}`"
