"""A run's folder: lock, job, chains, timeline, quarantine, journal, metrics, checkpoints.

In:  records of a running job, and functions that write a checkpoint's files.
Out: the files of DESIGN.md section 5, readable after a kill at any moment.
Never written by two processes at a time, never imports torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from pipeline.config import dump_chain
from pipeline.errors import ConfigError, Problem
from pipeline.json_lines import JsonLines, write_failure
from pipeline.recipe import Recipe

LOCK_NAME = "run.lock"
_PARTIAL_PREFIX = ".partial-"


class RunFolder:
    """The one writer of a run's folder; holds the folder's lock until `close`."""

    def __init__(self, path: Path, lock_descriptor: int, attempt: int) -> None:
        """Use `RunFolder.create`."""
        self.path = path
        self.attempt = attempt
        self._lock_descriptor = lock_descriptor
        self._timeline = JsonLines(path / "timeline.jsonl", attempt=attempt, is_synced=True)
        self._quarantine = JsonLines(path / "quarantine.jsonl", attempt=attempt, is_synced=True)
        self._journal = JsonLines(path / "journal.jsonl", attempt=attempt, is_synced=False)
        self._metrics = JsonLines(path / "metrics.jsonl", attempt=attempt, is_synced=False)

    @classmethod
    def create(cls, path: Path, job_text: str) -> RunFolder:
        """A new run in a folder that is absent or empty; `job_text` becomes its job.yaml.

        ConfigError for a folder with anything in it: naming the process that holds it, if one does.
        """
        path = path.absolute()
        if path.is_dir() and any(path.iterdir()) and not (path / LOCK_NAME).exists():
            raise _not_a_new_folder(path, "a folder with other files in it")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock_descriptor = _lock(path)
        except OSError as error:
            raise _not_a_new_folder(path, f"{error.strerror}: {error.filename}") from error
        try:
            if {each.name for each in path.iterdir()} != {LOCK_NAME}:
                raise _not_a_new_folder(path, "the folder of an earlier run")
            _write_whole(path / "job.yaml", job_text.encode())
            (path / "chains").mkdir()
            (path / "checkpoints").mkdir()
            return cls(path, lock_descriptor, attempt=1)
        except BaseException:
            os.close(lock_descriptor)
            raise

    def write_recipe(self, recipe: Recipe) -> None:
        """chains/<digest>.yaml has the recipe's chain, and the rest of it in comments; on disk before this returns."""
        _write_whole(self.path / "chains" / f"{recipe.digest}.yaml", _recipe_text(recipe).encode())

    def append_timeline(self, entry: msgspec.Struct | Mapping[str, Any]) -> None:
        """The entry is on disk before this returns."""
        self._timeline.append(entry)

    def append_quarantine(self, entry: msgspec.Struct | Mapping[str, Any]) -> None:
        """The entry is on disk before this returns."""
        self._quarantine.append(entry)

    def append_event(self, action: str, **fields: Any) -> None:
        """One line of the journal: what happened, and when (seconds since 1970)."""
        self._journal.append({"time_s": round(time.time(), 3), "action": action, **fields})

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """One line for one training step; on disk at the next checkpoint."""
        self._metrics.append(metrics)

    def write_checkpoint(
        self, step: int, write_files: Mapping[str, Callable[[Path], None]], state: Mapping[str, Any]
    ) -> Path:
        """checkpoints/step-00000200 appears whole or not at all; its state.json has the SHA-256 of each other file.

        `write_files`: file name -> function that writes it to a path.
        """
        folder = self.path / "checkpoints" / f"step-{step:08d}"
        partial = folder.with_name(_PARTIAL_PREFIX + folder.name)
        for lines in (self._timeline, self._quarantine, self._journal, self._metrics):
            lines.sync()
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            sha256_by_file = {}
            for name, write in write_files.items():
                write(partial / name)
                sha256_by_file[name] = _synced_sha256(partial / name)
            text = msgspec.json.format(msgspec.json.encode({**state, "files_sha256": sha256_by_file}), indent=2)
            _write_whole(partial / "state.json", text + b"\n")
            partial.rename(folder)
            _sync_folder(folder.parent)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise write_failure(folder, error) from error
        return folder

    def discard_if_unused(self) -> None:
        """Removes the folder if no step was recorded in it; `close` is still needed."""
        if self._metrics.is_empty:
            shutil.rmtree(self.path)

    def close(self) -> None:
        """Syncs what was appended and gives the folder up."""
        for lines in (self._timeline, self._quarantine, self._journal, self._metrics):
            lines.sync()
            lines.close()
        os.close(self._lock_descriptor)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _recipe_text(recipe: Recipe) -> str:
    header = [
        f"# recipe {recipe.digest}, from {recipe.chain.file}",
        f"# decode: {msgspec.json.encode(recipe.decode).decode()}",
        *(f"# plug-in {name}: sha256 {digest}" for name, digest in sorted(recipe.plugins.items())),
    ]
    return "\n".join(header) + "\n" + dump_chain(recipe.chain)


def _lock(path: Path) -> int:
    """The descriptor that holds the lock; it ends with the process, however that ends, and no child inherits it."""
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise _not_a_new_folder(path, f"the folder of a run that is going on (process {holder})") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _not_a_new_folder(path: Path, got: str) -> ConfigError:
    return ConfigError(
        Problem(
            file=str(path),
            line=0,
            path="",
            expected="a run folder that does not exist yet, or is empty",
            got=got,
            way_out="name another with --run-dir, or move this one away",
        )
    )


def _write_whole(path: Path, content: bytes) -> None:
    """The file is there with all its content, on disk, or not there."""
    partial = path.with_name(_PARTIAL_PREFIX + path.name)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_failure(path, error) from error


def _sync_folder(path: Path) -> None:
    # A rename is on disk only once its folder is.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synced_sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
