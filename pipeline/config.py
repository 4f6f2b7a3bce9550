"""YAML files become jobs and chains; everything wrong with them is found at once, with its line.

In:  job and chain files (UTF-8 YAML), `--set a.b=v` arguments.
Out: `Job` (a checked `JobConfig` and its recipes) and `Chain`; and back, the text of a chain or job.
Never builds a transform, never reads data. The only importer of yaml.

The YAML we read is a subset with YAML 1.2's plain scalars: `true`/`false` (also True, TRUE) are booleans and
`on`, `off`, `yes`, `no` are text; `1e-3` is a number, `010` is ten, `1_000` and `1:30` are text. Refused: tags,
merge keys (`<<`), keys that are not text, equal keys, `.inf` and `.nan`, several documents, and files over the
limits below. Anchors and aliases work, but each use counts as if it were written out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.config_chain import as_item, read_chain
from pipeline.config_job import ExaminedJob, Job, override, places, read_job, source_lines
from pipeline.config_recipes import job_recipes
from pipeline.errors import ConfigError, Problem
from pipeline.job import JobConfig
from pipeline.located import Located, ProblemList, Scalar, describe, nearest
from pipeline.recipe import Chain

MAX_FILE_NBYTES = 256 * 1024
"""The longest chain we know of is 20 kB; the slowest text of this size that we found takes 5 s."""
MAX_NODES = 10_000
"""Values in a file, aliases written out. Chosen."""
MAX_DEPTH = 64
"""Nesting; compositions nested 16 deep inside a job need 52. Chosen."""

_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
_CONSTANTS: dict[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


KeptChain = Callable[[JobConfig, str], Chain | None]
"""A job, the name of a chain file that can't be used -> the chain that is used in its place, if there is one."""


def load_job(path: Path, overrides: Sequence[str] = (), kept: KeptChain | None = None) -> Job:
    """A checked job, or a ConfigError with every problem of it and of its chain files.

    Relative paths in the job (sources, labels, chain files, `file.py` references) are relative to its folder,
    also those given by an override. An override is `a.b=v`, v being YAML. `kept`: what a run has of its chain files,
    so that a bad edit of one ends no run that is resumed; `Job.refused_files` tells of it.
    """
    examined = examine_job(path, overrides, kept)
    if examined.problems:
        raise ConfigError(examined.problems)
    return examined_job(path, examined)


def examined_job(path: Path, examined: ExaminedJob) -> Job:
    """The job of what `examine_job` has found, if its fields and its train chain could be read."""
    recipes = examined.recipes
    assert examined.config is not None
    assert recipes.train is not None
    return Job(
        path=path,
        config=examined.config,
        train=recipes.train,
        train_file=recipes.train_file,
        later=recipes.later,
        eval=recipes.eval,
        eval_file=recipes.eval_file,
        file_digests=examined.file_digests,
        source_lines=examined.source_lines,
        places=examined.places,
        refused_files=examined.refused_files,
    )


def examine_job(path: Path, overrides: Sequence[str] = (), kept: KeptChain | None = None) -> ExaminedJob:
    """What `load_job` finds, wrong or right, for those who go on to look for more problems.

    Raises ConfigError only if the file is no YAML at all.
    """
    problems = ProblemList()
    root = read_file(path, problems)
    for argument in overrides:
        root = overridden(root, argument, problems, "optimizer.lr=0.01")
    folder = path.resolve().parent
    config = read_job(root, folder, problems)
    digests: dict[str, str] = {}
    refused: dict[str, tuple[Problem, ...]] = {}

    def load(file: Path) -> Chain | None:
        wrong = ProblemList()
        chain = _load_chain(file, wrong, digests)
        maybe_kept = kept(config, str(file)) if wrong.problems and kept is not None and config is not None else None
        if maybe_kept is None:
            problems.problems += wrong.problems
            return chain
        refused[str(file)] = wrong.in_order()
        return maybe_kept

    recipes = job_recipes(root, config, folder, problems, load)
    return ExaminedJob(
        config=config,
        recipes=recipes,
        file_digests=digests,
        source_lines=source_lines(root),
        places=places(root),
        refused_files=refused,
        problems=problems.in_order(),
    )


def load_chain(path: Path) -> Chain:
    """The chain of a file: a list of transforms, or what `albumentations.save(..., data_format="yaml")` wrote."""
    return parse_chain(_content(path), str(path))


def parse_chain(content: bytes, file: str) -> Chain:
    """As `load_chain`, of what was read from the file already."""
    problems = ProblemList()
    chain = _parse_chain(content, file, problems)
    if problems.problems:
        raise ConfigError(problems.in_order())
    assert chain is not None
    return chain


def kind_of_file(path: Path) -> Literal["study", "job", "chain"]:
    """What a file is, by the keys of its map: `axes` or `job`, `sources` or `train`; a ConfigError if it is none."""
    problems = ProblemList()
    root = read_file(path, problems)
    if {"axes", "job"} & set(root.items):
        return "study"
    if {"sources", "train"} & set(root.items):
        return "job"
    if isinstance(root.value, tuple) or "transform" in root.items:
        return "chain"
    problems.add(
        root,
        "",
        expected="a job (a map with `sources` and `train`), a chain (a list, or a map with `transform`) or a study (a "
        "map with `job` and `axes`)",
        got=describe(root.plain()),
        way_out=next(filter(None, (nearest(key, ("sources", "train", "transform", "axes")) for key in root.items)), ""),
    )
    raise ConfigError(problems.problems)


def dump_chain(chain: Chain) -> str:
    """YAML text that `load_chain` reads to a chain with the same digest."""
    return yaml.dump([as_item(node) for node in chain.nodes], Dumper=_Dumper, sort_keys=False, width=120)


def dump_job(config: JobConfig) -> str:
    """YAML text of every field of a job, defaults written out."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)


def content_digest(content: bytes) -> str:
    """SHA-256 of a file's content, or of as much of it as we would read."""
    return hashlib.sha256(content[: MAX_FILE_NBYTES + 1]).hexdigest()


def _load_chain(path: Path, problems: ProblemList, digests: dict[str, str]) -> Chain | None:
    """`digests`: takes the content's digest, by path, of every file that could be read."""
    try:
        content = _content(path)
    except ConfigError as error:
        problems.take(error)
        return None
    digests[str(path)] = content_digest(content)
    return _parse_chain(content, str(path), problems)


def _parse_chain(content: bytes, file: str, problems: ProblemList) -> Chain | None:
    try:
        root = parse_yaml(content, file, problems)
    except ConfigError as error:
        problems.take(error)
        return None
    return read_chain(root, "chain", problems, may_be_saved=True)


def overridden(root: Located, argument: str, problems: ProblemList, example: str) -> Located:
    """The tree with one `--set PATH=VALUE` applied, VALUE being YAML; as it was if that is wrong. `example`: of one."""
    place = f"--set {argument}"
    dotted, equals, text = argument.partition("=")
    try:
        if not equals or not dotted:
            raise _refused(place, 0, expected=f"PATH=VALUE, as in {example}", got=repr(argument))
        value = parse_yaml(text.encode("utf-8", "surrogateescape"), place, problems, has_lines=False)
    except ConfigError as error:
        problems.take(error)
        return root
    return override(root, dotted, value, problems)


def read_file(path: Path, problems: ProblemList) -> Located:
    """As `parse_yaml`, of a file; a ConfigError if there is none, with the name in its folder that is nearest."""
    return parse_yaml(_content(path), str(path), problems)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_NBYTES + 1)
    except OSError as error:
        siblings = [sibling.name for sibling in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise _refused(
            str(path),
            0,
            expected="a readable file",
            got=error.strerror or type(error).__name__,
            way_out=nearest(path.name, siblings),
        ) from error


def parse_yaml(content: bytes, file: str, problems: ProblemList, *, has_lines: bool = True) -> Located:
    """The tree of one YAML document; a ConfigError if it can't be read at all, else problems are only noted."""
    if len(content) > MAX_FILE_NBYTES:
        raise _refused(file, 1 if has_lines else 0, expected=f"at most {MAX_FILE_NBYTES} bytes", got="more")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1 if has_lines else 0
        raise _refused(file, line, expected="UTF-8 text", got=f"byte 0x{content[error.start]:02x}") from error
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None and has_lines else 0
        if "'\\t'" in (error.problem or ""):
            raise _refused(
                file,
                line,
                expected="YAML, which is indented by spaces",
                got="a tab",
                way_out="tabs cannot indent YAML; use spaces",
            ) from error
        context = f" ({error.context})" if error.context else ""
        raise _refused(file, line, expected="YAML", got=f"{error.problem or 'an error'}{context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if has_lines else 0
        raise _refused(file, line, expected="printable text", got=f"character {error.character!r}") from error
    if node is None:
        raise _refused(file, 1 if has_lines else 0, expected="a value", got="nothing: it is empty")
    return _Locator(file, has_lines, problems).locate(node, "", depth=1)


def _refused(file: str, line: int, *, expected: str, got: str, way_out: str = "") -> ConfigError:
    return ConfigError(Problem(file=file, line=line, path="", expected=expected, got=got, way_out=way_out))


class _Loader(yaml.SafeLoader):
    """PyYAML's composer, stopped at tags and at depth before its recursion can overflow."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag!r} (no tags here)", problem_mark=event.start_mark)
        if self._depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nesting deeper than {MAX_DEPTH}", problem_mark=event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Locator:
    """Turns PyYAML's nodes into Located values; an alias is a node met again, and counts again."""

    def __init__(self, file: str, has_lines: bool, problems: ProblemList) -> None:
        self._file = file
        self._has_lines = has_lines
        self._problems = problems
        self._num_nodes = 0

    def locate(self, node: yaml.Node, path: str, depth: int) -> Located:
        line = self._line(node)
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise _refused(self._file, line, expected=f"at most {MAX_NODES} values, aliases written out", got="more")
        if depth > MAX_DEPTH:  # an alias inside its own anchor ends here
            raise _refused(self._file, line, expected=f"nesting of at most {MAX_DEPTH}", got="more")
        if isinstance(node, yaml.MappingNode):
            return self._locate_map(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            entries = [self.locate(entry, f"{path}[{index}]", depth + 1) for index, entry in enumerate(node.value)]
            return self._located(tuple(entries), line)
        assert isinstance(node, yaml.ScalarNode)
        located = self._located(node.value if node.style else _resolve(node.value), line)
        if isinstance(located.value, float) and not math.isfinite(located.value):
            self._problems.add(located, path, expected="a finite number", got=node.value)
        elif isinstance(located.value, int) and not -(2**63) <= located.value < 2**63:
            self._problems.add(located, path, expected="an integer of 64 bits", got=describe(node.value))
        elif isinstance(located.value, str) and _NOT_TEXT.search(located.value):
            self._problems.add(located, path, expected="text", got="a NUL or half a surrogate pair")
        return located

    def _locate_map(self, node: yaml.MappingNode, path: str, depth: int) -> Located:
        entries: dict[str, Located] = {}
        for key_node, value_node in node.value:
            key_line = self._line(key_node)
            here = self._located(None, key_line)
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or (not key_node.style and not isinstance(_resolve(key), str)):
                got = "a list or map" if key is None else f"{key or 'nothing'}"
                self._problems.add(here, path, expected="a text key", got=got, way_out="write the key in quotes")
                continue
            if key == "<<" and not key_node.style:
                self._problems.add(here, path, expected="no merge key", got="<<", way_out="write the entries out")
                continue
            value = self.locate(value_node, f"{path}.{key}" if path else key, depth + 1)
            if key in entries:
                self._problems.add(
                    here, path, expected=f"each key once ({key!r} is also on line {entries[key].key_line})",
                    got=f"{key!r} again on line {key_line}", way_out="remove one of them",
                )  # fmt: skip
                continue
            entries[key] = replace(value, key_line=key_line)
        return self._located(entries, self._line(node))

    def _located(self, value: Scalar | tuple[Located, ...] | dict[str, Located], line: int) -> Located:
        return Located(value=value, file=self._file, line=line, key_line=line)

    def _line(self, node: yaml.Node) -> int:
        return node.start_mark.line + 1 if self._has_lines else 0


def _resolve(text: str) -> Scalar:
    """What a plain (unquoted) scalar means; text unless it is clearly a number, boolean or null."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NOT_FINITE.fullmatch(text):
        return math.inf  # noted as not finite by whoever located it
    return float(text) if _FLOAT.fullmatch(text) else text


class _Dumper(yaml.SafeDumper):
    """Quotes text that our loader, unlike PyYAML's, would read as a number; writes shared values out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(_resolve(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
