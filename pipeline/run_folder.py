"""A run's folder: lock, job, chains, timeline, quarantine, journal, metrics, layers, health, checkpoints.

In:  records of a running job, and functions that write a checkpoint's files.
Out: the files of DESIGN.md section 5, readable after a kill at any moment.
Never written by two processes at a time, never imports torch.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from pipeline import branch, checkpoint_folder
from pipeline.config import dump_chain
from pipeline.durable import PARTIAL_PREFIX, remove_partial, write_whole
from pipeline.errors import ConfigError, HeadraceError, Problem
from pipeline.json_lines import JsonLines, write_failure
from pipeline.recipe import Recipe
from pipeline.run_history import entries_of, read_changes, recipe_text
from pipeline.run_lock import LOCK_NAME, RunLock
from pipeline.run_lock import LiveRun as LiveRun
from pipeline.run_lock import live_run as live_run
from pipeline.timeline import TimelineChange, TimelineEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far a run's records reached at one moment: a checkpoint's place among them."""

    timeline: tuple[TimelineEntry, ...]
    timeline_lines: int
    quarantine_lines: int
    journal_lines: int


class RunFolder:
    """The one writer of a run's folder; holds the folder's lock until `close`."""

    def __init__(self, path: Path, lock: RunLock) -> None:
        """Use `RunFolder.create` or `RunFolder.resume`."""
        self.path = path
        self.attempt = 1
        """1 for a new run, one more for each time that it was resumed."""
        self.tidied: tuple[str, ...] = ()
        """For the user: what a crash had left half done, and what became of it."""
        self.num_steps_done = 0
        """Up to the last line of metrics that was appended; 0 before the first."""
        self._lock = lock
        self._timeline_lock = threading.Lock()
        self._open_lines()

    @classmethod
    def create(
        cls, path: Path, job_text: str, recipes: Iterable[Recipe] = (), first: TimelineChange | None = None
    ) -> RunFolder:
        """A new run in a folder that is absent or empty; `job_text` becomes its job.yaml.

        recipes, first: what else must be there before the run can be resumed. A folder that was killed while it was
        created counts as empty. ConfigError for a folder with anything in it: naming the process that holds it, if one
        does.
        """
        path = path.absolute()
        made = [each for each in (path, *path.parents) if not os.path.lexists(each)]  # if all goes well
        try:
            if path.is_dir() and any(path.iterdir()) and not (path / LOCK_NAME).exists():
                raise _not_a_new_folder(path, "a folder with other files in it")
            path.mkdir(parents=True, exist_ok=True)
            lock = RunLock(path)
        except OSError as error:
            for each in made:
                with suppress(OSError):
                    each.rmdir()
            raise _not_to_be_made(path, error) from error
        try:
            if not _is_hardly_begun(path):
                way_out = "continue it with --resume, name another with --run-dir, or move this one away"
                raise _not_a_new_folder(path, "the folder of an earlier run", way_out)
            return cls._created(path, lock, job_text, recipes, first)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _created(
        cls, path: Path, lock: RunLock, job_text: str, recipes: Iterable[Recipe], first: TimelineChange | None
    ) -> RunFolder:
        for each in [each for each in path.iterdir() if each.name != LOCK_NAME]:
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        (path / "chains").mkdir()
        (path / "checkpoints").mkdir()
        folder = cls(path, lock)
        try:
            for recipe in recipes:
                folder.write_recipe(recipe)
            if first is not None:
                folder.append_timeline(first)
            # Last: it makes the folder one that can be resumed, and that must not be another run than was asked for.
            write_whole(path / "job.yaml", job_text.encode())
        except BaseException:
            folder.discard_if_unused()
            folder._close_lines()
            raise
        return folder

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """The folder of an earlier run, tidied of what a crash left half written, to be written on.

        ConfigError if it is none, if it can't be written, or if a process writes it; RunFailed if a file of it is
        damaged in the middle.
        """
        path = path.absolute()
        try:
            if not (path / "job.yaml").is_file():
                raise _not_a_run(path)
            lock = RunLock(path)
            try:
                return cls._tidied(path, lock)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise _not_to_be_written(path, error) from error

    @classmethod
    def _tidied(cls, path: Path, lock: RunLock) -> RunFolder:
        folder = cls(path, lock)  # first: a folder with a damaged file is refused as it is
        (path / "chains").mkdir(exist_ok=True)
        (path / "checkpoints").mkdir(exist_ok=True)
        for each in (path, path / "chains"):
            remove_partial(each)
        incomplete = checkpoint_folder.tidy(path / "checkpoints")
        gone_back: list[tuple[int, str]] = []
        if branch.is_cut_short(path):
            folder.rewrite(lambda each: gone_back.extend(branch.finish(each)))
        folder.tidied = (
            *(
                f"{lines.path.name}: its last lines ({lines.num_damaged}) are damaged and were left out: a machine "
                "that loses power leaves such, and so does a failing disk"
                for lines in folder._all_lines
                if lines.num_damaged
            ),
            *(f"the checkpoint {name} was incomplete and was passed over: it was being written" for name in incomplete),
            *(
                f"going back to step {step} was cut short and is done now: {name} has the rest"
                for step, name in gone_back
            ),
        )
        for name in incomplete:
            folder.append_event("checkpoint_incomplete", checkpoint=name)
        for step, name in gone_back:
            folder.append_event("went_back", step=step, branch=name)
        return folder

    @property
    def checkpoints(self) -> Path:
        """The folder that checkpoints stand in."""
        return self.path / "checkpoints"

    @property
    def timeline(self) -> tuple[TimelineEntry, ...]:
        """The train stream's timeline as it is on disk; empty before its first line."""
        with self._timeline_lock:
            return entries_of(self._changes)

    def publish(self, endpoint: str, stream: str) -> None:
        """Operators find the run from now on: `live_run` gives these."""
        self._lock.publish(endpoint, stream)

    def write_job(self, text: str) -> None:
        """job.yaml holds `text` from now on; what it held before stays beside it as job-<attempt>.yaml."""
        path = self.path / "job.yaml"
        before = path.read_bytes()
        if before != text.encode():
            write_whole(self.path / f"job-{self.attempt - 1}.yaml", before)
            write_whole(path, text.encode())

    def write_recipe(self, recipe: Recipe) -> None:
        """chains/<digest>.yaml has the recipe's chain, and the rest of it in comments; on disk before this returns."""
        text = recipe_text(recipe, dump_chain(recipe.chain))
        write_whole(self.path / "chains" / f"{recipe.digest}.yaml", text.encode())

    def append_timeline(self, change: TimelineChange) -> None:
        """The change is on disk before this returns."""
        with self._timeline_lock:
            line = self._timeline.append(change)
            self._changes.append(change)
        # The journal counts the lines: one that is missing later would be another run's timeline.
        self.append_event("timeline_changed", line=line, from_step=change.from_step, why=change.why)

    def append_quarantine(self, entry: msgspec.Struct | Mapping[str, Any]) -> None:
        """The entry is on disk before this returns."""
        line = self._quarantine.append(entry)
        self.append_event("quarantined", line=line)  # counted as the timeline's are

    def append_event(self, action: str, **fields: Any) -> None:
        """One line of the journal: what happened, and when (seconds since 1970)."""
        self._journal.append({"time_s": round(time.time(), 3), "action": action, **fields})

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """One line for one training step; on disk at the next checkpoint."""
        self._metrics.append(metrics)
        self.num_steps_done = metrics["step"] + 1

    def append_layers(self, layers: Mapping[str, Any]) -> None:
        """One line for a step in which every layer was measured; on disk at the next checkpoint."""
        self._layers.append(layers)

    def write_health(self, health: Mapping[str, Any]) -> None:
        """health.json holds this from now on; a reader never sees half of it."""
        content = msgspec.json.format(msgspec.json.encode(health), indent=1) + b"\n"
        write_whole(self.path / "health.json", content, is_synced=False)

    def mark(self) -> Mark:
        """How far the records reach now."""
        with self._timeline_lock:
            # First: whoever goes back to this mark must find every line that the journal's first lines count.
            journal_lines = self._journal.num_lines
            return Mark(
                timeline=entries_of(self._changes),
                timeline_lines=self._timeline.num_lines,
                quarantine_lines=self._quarantine.num_lines,
                journal_lines=journal_lines,
            )

    def write_checkpoint(
        self, step: int, write_files: Mapping[str, Callable[[Path], None]], state: Mapping[str, Any]
    ) -> Path:
        """checkpoints/step-00000200 appears whole or not at all; its state.json has the SHA-256 of each other file.

        `write_files`: file name -> function that writes it to a path. Any thread may call this, one at a time.
        """
        folder = self.checkpoints / checkpoint_folder.checkpoint_name(step)
        for lines in self._all_lines:
            lines.sync()
        checkpoint_folder.write_checkpoint(folder, write_files, state)
        return folder

    def keep_checkpoints(self, num_newest: int, also: Iterable[int] = ()) -> None:
        """Removes all checkpoints but the newest, and those of the steps `also`."""
        checkpoint_folder.keep_only(self.checkpoints, num_newest, also)

    def rewrite(self, change: Callable[[Path], None]) -> None:
        """`change` may rewrite every file of the folder; the records go on after what it leaves."""
        self._close_lines()
        try:
            change(self.path)
        finally:
            self._open_lines()

    def discard_if_unused(self) -> None:
        """Removes the folder if no step was recorded in it; `close` is still needed."""
        if self._metrics.is_empty and self.attempt == 1:
            shutil.rmtree(self.path)

    def close(self) -> None:
        """Syncs what was appended and gives the folder up."""
        for lines in self._all_lines:
            lines.sync()
        self._close_lines()
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _open_lines(self) -> None:
        path = self.path
        self._timeline = JsonLines(path / "timeline.jsonl", attempt=self.attempt, is_synced=True)
        self._quarantine = JsonLines(path / "quarantine.jsonl", attempt=self.attempt, is_synced=True)
        self._journal = JsonLines(path / "journal.jsonl", attempt=self.attempt, is_synced=False)
        self._metrics = JsonLines(path / "metrics.jsonl", attempt=self.attempt, is_synced=False)
        self._layers = JsonLines(path / "layers.jsonl", attempt=self.attempt, is_synced=False)
        self._all_lines = (self._timeline, self._quarantine, self._journal, self._metrics, self._layers)
        self.attempt = max(self.attempt, 1 + max(lines.last_attempt for lines in self._all_lines))
        for lines in self._all_lines:
            lines.attempt = self.attempt
        self._changes: list[TimelineChange] = list(read_changes(path))

    def _close_lines(self) -> None:
        for lines in self._all_lines:
            lines.close()


def _is_hardly_begun(path: Path) -> bool:
    """True for a locked folder with nothing in it but what `RunFolder.create` writes before job.yaml.

    A run whose job.yaml was lost is not taken for one: it has steps, or a checkpoint, or an older job.yaml.
    """
    made = {LOCK_NAME, "chains", "checkpoints", "timeline.jsonl", "journal.jsonl", f"{PARTIAL_PREFIX}job.yaml"}
    still_empty = [each for each in path.iterdir() if each.name not in made]
    return not any(each.suffix != ".jsonl" or each.stat().st_size for each in still_empty) and not any(
        path.glob("checkpoints/*")
    )


def _not_a_new_folder(
    path: Path, got: str, way_out: str = "name another with --run-dir, or move this one away"
) -> ConfigError:
    expected = "a run folder that does not exist yet, or is empty"
    return ConfigError(Problem(file=str(path), line=0, path="", expected=expected, got=got, way_out=way_out))


def _not_to_be_made(path: Path, error: OSError) -> ConfigError:
    """A folder that the system won't have there; a file in its way is named."""
    file = next((each for each in (path, *path.parents) if os.path.isfile(each)), None)
    if file is not None:
        got, way_out = f"{file} is a file", "name another with --run-dir, or move the file away"
    else:
        got = f"{error.strerror}: {error.filename}"
        way_out = "name a folder that you may write to, with --run-dir"
    expected = "a place where the run's folder can be made"
    return ConfigError(Problem(file=str(path), line=0, path="", expected=expected, got=got, way_out=way_out))


def _not_to_be_written(path: Path, error: OSError) -> HeadraceError:
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return write_failure(path, error)
    return ConfigError(
        Problem(
            file=str(path),
            line=0,
            path="",
            expected="the folder of a run, to be written on",
            got=f"{error.strerror}: {error.filename}",
            way_out="go on as the user who began the run, or with a copy of the folder that you may write: --run-dir",
        )
    )


def _not_a_run(path: Path) -> ConfigError:
    got = "no such folder"
    if path.is_dir():
        got = "a folder without job.yaml" if any(path.iterdir()) else "an empty folder"
    way_out = "name the folder of a run with --run-dir, or start a new one without --resume"
    if any(path.glob("job-*.yaml")):
        way_out = "it was deleted: job-K.yaml is what attempt K ran with; copy the one with the greatest K to job.yaml"
    return ConfigError(
        Problem(file=str(path), line=0, path="", expected="the folder of a run", got=got, way_out=way_out)
    )
