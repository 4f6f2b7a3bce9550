"""What a run's folder tells of the run, gathered for its page.

In:  a run's folder, being written or not, of this version or an earlier one.
Out: `History`: where it stands, its curves, layers, verdicts, recipes, events, files; what is missing is empty.
Reads only; never locks, never opens a tensor.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.bad_count import BadCount
from pipeline.config import parse_yaml
from pipeline.errors import ConfigError, Problem
from pipeline.json_lines import iter_lines
from pipeline.located import ProblemList
from pipeline.run_history import read_changes
from pipeline.run_lock import live_run
from pipeline.timeline import TimelineEntry
from trainer.report_layers import LayerHistory, read_layers
from trainer.report_series import Extent, StepSeries, number, read_extent, read_series

MAX_EVENTS = 100
"""Newest events that are listed one by one; all are counted."""
MAX_CHANGES = 2000
"""Newest changes of verdicts that are kept: many times what the budget of alarms lets through."""
SEVERITIES = ("CRITICAL", "WARN", "INFO")

_LISTED = (
    "training_started",
    "resumed",
    "went_back",
    "stopped",
    "training_ended",
    "failed",
    "checkpoint_damaged",
    "checkpoint_incomplete",
    "environment_differs",
    "service_trouble",
    "stall",
)
_LIFE = ("training_started", "resumed", "training_ended", "stopped", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The model on the held-out source, after so many steps."""

    step: int
    loss: float
    """Infinity if it was not finite."""
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeUse:
    """From a step on, batches were made so."""

    entry: TimelineEntry
    why: str
    num_steps: int
    """Steps done under it so far."""


@dataclass(slots=True, kw_only=True)
class Events:
    """journal.jsonl, read as a stream."""

    num_of: Counter[str] = field(default_factory=Counter)
    bad: BadCount = field(default_factory=BadCount)
    listed: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    life: dict[str, Any] = field(default_factory=dict)
    """The newest line that says how the run goes: started, stopped, failed or ended."""
    started: dict[str, Any] = field(default_factory=dict)
    """The newest start: its config, device and settings are those in force."""
    first_s: float | None = None
    last_s: float | None = None
    took_s: float = 0.0
    """From first to last line of each attempt, summed."""
    evaluated: dict[int, Evaluated] = field(default_factory=dict)
    verdicts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Number -> the verdict as it was last written."""
    changes: dict[tuple[int, str, int], None] = field(default_factory=dict)
    """(step, change, verdict's number), each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run, as far as its folder has it."""

    folder: Path
    name: str
    is_live: bool
    """A process holds its lock."""
    series: StepSeries | None
    """None: no step was recorded."""
    layers: LayerHistory | None
    """None: no layer was measured."""
    events: Events
    health: Mapping[str, Any]
    """health.json; empty if there is none."""
    verdicts: tuple[Mapping[str, Any], ...]
    """By number, as health.json has them, of others as the journal does."""
    recipes: tuple[RecipeUse, ...]
    state: Mapping[str, Any]
    """state.json of the newest checkpoint that can be read; empty if there is none."""
    job_text: str
    chain_texts: Mapping[str, str]
    """Recipe -> chains/<recipe>.yaml, of the recipes in use."""
    branches: tuple[str, ...]
    """Folders with steps that were set aside."""

    @property
    def num_steps_done(self) -> int:
        return self.series.extent.last_step + 1 if self.series else 0

    @property
    def chain_order(self) -> tuple[str, ...]:
        """Each recipe of the timeline once, in the order of first use."""
        return tuple(dict.fromkeys(use.entry.recipe for use in self.recipes))


def read_history(folder: Path) -> History:
    """All that the folder has; ConfigError if it is none of a run, RunFailed if a file of it is damaged."""
    job_text = _job_text(folder)
    metrics = folder / "metrics.jsonl"
    extent = read_extent(metrics)
    series = read_series(metrics, extent) if extent else None
    events = _read_events(folder / "journal.jsonl", extent)
    health = _read_json(folder / "health.json")
    verdicts = _verdicts(health, events)
    recipes = _recipes(folder, extent)
    return History(
        folder=folder,
        name=_job_name(folder, job_text),
        is_live=_is_live(folder),
        series=series,
        layers=read_layers(folder / "layers.jsonl", extent) if extent else None,
        events=events,
        health=health,
        verdicts=verdicts,
        recipes=recipes,
        state=_newest_state(folder),
        job_text=job_text,
        chain_texts=_chain_texts(folder, recipes),
        branches=tuple(sorted(path.name for path in folder.glob("branch-*") if path.is_dir())),
    )


def _verdicts(health: Mapping[str, Any], events: Events) -> tuple[Mapping[str, Any], ...]:
    """health.json's, and before them those that it has dropped, which were resolved long ago."""
    journaled, written = [events.verdicts[each] for each in sorted(events.verdicts)], health.get("verdicts")
    if not isinstance(written, list):
        return tuple(each for each in journaled if "id" in each)
    kept = [each for each in written if isinstance(each, dict) and "id" in each]
    if not health.get("num_dropped"):
        return tuple(kept)
    numbers = {each.get("number") for each in kept}
    dropped = [each for each in journaled if each["number"] not in numbers and each.get("resolved_at") is not None]
    return tuple(sorted([*dropped, *kept], key=lambda each: int(each.get("number", 0))))


def worst_first(verdicts: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Open ones first, then the worst, then the earliest: what a page shows where it can't show all."""
    order = {name: place for place, name in enumerate(SEVERITIES)}
    return sorted(
        verdicts,
        key=lambda each: (
            each.get("resolved_at") is not None,
            order.get(str(each.get("severity", "INFO")), len(order)),
            each.get("first_step", 0),
        ),
    )


def _job_text(folder: Path) -> str:
    path = folder / "job.yaml"
    if path.is_file():
        return path.read_text(errors="replace")
    raise ConfigError(
        Problem(
            file=str(folder),
            line=0,
            path="",
            expected="the folder of a run",
            got="no job.yaml in it" if folder.is_dir() else "no such folder",
            way_out="name the folder of a run, such as runs/NAME",
        )
    )


def _job_name(folder: Path, text: str) -> str:
    """As the job file says; the folder's for a file that can't be read any more."""
    try:
        plain = parse_yaml(text.encode(), "job.yaml", ProblemList()).plain()
    except ConfigError:
        plain = None
    name = plain.get("name") if isinstance(plain, dict) else None
    return str(name or folder.resolve().name)


def _is_live(folder: Path) -> bool:
    try:
        live_run(folder)
    except ConfigError:
        return False
    return True


def _read_events(path: Path, extent: Extent | None) -> Events:
    events = Events()
    began_s: dict[int, float] = {}
    ended_s: dict[int, float] = {}
    for line in iter_lines(path):
        action, attempt, time_s = str(line.get("action")), int(line["attempt"]), line.get("time_s")
        events.num_of[action] += 1
        events.bad.meet_event(line)
        if isinstance(time_s, int | float):
            began_s.setdefault(attempt, time_s)
            ended_s[attempt] = time_s
        if action in _LISTED:
            events.listed.append(line)
        if action in _LIFE:
            events.life = line
        if action == "training_started":
            events.started = line
        elif action == "evaluated" and _is_within(extent, attempt, line["step"] - 1):
            # Of the state after step - 1: a resume from that very step does not evaluate again.
            loss, accuracy = number(line.get("loss")), number(line.get("accuracy"))
            events.evaluated[line["step"]] = Evaluated(step=line["step"], loss=loss, accuracy=accuracy)
        elif action == "verdict" and _is_within(extent, attempt, line["step"]):
            _add_verdict(events, line)
    events.first_s = min(began_s.values(), default=None)
    events.last_s = max(ended_s.values(), default=None)
    events.took_s = sum(ended_s[attempt] - began_s[attempt] for attempt in began_s)
    return events


def _is_within(extent: Extent | None, attempt: int, step: int) -> bool:
    """False for what a later attempt did again."""
    return extent is None or extent.counts(attempt, step)


def _add_verdict(events: Events, line: Mapping[str, Any]) -> None:
    verdict = line.get("verdict")
    if not isinstance(verdict, dict) or "number" not in verdict:
        return
    events.verdicts[verdict["number"]] = verdict
    events.changes[(line["step"], str(line.get("change")), verdict["number"])] = None
    if len(events.changes) > MAX_CHANGES:
        del events.changes[next(iter(events.changes))]


def _recipes(folder: Path, extent: Extent | None) -> tuple[RecipeUse, ...]:
    """The timeline as it stands, with the reason of each entry and how many steps were done under it."""
    entries: list[tuple[TimelineEntry, str]] = []
    for change in read_changes(folder):
        kept = [(entry, why) for entry, why in entries if entry.step < change.from_step]
        entries = kept + [(entry, change.why) for entry in change.entries]
    done = extent.last_step + 1 if extent else 0
    ends = [*(entry.step for entry, _ in entries), done][1:]
    return tuple(
        RecipeUse(entry=entry, why=why, num_steps=max(0, min(end, done) - entry.step))
        for (entry, why), end in zip(entries, ends, strict=True)
    )


def _chain_texts(folder: Path, recipes: tuple[RecipeUse, ...]) -> dict[str, str]:
    texts = {}
    for digest in dict.fromkeys(use.entry.recipe for use in recipes):
        path = folder / "chains" / f"{digest}.yaml"
        if path.is_file():
            texts[digest] = path.read_text(errors="replace")
    return texts


def _newest_state(folder: Path) -> dict[str, Any]:
    for path in sorted(folder.glob("checkpoints/step-*/state.json"), reverse=True):
        if state := _read_json(path):
            return state
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    """Empty for a file that is not there, can't be read or holds no object."""
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return content if isinstance(content, dict) else {}
