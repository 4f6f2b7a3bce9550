"""What a run's folder says of its past: timeline, quarantine, metrics, recipes, job.

In:  a run's folder, being written or not.
Out: plain values; each file's damage as a RunFailed or ConfigError that names it.
Never writes, never takes the lock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import load_chain, load_job, parse_yaml
from pipeline.config_job import Job
from pipeline.config_paths import absolute_chain, chain_path
from pipeline.errors import ConfigError, Problem, RunFailed
from pipeline.following import files_read
from pipeline.json_lines import iter_lines, read_lines
from pipeline.located import ProblemList
from pipeline.quarantine import Quarantined, entry_of
from pipeline.recipe import Chain, Decode, Recipe
from pipeline.timeline import TimelineChange, TimelineEntry, after

_RECIPE_LINE = re.compile(r"# (train|eval|epoch [0-9]+): chains/([0-9a-f]{16})\.yaml, from (.*)")
_DECODE_LINE = re.compile(r"# decode: (.*)")
_PLUGIN_LINE = re.compile(r"# plug-in (\S+): sha256 ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A step that was done once: made again, its batch must come out as it did then."""

    recipe: str
    digest: str
    epoch: int
    attempt: int


def read_changes(folder: Path) -> tuple[TimelineChange, ...]:
    """The lines of timeline.jsonl, in order."""
    path = folder / "timeline.jsonl"
    return changes_of(read_lines(path, is_synced=True), path)


def changes_of(records: Iterable[Mapping[str, Any]], path: Path) -> tuple[TimelineChange, ...]:
    """The changes that lines of timeline.jsonl stand for."""
    try:
        changes = [msgspec.convert(record, TimelineChange) for record in records]
    except msgspec.ValidationError as error:
        raise RunFailed(
            f"{path}: a line is no change of a timeline: {error}\n  to go on: was it written by another version?"
        ) from error
    return tuple(
        msgspec.structs.replace(
            change,
            entries=named_alike(change.entries),
            files={_present_name(file): recipe for file, recipe in change.files.items()},
        )
        for change in changes
    )


def named_alike(entries: Iterable[TimelineEntry]) -> tuple[TimelineEntry, ...]:
    """Recorded entries with the names that chain files have today: older versions spelled some otherwise."""
    return tuple(msgspec.structs.replace(entry, file=_present_name(entry.file)) for entry in entries)


def entries_of(changes: Iterable[TimelineChange]) -> tuple[TimelineEntry, ...]:
    """The timeline after all changes, from step 0 on."""
    entries: tuple[TimelineEntry, ...] = ()
    for change in changes:
        entries = after(entries, change)
    return entries


def read_timeline(folder: Path) -> tuple[TimelineEntry, ...]:
    """The train stream's timeline, from step 0 on."""
    return entries_of(read_changes(folder))


def read_quarantine(folder: Path) -> dict[str, list[Quarantined]]:
    """Stream role -> its entries, in order."""
    quarantined: dict[str, list[Quarantined]] = {}
    for line in iter_lines(folder / "quarantine.jsonl", is_synced=True):
        quarantined.setdefault(line["stream"], []).append(entry_of(line))
    return quarantined


def read_metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> its line of metrics.jsonl, of the last attempt that did the step."""
    return {line["step"]: line for line in iter_lines(folder / "metrics.jsonl")}


def read_recorded(folder: Path, from_step: int) -> dict[int, Recorded]:
    """The steps from `from_step` on that metrics.jsonl has, of the last attempt that did each."""
    return {
        line["step"]: Recorded(
            recipe=line["recipe"], digest=line["digest"], epoch=line["epoch"], attempt=line["attempt"]
        )
        for line in iter_lines(folder / "metrics.jsonl")
        if line["step"] >= from_step
    }


def load_recipe(folder: Path, digest: str, job: Job) -> Recipe:
    """The recipe of chains/<digest>.yaml with the job's decode settings and plug-ins, its digest verified."""
    path = folder / "chains" / f"{digest}.yaml"
    recipe = job.recipe_of(load_chain(path))
    if recipe.digest == digest:
        return recipe
    problem = Problem(
        file=str(path),
        line=0,
        path="",
        expected=f"the chain of recipe {digest}, as it was written",
        got=f"a chain of recipe {recipe.digest}",
        way_out="restore the file from a copy; it was edited, or its disk is failing",
    )
    as_written = _as_written(path, recipe.chain)
    if as_written is not None and as_written.digest == digest:
        raise ConfigError(tuple(_outside_differences(problem, as_written, recipe)))
    raise ConfigError(problem)


def kept_chain(folder: Path, file: str) -> Chain | None:
    """The chain that the run of a folder read last from a chain file; None where it has none that is whole."""
    digests = {name: digest for digest, name in _job_recipes(folder).values()}  # that of the evaluation too
    return _whole_chain(folder, (digests | files_read(read_changes(folder))).get(file, ""))


def kept_evaluation(folder: Path, job: Job) -> Recipe | None:
    """What evaluations use that is not what their chain file holds now; None unless that file was edited."""
    digest, file = _job_recipes(folder).get("eval", ("", ""))
    if job.eval is None or not file or file != job.eval_file:
        return None
    chain = _whole_chain(folder, digest)
    kept = job.recipe_of(chain) if chain is not None else job.eval
    return kept if kept.digest != job.eval.digest else None


def _job_recipes(folder: Path) -> dict[str, tuple[str, str]]:
    """As `_written_recipes`, of the folder's job.yaml."""
    path = folder / "job.yaml"
    return _written_recipes(path.read_text(errors="replace")) if path.is_file() else {}


def _whole_chain(folder: Path, digest: str) -> Chain | None:
    """The chain of a recipe, None unless it is as it was written."""
    path = folder / "chains" / f"{digest}.yaml"
    try:
        chain = load_chain(path)
    except ConfigError:
        return None
    written = _as_written(path, chain)
    return chain if written is not None and written.digest == digest else None


def recipe_text(recipe: Recipe, chain_text: str) -> str:
    """What chains/<digest>.yaml holds: the chain, and in comments what else makes up the recipe."""
    header = [
        f"# recipe {recipe.digest}, from {recipe.chain.file}",
        f"# decode: {msgspec.json.encode(recipe.decode).decode()}",
        *(f"# plug-in {name}: sha256 {digest}" for name, digest in sorted(recipe.plugins.items())),
    ]
    return "\n".join(header) + "\n" + chain_text


def job_text(job: Job, config_text: str) -> str:
    """What job.yaml holds: every field, and in comments which file of chains/ each chain stands in."""
    recipes = [("train", job.train, job.train_file)]
    recipes += [(f"epoch {later.from_epoch}", later.recipe, later.file) for later in job.later]
    if job.eval is not None:
        recipes.append(("eval", job.eval, job.eval_file))
    header = [f"# {name}: chains/{recipe.digest}.yaml, from {json.dumps(file)}" for name, recipe, file in recipes]
    return "\n".join(header) + "\n" + config_text


def load_run_job(folder: Path) -> Job:
    """The job as it ran, with the chains it had then: its chain files may have been edited or moved since."""
    path = folder / "job.yaml"
    if not path.is_file():
        got = "no job.yaml in it" if folder.is_dir() else "no such folder"
        raise ConfigError(
            Problem(
                file=str(folder),
                line=0,
                path="",
                expected="the folder of a run",
                got=got,
                way_out="name the folder of a run, such as runs/NAME",
            )
        )
    content = path.read_bytes()
    written = _written_recipes(content.decode("utf-8", "replace"))
    plain = parse_yaml(content, str(path), ProblemList()).plain()
    if not written or not isinstance(plain, dict):
        return load_job(path)
    overrides = list(_chain_overrides(folder.absolute(), plain, written))
    job = load_job(path, overrides)
    config = job.config
    for stream in ("train", "eval"):  # the chains' own files again, where an override stood in
        section = getattr(config, stream)
        if section is not None:
            section = section.model_copy(update={"chain": absolute_chain(plain[stream]["chain"], folder)})
            config = config.model_copy(update={stream: section})
    later = tuple(replace(each, file=written.get(f"epoch {each.from_epoch}", ("", each.file))[1]) for each in job.later)
    train_file = written.get("train", ("", job.train_file))[1]
    eval_file = written.get("eval", ("", job.eval_file))[1]
    return replace(job, config=config, train_file=train_file, later=later, eval_file=eval_file, file_digests={})


def _present_name(file: str) -> str:
    return chain_path(file, Path("/")) if file.startswith("/") else file


def _written_recipes(text: str) -> dict[str, tuple[str, str]]:
    """`train`, `eval`, `epoch 8` -> the recipe's digest and the user's own chain file."""
    written = {}
    for name, digest, file in _RECIPE_LINE.findall(text):
        try:
            written[name] = (digest, _present_name(str(json.loads(file))))
        except ValueError:  # damaged: the job's own path holds
            continue
    return written


def _chain_overrides(folder: Path, plain: dict[str, Any], written: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """`--set` arguments that put the folder's own chain files in the place of the user's."""

    def own(name: str, chain: Any) -> Any:
        is_file = isinstance(chain, str) and name in written
        return str(folder / "chains" / f"{written[name][0]}.yaml") if is_file else chain

    for stream in ("train", "eval"):
        section = plain.get(stream)
        chain = section.get("chain") if isinstance(section, dict) else None
        if isinstance(chain, str):
            yield f"{stream}.chain={json.dumps(own(stream, chain))}"
        elif stream == "train" and isinstance(chain, list) and all(_is_schedule_entry(each) for each in chain):
            uses = [
                {**each, "use": own(f"epoch {epoch}" if epoch else "train", each["use"])}
                for each in chain
                for epoch in (each["from_epoch"],)
            ]
            yield f"train.chain={json.dumps(uses)}"


def _is_schedule_entry(value: Any) -> bool:
    return isinstance(value, dict) and "use" in value and "from_epoch" in value


def _as_written(path: Path, chain: Chain) -> Recipe | None:
    """The recipe by the file's own comments; None if they can't be read."""
    text = path.read_text(errors="replace")
    decode = _DECODE_LINE.search(text)
    try:
        return Recipe(
            chain=chain,
            decode=msgspec.json.decode(decode[1], type=Decode) if decode else Decode(),
            plugins=dict(_PLUGIN_LINE.findall(text)),
        )
    except msgspec.MsgspecError:
        return None


def _outside_differences(problem: Problem, written: Recipe, present: Recipe) -> Iterator[Problem]:
    """What makes another recipe of an unchanged chain: decode settings, plug-ins."""
    if written.decode != present.decode:
        way_out = "give the job the decode settings it had"
        yield replace(problem, expected=f"decode {written.decode}", got=f"{present.decode}", way_out=way_out)
    for name in sorted(written.plugins.keys() | present.plugins.keys()):
        then, now = written.plugins.get(name, "no such plug-in"), present.plugins.get(name, "no such plug-in")
        if then != now:
            way_out = "restore the plug-in's source as it was: batches of this run were made with it"
            yield replace(problem, path=f"plug-in {name}", expected=f"sha256 {then}", got=now, way_out=way_out)


def num_unrecorded_steps(folder: Path, step: int) -> int:
    """How many of the first `step` steps have no line in metrics.jsonl; nothing can check those any more."""
    seen = bytearray(step)
    for line in iter_lines(folder / "metrics.jsonl"):
        if 0 <= line.get("step", -1) < step:
            seen[line["step"]] = 1
    return step - sum(seen)


def has_had_checkpoints(folder: Path) -> bool:
    """True if the journal says that one was written, at any time."""
    return any(line.get("action") == "checkpointed" for line in iter_lines(folder / "journal.jsonl"))
