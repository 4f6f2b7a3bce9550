"""What `headrace health` prints of a run's health.json, and the table of detectors.

In:  a run's folder.
Out: lines of text; whether a critical verdict is open.
Never writes, never asks the run itself: the file is as new as its last line on the terminal, or its last verdict.
"""

from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from headrace.status_screen import duration
from pipeline.errors import ConfigError, Problem
from pipeline.going_on import resume_command
from pipeline.run_end import read_run_end
from pipeline.run_folder import live_run
from trainer.health.detectors import DETECTORS
from trainer.health.records import Severity, Verdict, open_verdicts
from trainer.healthy_checkpoint import newest_healthy

_WIDTH = 100
_MAX_BEFORE = 5
"""Verdicts that came before the open ones: the first are the nearest to the cause; chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """health.json, read."""

    step: int
    time_s: float
    verdicts: tuple[Verdict, ...]
    num_unannounced: int
    num_dropped: int
    """Resolved verdicts that only the journal has."""
    summary: str


def read_health(run: Path) -> Health:
    """ConfigError if the folder is no run's, or nothing was written of its health."""
    path = run / "health.json"
    try:
        content: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        return Health(
            step=content["step"],
            time_s=content["time_s"],
            verdicts=tuple(Verdict.from_dict(verdict) for verdict in content["verdicts"]),
            num_unannounced=content["num_unannounced"],
            num_dropped=content.get("num_dropped", 0),
            summary=content["summary"],
        )
    except OSError as error:
        raise _nothing(run, path, error) from error
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            Problem(
                file=str(path),
                line=0,
                path="",
                expected="verdicts as this version writes them",
                got=f"{type(error).__name__}: {error}",
                way_out="it was edited, or written by another version; a run that goes on writes it anew",
            )
        ) from error


def is_critical_open(health: Health) -> bool:
    return any(one.severity is Severity.CRITICAL and one.resolved_at is None for one in health.verdicts)


def health_lines(run: Path, health: Health, *, everything: bool) -> list[str]:
    """What came before, and open verdicts, the worst first, with evidence and fix; then where to go back to."""
    open_ones = [one for one in health.verdicts if one.resolved_at is None]
    shown = [one for one in open_ones if everything or one.severity > Severity.INFO]
    shown.sort(key=lambda one: (-one.severity, one.number))
    behind = [one for one in health.verdicts if one.resolved_at is not None]
    is_live = _is_going_on(run)
    state, ago = "going on" if is_live else "not going on", duration(time.time() - health.time_s)
    lines = [f"{run}: step {health.step}, {state}; as of {ago} ago"]
    lines += [""] if is_live else [*textwrap.wrap(read_run_end(run).sentence, _WIDTH, break_long_words=False), ""]
    before = _came_before(health)
    if before:
        lines.append("What came before, resolved perhaps only because training died of it; the cause may be here:")
        for verdict in before:
            lines += [str(verdict).splitlines()[0], *_wrapped("fix", verdict.fix)]
        lines += ["", "Open now:"]
    for verdict in shown:
        lines += [*_verdict_lines(run, verdict), ""]
    if not shown:
        lines += ["no verdict is open: nothing found that needs you", ""]
    if everything:
        for verdict in behind:
            lines += [f"resolved at step {verdict.resolved_at}:", *_verdict_lines(run, verdict), ""]
    elif len(behind) > len(before) or len(shown) < len(open_ones):
        num_behind, num_info = len(behind) - len(before), len(open_ones) - len(shown)
        lines += [f"not shown: {num_behind} resolved, {num_info} of severity INFO (--all shows them)"]
    if health.num_dropped:
        lines.append(f"{health.num_dropped} more were resolved longer ago: {run / 'journal.jsonl'} has them")
    if health.num_unannounced:
        lines.append(f"{health.num_unannounced} verdicts were more than the budget of alarms, and not told live")
    if is_critical_open(health):
        lines += _way_back(run)
    return [*lines, health.summary]


def detector_lines() -> list[str]:
    """Every detector with its thresholds, their reasons and what resolves it."""
    lines: list[str] = []
    for name, detector in DETECTORS.items():
        lines += [f"{name}: {detector.says}", *_wrapped("source", detector.source)]
        for threshold, value in detector.thresholds.items():
            text = f"{value.value:g} {value.unit} ({value.reason})"
            lines += _wrapped(f"{name}.{threshold}", text)
        lines += [*_wrapped("resolved by", detector.clears), ""]
    return [*lines, "In a job:  health: {thresholds: {CLIP.warn_rate: 0.7}, off: [INPUT]}"]


def _came_before(health: Health) -> list[Verdict]:
    """Alarms that opened before the first one that is still open, and are resolved, in their order: a net that has died
    moves no more, so the verdict that named the rate is over, and only its consequences are open. On its way out a
    critical one may have been lowered; where there are many, those that ended as critical are shown."""
    first = min((one.number for one in open_verdicts(health.verdicts)), default=0)
    alarms = (one for one in health.verdicts if one.resolved_at is not None and one.severity >= Severity.WARN)
    before = sorted((one for one in alarms if one.number < first), key=lambda one: (-one.severity, one.number))
    return sorted(before[:_MAX_BEFORE], key=lambda one: one.number)


def _verdict_lines(run: Path, verdict: Verdict) -> Iterator[str]:
    first, *rest = str(verdict).splitlines()
    yield first
    for line in rest:
        name, _, text = line.strip().partition(":")
        yield from _wrapped(name, text.strip())
    yield from _wrapped("confidence", f"{verdict.confidence:.2f}, from {verdict.num_hits} samples that show it")
    for trace in verdict.traces:
        yield from _wrapped("trace", _trace_text(trace))
        step = str(trace.get("step"))  # the command on one line, however long: it is there to be copied
        command = shlex.join(["headrace", "replay", str(run), "--step", step, "--out", f"step-{step}.png"])
        yield f"    to see its samples: {command}"


def _trace_text(trace: Any) -> str:
    batch = trace.get("batch")
    if not isinstance(batch, dict) or not isinstance(batch.get("stop"), int):
        return f"step {trace.get('step')}: " + ("its batch was not noted" if batch is None else str(batch))
    where = f"step {trace.get('step')}: positions {batch.get('start')} to {batch['stop'] - 1} of epoch "
    where += f"{batch.get('epoch')}, recipe {batch.get('recipe')}"
    worst = [f"sample {one['id']} (row {one['index']}, loss {one['loss']})" for one in trace.get("worst_samples", [])]
    return where + (f"; largest losses: {', '.join(worst)}" if worst else "")


def _way_back(run: Path) -> list[str]:
    """By what stands in the folder: it may have been copied, thinned out, or gone back already."""
    step = newest_healthy(run / "checkpoints")
    if step is None:
        return ["there is no healthy checkpoint of this run: begin again, with the fix"]
    command = resume_command(run, ["--from", str(step), "--branch"])
    return [f"newest healthy checkpoint: step {step}", f"to go back to it: {command}"]


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"  {name}: {text}", _WIDTH, subsequent_indent="    ", break_long_words=False)


def _is_going_on(run: Path) -> bool:
    try:
        return bool(live_run(run))
    except ConfigError:
        return False


def _nothing(run: Path, path: Path, error: OSError) -> ConfigError:
    got = f"{error.strerror}"
    way_out = "name the folder of a run, such as runs/NAME"
    if (run / "job.yaml").is_file():
        got = "a run of which nothing was watched yet"
        way_out = "wait for its first step; or set health.enabled in its job, if that is false"
        if not _is_going_on(run):
            got = f"a run of which nothing was watched: {read_run_end(run).sentence}"
            way_out = "`headrace status --run-dir` has the command that goes on with it"
    expected = "the health.json of a run"
    return ConfigError(Problem(file=str(path), line=0, path="", expected=expected, got=got, way_out=way_out))
