"""The chains of a job file become recipes: the first one, those its schedule brings later, the held-out one.

In:  Located values of a job file, its checked fields (or None where they are wrong).
Out: `JobRecipes`; problems, each at its line.
Never reads YAML itself (chain files come through a function argument), never builds a chain.

    chain: strong.yaml                          # one file for the whole run
    chain: [HorizontalFlip, Normalize]          # the list itself
    chain:                                      # a schedule: every entry says from which epoch on
      - {from_epoch: 0, use: strong.yaml}
      - {from_epoch: 8, use: weak.yaml}
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config_chain import read_chain
from pipeline.config_paths import absolute_reference, chain_path
from pipeline.errors import ConfigError
from pipeline.job import DecodeSection, JobConfig, TrainStream
from pipeline.located import Located, ProblemList, describe, nearest
from pipeline.recipe import Chain, Decode, Recipe
from pipeline.user_code import plugin_name, source_digest

ChainLoader = Callable[[Path], Chain | None]
_SCHEDULE_KEYS = ("from_epoch", "use")
_ENTRY_FORM = "{from_epoch: EPOCH, use: CHAIN.yaml}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterChain:
    """An entry of the train chain's schedule after its first."""

    from_epoch: int
    """Counted from 0; the chain begins with the first batch that starts in this epoch or after it."""
    recipe: Recipe
    file: str
    """Absolute path of its chain file, "" for a list inside the job file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecipes:
    """What could be read of a job's chains; a recipe is there if its chain could be read."""

    train: Recipe | None = None
    train_file: str = ""
    later: tuple[LaterChain, ...] = ()
    eval: Recipe | None = None
    eval_file: str = ""
    plugins: tuple[str, ...] = ()
    """The references whose source was found, `file.py` made absolute."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one chain after the other; a file that is named twice is read, and its problems are noted, once."""

    folder: Path
    problems: ProblemList
    load_chain: ChainLoader
    decode: Decode
    plugin_digests: dict[str, str]
    known: dict[Path, Chain | None]

    def recipe(self, at: Located, path: str, expected: str) -> tuple[Recipe | None, str]:
        """The recipe of a chain file's path or a list, and the file it came from."""
        if isinstance(at.value, str):
            file = self._existing_file(at, path)
            if file is None:
                return None, ""
            if file not in self.known:
                self.known[file] = self.load_chain(file)
            chain, name = self.known[file], str(file)
        elif isinstance(at.value, tuple):
            chain, name = read_chain(at, path, self.problems), ""
        else:
            self.problems.add(at, path, expected=expected, got=describe(at.plain()))
            return None, ""
        if chain is None:
            return None, name
        return Recipe(chain=chain, decode=self.decode, plugins=self.plugin_digests), name

    def _existing_file(self, at: Located, path: str) -> Path | None:
        file = Path(chain_path(str(at.value), self.folder))
        if os.path.isfile(file):  # unlike Path.is_file it is also False for a name that is too long
            return file
        siblings = [sibling.name for sibling in file.parent.glob("*.yaml")] if os.path.isdir(file.parent) else []
        got, way_out = f"no file {at.value!r}", nearest(file.name, siblings)
        expected = "a chain file's path, relative to the job file"
        self.problems.add(at, path, expected=expected, got=got, way_out=way_out)
        return None


def job_recipes(
    root: Located, config: JobConfig | None, folder: Path, problems: ProblemList, load_chain: ChainLoader
) -> JobRecipes:
    """The recipes of all chains that can be read; whatever is wrong with the others is noted."""
    digests, plugins = _plugin_digests(root, folder, problems)
    section = config.decode if config is not None else DecodeSection()
    decode = Decode(color=section.color, depth=section.depth, max_pixels=section.max_pixels)
    reader = _Reader(folder, problems, load_chain, decode, digests, {})
    train, train_file, later = _train_recipes(_chain_of(root, "train"), reader, _num_epochs(root))
    held_out, eval_file = None, ""
    at = _chain_of(root, "eval")
    if at is not None and _is_schedule(at):
        way_out = "take the entry that evaluations are to use: they compare only under one chain"
        expected = "a chain file's path, or a list of transforms"
        problems.add(at, "eval.chain", expected=expected, got="a schedule", way_out=way_out)
    elif at is not None:
        held_out, eval_file = reader.recipe(at, "eval.chain", "a chain file's path, or a list of transforms")
    return JobRecipes(
        train=train, train_file=train_file, later=later, eval=held_out, eval_file=eval_file, plugins=plugins
    )


def _chain_of(root: Located, stream: str) -> Located | None:
    return root.items[stream].items.get("chain") if stream in root.items else None


def _num_epochs(root: Located) -> int | None:
    """`train.epochs`, its default where it is not written; None if it is no number."""
    at = root.items["train"].items.get("epochs") if "train" in root.items else None
    value = TrainStream.model_fields["epochs"].default if at is None else at.value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_schedule(at: Located) -> bool:
    """True if any entry says from when on, or what to use; no transform has such a name."""
    return isinstance(at.value, tuple) and any(key in entry.items for entry in at.value for key in _SCHEDULE_KEYS)


def _train_recipes(
    at: Located | None, reader: _Reader, num_epochs: int | None
) -> tuple[Recipe | None, str, tuple[LaterChain, ...]]:
    if at is None:
        return None, "", ()
    if not _is_schedule(at):
        expected = "a chain file's path, a list of transforms, or a schedule"
        return *reader.recipe(at, "train.chain", expected), ()
    assert isinstance(at.value, tuple)
    chains: list[LaterChain] = []
    last: int | None = None
    for index, entry in enumerate(at.value):
        path = f"train.chain[{index}]"
        if not _has_schedule_keys(entry, path, reader.problems):
            continue
        use = entry.items["use"]
        recipe, file = reader.recipe(use, f"{path}.use", "a chain file's path, or a list of transforms")
        epoch = _from_epoch(entry.items["from_epoch"], f"{path}.from_epoch", index, last, num_epochs, reader.problems)
        last = epoch if epoch is not None else last
        if recipe is not None and epoch is not None:
            chains.append(LaterChain(from_epoch=epoch, recipe=recipe, file=file))
    if not chains or chains[0].from_epoch != 0:
        return None, "", tuple(chains)
    return chains[0].recipe, chains[0].file, tuple(chains[1:])


def _has_schedule_keys(entry: Located, path: str, problems: ProblemList) -> bool:
    """True if the entry has what a schedule's entries have; what it has beside that is noted."""
    if not isinstance(entry.value, dict):
        way_out = "a schedule has no other entries than these"
        problems.add(entry, path, expected=_ENTRY_FORM, got=describe(entry.plain()), way_out=way_out)
        return False
    for key, value in entry.items.items():
        if key not in _SCHEDULE_KEYS:
            way_out = nearest(key, _SCHEDULE_KEYS)
            problems.add(value, path, expected=_ENTRY_FORM, got=repr(key), way_out=way_out, line=value.key_line)
    missing = [key for key in _SCHEDULE_KEYS if key not in entry.items]
    for key in missing:
        purpose = {"from_epoch": "the epoch from which on this chain is used", "use": "the chain"}[key]
        problems.add(entry, f"{path}.{key}", expected=purpose, got="nothing", way_out=f"write {_ENTRY_FORM}")
    return not missing


def _from_epoch(
    at: Located, path: str, index: int, last: int | None, num_epochs: int | None, problems: ProblemList
) -> int | None:
    """The entry's epoch; None, with the problem noted, if the schedule can't have it here."""
    value = at.value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        problems.add(at, path, expected="an epoch: an integer from 0", got=describe(at.plain()))
        return None
    way_out = ""
    if index == 0 and value != 0:
        expected, way_out = "0: the first entry is the chain that the run begins with", "add an entry from epoch 0"
    elif last is not None and value <= last:
        twice = f"; epoch {last} has its chain already" if value == last else ""
        expected, way_out = f"more than {last}, the epoch of the entry before{twice}", "sort the entries by epoch"
    elif num_epochs is not None and value >= num_epochs > 0:
        expected = f"below {num_epochs}, the number of epochs (they are counted from 0)"
        way_out = "raise train.epochs, or remove the entry"
    else:
        return value
    problems.add(at, path, expected=expected, got=str(value), way_out=way_out)
    return None


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
        references.append(absolute_reference(entry.value, folder))
    return digests, tuple(references)
