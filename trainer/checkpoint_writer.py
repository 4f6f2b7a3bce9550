"""Checkpoints are written beside the training loop: it gives a snapshot and goes on.

In:  snapshots, one at a time.
Out: checkpoint folders, thinned out to the newest, the newest healthy one and the best; journal events; how long the
     loop was kept.
A failure to write (a full disk) is raised in the loop, at its next call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.run_folder import RunFolder
from trainer.checkpoint import Snapshot
from trainer.healthy_checkpoint import newest_healthy


class CheckpointWriter:
    """At most one checkpoint is being written; the loop waits for it before it gives the next one."""

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self.stall_s = 0.0
        """Seconds that the loop has spent on snapshots and on waiting for earlier ones to be written."""
        self.num_written = 0
        self.last: Path | None = None
        """The newest one that is whole on disk."""
        self._folder = folder
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, take: Callable[[], Snapshot], kept_steps: tuple[int, ...] = ()) -> None:
        """Takes a snapshot now and writes it meanwhile; checkpoints of `kept_steps` stay however old they get, and so
        does the newest one that is healthy: the only way back of a run that has gone wrong."""
        started_s = time.perf_counter()
        self.wait()
        snapshot = take()
        stall_s = time.perf_counter() - started_s
        self.stall_s += stall_s
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, kept_steps, stall_s), name=f"checkpoint {snapshot.step}", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong in writing, if anything did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Everything given is on disk afterwards; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def end(self) -> None:
        """Waits without raising, for when something else has ended the run already."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, snapshot: Snapshot, kept_steps: tuple[int, ...], stall_s: float) -> None:
        started_s = time.perf_counter()
        try:
            path = self._folder.write_checkpoint(snapshot.step, snapshot.files(), snapshot.full_state())
            self.last = path
            self.num_written += 1
            wrote_s = time.perf_counter() - started_s
            numbers = {"stall_s": round(stall_s, 6), "wrote_s": round(wrote_s, 6)}
            self._folder.append_event("checkpointed", step=snapshot.step, checkpoint=path.name, **numbers)
            healthy = newest_healthy(self._folder.checkpoints)
            self._folder.keep_checkpoints(self._keep, kept_steps if healthy is None else (*kept_steps, healthy))
        except BaseException as error:
            self._error = error
