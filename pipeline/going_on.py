"""The command that goes on with a run, as whoever began it would type it.

In:  a run's folder, whose journal has what was asked for.
Out: one line for a shell.
With the user's own job file, where that still stands: plug-ins and factories lie beside it.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from pipeline.json_lines import iter_lines
from pipeline.run_folder import RunFolder

_ACTION = "asked_for"


def going_on_with(
    job_file: Path, folder: Path, overrides: Sequence[str], connect: str | None, more: Sequence[str] = ()
) -> str:
    """The command, from its parts."""
    sets = [part for each in overrides for part in ("--set", each)]
    connected = ["--connect", connect] if connect else []
    run = ["--run-dir", str(folder), "--resume"]
    return shlex.join(["headrace", "train", str(job_file), *run, *sets, *connected, *more])


def note_asked_for(folder: RunFolder, job_file: Path, overrides: Sequence[str], connect: str | None) -> None:
    """The journal says how this attempt was begun."""
    folder.append_event(_ACTION, job=str(job_file.absolute()), overrides=list(overrides), connect=connect or "")


def resume_command(folder: Path, more: Sequence[str] = ()) -> str:
    """Goes on with the run of a folder; with its own copy of the job where the user's is gone."""
    lines = (line for line in iter_lines(folder / "journal.jsonl") if line.get("action") == _ACTION)
    (asked,) = deque(lines, maxlen=1) or ({},)
    job_file, overrides = Path(asked.get("job") or folder / "job.yaml"), asked.get("overrides", [])
    if not job_file.is_file():
        job_file, overrides = folder / "job.yaml", []  # it has the overrides already
    return going_on_with(job_file, folder, overrides, asked.get("connect"), more)
