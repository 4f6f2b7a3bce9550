"""Where a run is gone on from: the newest good checkpoint, and all that the folder must agree on for it.

In:  a run's folder (locked by the caller), the job it is to go on with.
Out: a `Resumption`; or a ConfigError or RunFailed that says which file is wrong, and how.
Never writes, never imports torch: what is in a checkpoint's tensors is `trainer/checkpoint.py`'s matter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from pipeline.bad_count import read_bad_counts
from pipeline.branch import num_kept
from pipeline.checkpoint_folder import Damaged, checkpoint_name, checkpoint_steps, read_state
from pipeline.config_job import Job
from pipeline.errors import ConfigError, Problem, RunFailed
from pipeline.json_lines import iter_lines
from pipeline.recipe import Recipe
from pipeline.run_history import (
    Recorded,
    entries_of,
    load_recipe,
    named_alike,
    read_changes,
    read_quarantine,
    read_recorded,
)
from pipeline.stream_start import StreamStart
from pipeline.timeline import TimelineChange, TimelineEntry

_RESTORE = "restore the file from a copy; or go back to a checkpoint that it still fits: --from STEP --branch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """Where an attempt begins."""

    step: int
    """Steps that are done."""
    checkpoint: Path | None
    """None: from the beginning of the run, before its first step."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's state.json."""
    damaged: tuple[tuple[int, str], ...] = ()
    """Newer checkpoints that were passed over: step and what is wrong with each."""
    recorded: Mapping[int, Recorded] = field(default_factory=dict)
    """Steps from here on that were done once already, and what their batches were."""
    last_recorded_step: int = -1
    """The highest of all attempts; no batch above it was ever trained on."""
    is_as_it_was: bool = True
    """False: a change of the job was accepted that would have been refused."""

    @property
    def worker_fingerprint(self) -> str:
        """Of the workers of the attempt that wrote the checkpoint; "" if none is known."""
        return str(self.state.get("worker_fingerprint", ""))

    @property
    def free_from_step(self) -> int:
        """The first step of which nobody has seen a batch."""
        return max(self.step, self.last_recorded_step + 1, *(step for step, _ in self.damaged), 0)


def choose_checkpoint(folder: Path, from_step: int | None = None) -> Resumption:
    """The newest checkpoint that is as it was written, or the one of `from_step`; step 0 is the run's beginning."""
    checkpoints = folder / "checkpoints"
    steps = checkpoint_steps(checkpoints)
    if from_step is not None:
        return _chosen(checkpoints, from_step, steps)
    damaged: list[tuple[int, str]] = []
    for step in reversed(steps):
        try:
            state = _read(checkpoints / checkpoint_name(step), step)
        except Damaged as error:
            damaged.append((step, str(error)))
            continue
        return _resumption(folder, step, checkpoints / checkpoint_name(step), state, damaged)
    if damaged:
        raise ConfigError(
            Problem(
                file=str(checkpoints / checkpoint_name(step)),
                line=0,
                path="",
                expected="a checkpoint as it was written",
                got=why,
                way_out=f"restore one from a copy; or move them out of {checkpoints}: --resume does all again then, "
                "under the same timeline",
            )
            for step, why in damaged
        )
    return _resumption(folder, 0, None, {}, [])


def require_one_timeline(
    folder: Path, resumption: Resumption, *, is_going_back: bool = False
) -> tuple[TimelineEntry, ...]:
    """The run's timeline; RunFailed unless timeline.jsonl, the checkpoint, the metrics and the journal agree on it.

    `is_going_back`: what came after the checkpoint will be moved away and does not count.
    """
    path = folder / "timeline.jsonl"
    state = resumption.state
    changes = read_changes(folder)[: num_kept(state)["timeline"] if is_going_back else None]
    num_written = _num_journaled(folder, "timeline_changed", num_kept(state)["journal"] if is_going_back else None)
    num_at_checkpoint = state.get("timeline_lines", 0)
    if len(changes) < max(num_written, num_at_checkpoint):
        raise _other_timeline(
            path, f"{max(num_written, num_at_checkpoint)} lines", f"{len(changes)}: lines are missing at its end"
        )
    entries = entries_of(changes)
    if state:
        at_checkpoint = named_alike(msgspec.convert(state["timeline"], tuple[TimelineEntry, ...]))
        then = entries_of(changes[:num_at_checkpoint])
        if then != at_checkpoint:
            where = f"as in checkpoints/{checkpoint_name(resumption.step)}/state.json"
            raise _other_timeline(path, f"{_listed(at_checkpoint)}, {where}", _listed(then))
        _require_no_rewriting(path, changes[num_at_checkpoint:], resumption.step)
    for step, recorded in resumption.recorded.items():
        recipe = _entry_at(entries, step).recipe if entries else "none"
        if recipe != recorded.recipe:
            expected = f"recipe {recorded.recipe} at step {step}, as in metrics.jsonl"
            raise _other_timeline(path, expected, f"recipe {recipe} there")
    return entries


def require_whole_quarantine(folder: Path, resumption: Resumption, *, is_going_back: bool = False) -> None:
    """RunFailed if quarantine.jsonl has fewer lines than the checkpoint or the journal says that it had."""
    path, state = folder / "quarantine.jsonl", resumption.state
    num_written = max(
        _num_journaled(folder, "quarantined", num_kept(state)["journal"] if is_going_back else None),
        num_kept(state)["quarantine"],
    )
    num_found = sum(1 for _ in iter_lines(path, is_synced=True))
    if num_found < num_written:
        raise RunFailed(
            f"{path}: samples that this run has substituted are not in it\n"
            f"  expected: {num_written} lines\n"
            f"  got:      {num_found}: lines are missing at its end\n"
            f"  to go on: {_RESTORE}"
        )


def stream_start(folder: Path, job: Job, resumption: Resumption, entries: tuple[TimelineEntry, ...]) -> StreamStart:
    """Where the train stream goes on; ConfigError if a recipe of the timeline can't be read as it was written."""
    bad, told = read_bad_counts(folder, resumption.state.get("position", 0))
    return StreamStart(
        head_step=resumption.step,
        entries=entries,
        recipes=recipes_of(folder, job, entries),
        quarantined=read_quarantine(folder),
        # Absent in checkpoints of older versions: their allowance starts again.
        num_delivered=resumption.state.get("num_samples", 0),
        bad=bad,
        told=told,
        fingerprint=resumption.worker_fingerprint,
        free_from_step=resumption.free_from_step,
    )


def recipes_of(folder: Path, job: Job, entries: Sequence[TimelineEntry]) -> dict[str, Recipe]:
    """Every recipe that the entries name, by digest, from the run's own files."""
    return {digest: load_recipe(folder, digest, job) for digest in dict.fromkeys(entry.recipe for entry in entries)}


def require_same_sources(
    folder: Path, resumption: Resumption, job_file: str, fingerprints: Mapping[str, str], classes: Sequence[str]
) -> None:
    """ConfigError unless the sources and classes are those that the run was trained on so far."""
    known = resumption.state or _started(folder)
    if not known:
        return  # nothing was ever delivered
    problems = []
    for name, fingerprint in known["source_fingerprints"].items():
        if fingerprints.get(name, fingerprint) != fingerprint:
            problems.append(
                Problem(
                    file=job_file,
                    line=0,
                    path=f"sources.{name}",
                    expected=f"the source of fingerprint {fingerprint}, on which the run was trained so far",
                    got=f"fingerprint {fingerprints[name]}: samples were added, removed, renamed or changed",
                    way_out="put the source back as it was, or begin a new run with --run-dir",
                )
            )
    if list(known["classes"]) != list(classes):
        problems.append(
            Problem(
                file=job_file,
                line=0,
                path="sources: classes",
                expected=f"{', '.join(known['classes'])}, as the run has had them so far",
                got=", ".join(classes),
                way_out="put the source back as it was, or begin a new run with --run-dir",
            )
        )
    if problems:
        raise ConfigError(problems)


def factory_sha256(folder: Path, resumption: Resumption, *, is_going_back: bool = False) -> str:
    """Of the source of the model's factory, as the run was last trained with it; "" if nothing tells."""
    num_lines = num_kept(resumption.state)["journal"] if is_going_back else None
    last = ""
    for event in islice(iter_lines(folder / "journal.jsonl"), num_lines):
        if event["action"] == "training_started":
            last = event.get("factory_sha256", "")
    return str(last or resumption.state.get("model", {}).get("factory_sha256", ""))


def _chosen(checkpoints: Path, step: int, steps: Sequence[int]) -> Resumption:
    if step == 0:
        return _resumption(checkpoints.parent, 0, None, {}, [])
    path = checkpoints / checkpoint_name(step)
    try:
        if step not in steps:
            listed = ", ".join(map(str, steps)) or "none"
            raise Damaged(f"no checkpoint of that step; there are: {listed}")
        state = _read(path, step)
    except Damaged as error:
        raise ConfigError(
            Problem(
                file=str(checkpoints),
                line=0,
                path=f"--from {step}",
                expected="the step of a good checkpoint, or 0 for the run's beginning",
                got=str(error),
            )
        ) from error
    return _resumption(checkpoints.parent, step, path, state, [])


def _resumption(
    folder: Path, step: int, checkpoint: Path | None, state: Mapping[str, Any], damaged: list[tuple[int, str]]
) -> Resumption:
    recorded = read_recorded(folder, step)
    return Resumption(
        step=step,
        checkpoint=checkpoint,
        state=state,
        damaged=tuple(damaged),
        recorded=recorded,
        last_recorded_step=max(recorded, default=-1),
    )


def _read(path: Path, step: int) -> dict[str, Any]:
    state = read_state(path)
    if state.get("step") != step:
        raise Damaged(f"state.json: it is of step {state.get('step')}, in the folder of step {step}")
    return state


def _num_journaled(folder: Path, action: str, num_lines: int | None) -> int:
    """Lines that another file had, as the first lines of the journal (None: all of it) counted them."""
    events = islice(iter_lines(folder / "journal.jsonl"), num_lines)
    return max((event["line"] for event in events if event["action"] == action), default=0)


def _started(folder: Path) -> Mapping[str, Any]:
    """The first attempt's `training_started` event: what it was trained on before there was a checkpoint."""
    events = iter_lines(folder / "journal.jsonl")
    return next((event for event in events if event["action"] == "training_started"), {})


def _require_no_rewriting(path: Path, later: Sequence[TimelineChange], step: int) -> None:
    """Changes after a checkpoint begin at or after its step: what lay before it was trained on."""
    for change in later:
        if change.from_step < step:
            raise _other_timeline(
                path, f"changes from step {step} on after the checkpoint of that step", f"one from {change.from_step}"
            )


def _entry_at(entries: Sequence[TimelineEntry], step: int) -> TimelineEntry:
    return entries[max(0, bisect_right(entries, step, key=lambda entry: entry.step) - 1)]


def _listed(entries: Sequence[TimelineEntry]) -> str:
    return "; ".join(f"step {entry.step}: recipe {entry.recipe}" for entry in entries) or "nothing"


def _other_timeline(path: Path, expected: str, got: str) -> RunFailed:
    return RunFailed(
        f"{path}: it is not the timeline that this run was trained under\n"
        f"  expected: {expected}\n"
        f"  got:      {got}\n"
        f"  to go on: {_RESTORE}"
    )
