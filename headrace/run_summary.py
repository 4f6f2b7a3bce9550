"""What the files of a run say of it: for `headrace status` when nobody is there to ask.

In:  a run's folder.
Out: `RunSummary`, and its verdicts where a health.json is written.
Never writes, takes no lock: a run that is going on may be read too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

from headrace.status_screen import brief, duration, rows, shortened, timeline_rows
from pipeline.bad_count import BadCount, replaced_text
from pipeline.errors import ConfigError, Problem
from pipeline.going_on import resume_command
from pipeline.json_lines import iter_lines
from pipeline.run_end import MAX_REASON, LastEnd, RunEnd
from pipeline.run_history import read_timeline
from pipeline.timeline import TimelineEntry


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is not going on, as its folder tells it."""

    run_folder: str
    is_running: bool
    num_steps_done: int
    epoch: int
    position: int
    """First position of the last batch that was trained on."""
    attempts: int
    """How often the run was begun or resumed."""
    checkpoints: tuple[str, ...]
    last_event: dict[str, Any]
    """The last line of journal.jsonl."""
    ended: RunEnd | None
    """None for a run that is going on."""
    num_bad_samples: int
    """Different ones, in all attempts."""
    num_bad_met: int
    """How often they were met and replaced."""
    timeline: tuple[TimelineEntry, ...]
    verdicts: tuple[str, ...]
    to_go_on: str
    """The command that does; "" for a run that has come to its end."""


def read_run(folder: Path) -> RunSummary:
    """What stands in the folder; ConfigError if it is none of a run."""
    if not (folder / "job.yaml").exists():
        raise ConfigError(
            Problem(
                file=str(folder),
                line=0,
                path="",
                expected="a run's folder, with a job.yaml",
                got="no such folder" if not folder.is_dir() else "a folder without one",
                way_out="runs lie in runs/NAME unless --run-dir said otherwise",
            )
        )
    last_step = _last(iter_lines(folder / "metrics.jsonl"))
    events = _Events()
    last_event = _last(map(events.see, iter_lines(folder / "journal.jsonl")))
    return RunSummary(
        run_folder=str(folder),
        is_running=False,
        num_steps_done=last_step["step"] + 1 if last_step else 0,
        epoch=last_step.get("epoch", 0),
        position=last_step.get("position", 0),
        attempts=max(last_step.get("attempt", 0), last_event.get("attempt", 0)),
        checkpoints=tuple(sorted(path.name for path in folder.glob("checkpoints/step-*"))),
        last_event=last_event,
        ended=events.last.end,
        num_bad_samples=events.bad.num,
        num_bad_met=events.bad.num_met,
        timeline=read_timeline(folder),
        verdicts=read_verdicts(folder),
        to_go_on="" if events.last.end.how == "finished" else resume_command(folder),
    )


def read_verdicts(folder: Path) -> tuple[str, ...]:
    """A line for each open WARN or CRITICAL of health.json, newest last; none where there is no such file."""
    try:
        content = msgspec.json.decode((folder / "health.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return ()  # none yet, or it is being written
    verdicts = content.get("verdicts", []) if isinstance(content, dict) else []
    if not isinstance(verdicts, list) or not all(isinstance(one, dict) for one in verdicts):
        return ()
    open_ones = [one for one in verdicts if one.get("resolved_at") is None and one.get("severity") != "INFO"]
    return tuple(map(_verdict_text, open_ones))


def summary_lines(run: RunSummary) -> list[Text]:
    """The screen of a run that is not going on."""
    event = run.last_event
    last = "nothing was written down"
    if event:
        hidden = ("action", "time_s", "attempt", "crc", "reason")  # why it failed stands above
        details = {name: value for name, value in event.items() if name not in hidden}
        told = ", ".join(f"{name} {value}" for name, value in details.items() if isinstance(value, str | int | float))
        ago = duration(time.time() - float(event.get("time_s", 0.0)))
        last = f"{event.get('action')}{f' ({told})' if told else ''}, {ago} ago"
    checkpoint = f"checkpoints/{run.checkpoints[-1]}" if run.checkpoints else "none"
    bad = replaced_text(run.num_bad_samples, run.num_bad_met)
    progress = f"{run.num_steps_done} steps done"
    if run.num_steps_done:
        progress += f"   the last in epoch {run.epoch}, from position {run.position}"
    lines = rows(
        [
            ("run", f"{shortened(run.run_folder, 49)}   {'going on' if run.is_running else 'not going on'}"),
            *([("ended", brief(str(run.ended), 2 * MAX_REASON))] if run.ended and event else []),
            ("progress", progress),
            ("attempts", str(run.attempts)),
            ("last event", brief(last)),
            ("checkpoint", checkpoint),
            *timeline_rows(run.timeline, max(0, run.num_steps_done - 1)),
            *([("bad samples", bad)] if run.num_bad_samples else []),
            *(("verdict", brief(verdict)) for verdict in run.verdicts[-3:]),
        ]
    )
    # Whole, however long: it is there to be copied.
    return [*lines, Text(f"to go on: {run.to_go_on}")] if run.to_go_on and not run.is_running else lines


class _Events:
    """Counts on the way to the last line: a journal of days is read once, and never held."""

    def __init__(self) -> None:
        self.bad = BadCount()
        self.last = LastEnd()

    def see(self, event: dict[str, Any]) -> dict[str, Any]:
        self.bad.meet_event(event)
        self.last.see(event)
        return event


def _last(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return next(iter(deque(records, maxlen=1)), {})


def _verdict_text(verdict: dict[str, Any]) -> str:
    kind = f"/{verdict['kind']}" if verdict.get("kind") else ""
    name = f"{verdict.get('severity')} {verdict.get('id')}{kind}"
    return f"{name} since step {verdict.get('first_step')}: {verdict.get('fix')}"
