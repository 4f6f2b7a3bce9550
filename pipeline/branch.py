"""Going back: what came after a checkpoint moves to branch-K/, and the run goes on from there.

In:  a run's folder (locked, its files closed), a step, how many lines its files had then.
Out: branch-K/ with the later lines and checkpoints; the folder as it was at that step.
A kill in between loses nothing: lines are copied before they are cut off.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoint_folder import checkpoint_name, checkpoint_steps
from pipeline.durable import PARTIAL_PREFIX, sync_folder, write_whole
from pipeline.json_lines import iter_lines

IsEarlier = Callable[[int, Mapping[str, Any]], bool]


def has_later_records(folder: Path, step: int, state: Mapping[str, Any]) -> bool:
    """True if the run went on after this checkpoint."""
    if checkpoint_steps(folder / "checkpoints")[-1:] > [step]:
        return True
    return any(
        not is_earlier(number, record)
        for name, is_earlier in _tests(step, state).items()
        if name != "journal"  # the checkpoint's own event is later than it
        for number, record in enumerate(iter_lines(folder / f"{name}.jsonl"), start=1)
    )


def move_later(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """The branch's folder; `state` is the checkpoint's state.json, empty for step 0."""
    number = 1
    while (folder / f"branch-{number}").exists():
        number += 1
    branch = folder / f"branch-{number}"
    partial = folder / f"{PARTIAL_PREFIX}{branch.name}"
    (partial / "checkpoints").mkdir(parents=True)
    shutil.copy2(folder / "job.yaml", partial / "job.yaml")
    kept: dict[str, bytes] = {}
    for name, is_earlier in _tests(step, state).items():
        path = folder / f"{name}.jsonl"
        earlier, later = _split(path, is_earlier)
        write_whole(partial / path.name, later)
        kept[path.name] = earlier
    partial.rename(branch)
    sync_folder(folder)
    for later_step in checkpoint_steps(folder / "checkpoints"):
        if later_step > step:
            name = checkpoint_name(later_step)
            (folder / "checkpoints" / name).rename(branch / "checkpoints" / name)
    # Metrics first: they bind the timeline, which binds nothing.
    for file in ("metrics.jsonl", "journal.jsonl", "quarantine.jsonl", "timeline.jsonl"):
        write_whole(folder / file, kept[file])
    return branch


def _tests(step: int, state: Mapping[str, Any]) -> dict[str, IsEarlier]:
    """File -> whether a line (its number from 1, its record) was there at the checkpoint."""

    def among_first(num_lines: int) -> IsEarlier:
        return lambda number, record: number <= num_lines

    return {
        "timeline": among_first(state.get("timeline_lines", 1)),  # at step 0 the first line, which the run began with
        "quarantine": among_first(state.get("quarantine_lines", 0)),
        "journal": among_first(state.get("journal_lines", 0)),
        "metrics": lambda number, record: bool(record["step"] < step),
    }


def _split(path: Path, is_earlier: IsEarlier) -> tuple[bytes, bytes]:
    """The bytes of the earlier and of the later whole lines."""
    earlier, later = bytearray(), bytearray()
    if path.exists():
        with path.open("rb") as file:
            for number, (line, record) in enumerate(zip(file, iter_lines(path), strict=False), start=1):
                (earlier if is_earlier(number, record) else later).extend(line)
    return bytes(earlier), bytes(later)
