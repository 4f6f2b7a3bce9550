"""run.lock: who writes a run's folder, and how operators reach that process.

In:  a run's folder.
Out: the lock, held until its process ends, however it ends; or the `LiveRun` that holds it.
Never waits for a lock that another process holds.

The file has three lines: the process id, the dispatcher's endpoint, the train stream's name; the last two are empty
until the services run.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, Problem
from pipeline.forking import hold_no_more, let_go_in_children
from pipeline.json_lines import write_failure

LOCK_NAME = "run.lock"
_MAX_NBYTES = 4096
_LOOK_S = 0.2
"""How long another's look at the lock (`live_run`) may take; it is given back within microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """A run that is going on."""

    pid: int
    endpoint: str
    """Of its dispatcher; "" while its services start."""
    stream: str
    """Its train stream's name; "" while its services start."""


class RunLock:
    """Held by one process at a time; it ends with the process, and no child inherits it, also not a forked one."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock; ConfigError that names the holder if there is one."""
        path = folder / LOCK_NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        give_up_s = time.monotonic() + _LOOK_S
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_s:
                    holder = _read(self._descriptor)[0] or "unknown"
                    os.close(self._descriptor)
                    raise _is_held(folder, holder) from None
                time.sleep(0.01)
        self._path = path
        let_go_in_children(self)
        try:
            self.publish("", "")
        except BaseException:
            self.release()
            raise

    def publish(self, endpoint: str, stream: str) -> None:
        """From now on `live_run` gives these."""
        text = f"{os.getpid()}\n{endpoint}\n{stream}\n".encode()
        try:
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))
        except OSError as error:
            raise write_failure(self._path, error) from error

    def release(self) -> None:
        """Harmless when done twice, and in a forked child, which holds nothing."""
        hold_no_more(self)
        self.let_go_in_child()

    def let_go_in_child(self) -> None:
        """A forked child has the lock's open file too: it would hold the lock after its parent's death."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def live_run(folder: Path, to_go_on: Callable[[Path], str] | None = None) -> LiveRun:
    """The run that goes on in a folder; ConfigError if none does.

    `to_go_on`: what whoever asks can do about a run that has ended.
    """
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        got = "no such folder" if not folder.exists() else f"{LOCK_NAME}: {error.strerror}"
        raise _not_running(folder, got, "name the folder of a run, such as runs/NAME") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, endpoint, stream = _read(descriptor)
        return LiveRun(pid=int(pid) if pid.isdigit() else 0, endpoint=endpoint, stream=stream)
    else:
        way_out = to_go_on(folder) if to_go_on is not None else "headrace train JOB --resume continues it"
        raise _not_running(folder, "a run that has ended", way_out)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> tuple[str, str, str]:
    lines = os.pread(descriptor, _MAX_NBYTES, 0).decode(errors="replace").split("\n")
    pid, endpoint, stream = (*lines, "", "", "")[:3]
    return pid.strip(), endpoint, stream


def _is_held(folder: Path, holder: str) -> ConfigError:
    stop = ["headrace", "stop", "--run-dir", str(folder)]
    return ConfigError(
        Problem(
            file=str(folder),
            line=0,
            path="",
            expected="a run folder that no process is writing",
            got=f"the folder of a run that is going on (process {holder})",
            way_out=f"name another with --run-dir, or stop that one first: {shlex.join(stop)}",
        )
    )


def _not_running(folder: Path, got: str, way_out: str) -> ConfigError:
    return ConfigError(
        Problem(file=str(folder), line=0, path="", expected="a run that is going on", got=got, way_out=way_out)
    )
