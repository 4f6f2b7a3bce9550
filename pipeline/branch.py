"""Going back: what came after a checkpoint moves to branch-K/, and the run goes on from there.

In:  a run's folder (locked, its files closed), a step, how many lines its files had then.
Out: branch-K/ with the later lines and checkpoints, and with the whole timeline; the folder as it was at that step.
A kill in between loses nothing and leaves no mixture: branch-K/kept/ has what the folder is to become, appears with
branch-K by one rename, and is gone once the folder is so. `finish` does what is left of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoint_folder import checkpoint_name, checkpoint_steps
from pipeline.durable import PARTIAL_PREFIX, sync_folder, write_whole
from pipeline.json_lines import iter_lines

IsEarlier = Callable[[int, Mapping[str, Any]], bool]

_KEPT = "kept"
_STEP = "step"


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


def num_kept(state: Mapping[str, Any]) -> dict[str, int]:
    """File -> how many of its lines were there at the checkpoint; `state` is its state.json, empty for step 0."""
    return {
        "timeline": state.get("timeline_lines", 1),  # at step 0 the first line, which the run began with
        "quarantine": state.get("quarantine_lines", 0),
        "journal": state.get("journal_lines", 0),
    }


def move_later(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """The branch's folder; `state` is the checkpoint's state.json, empty for step 0."""
    number = 1
    while (folder / f"branch-{number}").exists():
        number += 1
    branch = folder / f"branch-{number}"
    partial = folder / f"{PARTIAL_PREFIX}{branch.name}"
    (partial / _KEPT).mkdir(parents=True)
    (partial / "checkpoints").mkdir()
    for name, is_earlier in _tests(step, state).items():
        file = f"{name}.jsonl"
        earlier, later = _split(folder / file, is_earlier)
        write_whole(partial / _KEPT / file, earlier)
        # The branch's timeline is whole: `--timeline` takes it, as that of any run.
        write_whole(partial / file, earlier + later if name == "timeline" else later)
    write_whole(partial / _KEPT / _STEP, f"{step}\n".encode())
    write_whole(partial / "job.yaml", (folder / "job.yaml").read_bytes())
    partial.rename(branch)
    sync_folder(folder)
    finish(folder)
    return branch


def is_cut_short(folder: Path) -> bool:
    """True if a kill has left `finish` something to do."""
    return any(folder.glob(f"branch-*/{_KEPT}"))


def finish(folder: Path) -> list[tuple[int, str]]:
    """Moves what `move_later` had decided to move; step and name of each branch that a kill had left without it."""
    finished = []
    for kept in sorted(folder.glob(f"branch-*/{_KEPT}")):
        branch = kept.parent
        if (kept / _STEP).exists():
            step = int((kept / _STEP).read_text())
            _move_checkpoints(folder / "checkpoints", branch / "checkpoints", step)
            for file in kept.glob("*.jsonl"):
                file.rename(folder / file.name)
            sync_folder(folder)
            (kept / _STEP).unlink()
            finished.append((step, branch.name))
        kept.rmdir()
    return finished


def _move_checkpoints(checkpoints: Path, moved: Path, step: int) -> None:
    for later_step in checkpoint_steps(checkpoints):
        if later_step > step:
            name = checkpoint_name(later_step)
            (checkpoints / name).rename(moved / name)
    sync_folder(moved)
    sync_folder(checkpoints)


def _tests(step: int, state: Mapping[str, Any]) -> dict[str, IsEarlier]:
    """File -> whether a line (its number from 1, its record) was there at the checkpoint."""

    def among_first(num_lines: int) -> IsEarlier:
        return lambda number, record: number <= num_lines

    return {
        **{name: among_first(num_lines) for name, num_lines in num_kept(state).items()},
        **{name: lambda number, record: bool(record["step"] < step) for name in ("metrics", "layers")},
    }


def _split(path: Path, is_earlier: IsEarlier) -> tuple[bytes, bytes]:
    """The bytes of the earlier and of the later whole lines."""
    earlier, later = bytearray(), bytearray()
    if path.exists():
        with path.open("rb") as file:
            for number, (line, record) in enumerate(zip(file, iter_lines(path), strict=False), start=1):
                (earlier if is_earlier(number, record) else later).extend(line)
    return bytes(earlier), bytes(later)
