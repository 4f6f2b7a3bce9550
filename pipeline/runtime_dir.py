"""The private directory in which one job's sockets and other short-lived files stand.

In:  nothing but the environment.
Out: a 0700 directory of ours, removed at the end by whoever ends last; directories of dead jobs are removed at the
     next start.
Every part that uses a directory holds a shared lock on it, so a directory nobody locks belongs to the dead. The lock
is on the directory itself: what removes old files (systemd-tmpfiles) spares such a one, with all that is in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import uuid
from pathlib import Path

from pipeline.errors import ConfigError, Problem, RunFailed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Gone(RunFailed):
    """There is no such directory any more."""


class RuntimeDir:
    """A directory that lives as long as someone holds it."""

    def __init__(self, path: Path) -> None:
        """Hold `path`; RunFailed if it is gone."""
        self.path = path
        self._lock_fd: int | None = None
        try:
            self._lock_fd = os.open(path, _DIRECTORY)
            fcntl.flock(self._lock_fd, fcntl.LOCK_SH)
            is_there = os.path.samestat(os.stat(path), os.fstat(self._lock_fd))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            self.release()
            raise _Gone(f"the job's directory for sockets, {path}, was removed while it was in use")

    @classmethod
    def create(cls) -> RuntimeDir:
        """A new directory; removes those of dead jobs first."""
        parent = _parent()
        _remove_dead(parent)
        while True:
            path = parent / uuid.uuid4().hex[:8]
            path.mkdir(mode=0o700)
            # Another job that starts just now may find it between its making and its locking, and remove it.
            with contextlib.suppress(_Gone):
                return cls(path)

    def endpoint(self, name: str) -> str:
        """The ipc endpoint of a socket in this directory."""
        endpoint = self.path / name
        # sun_path holds 108 bytes with its terminating zero.
        assert len(os.fsencode(endpoint)) <= 107, f"{endpoint} is too long for a socket"
        return f"ipc://{endpoint}"

    def remove(self) -> None:
        """Delete the directory and let go of it; harmless when done twice or by several."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go of the directory without deleting it."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def default_endpoint() -> str:
    """Where a user's standing dispatcher listens if they name no other place."""
    return f"ipc://{_parent() / 'dispatcher'}"


def _parent() -> Path:
    """$XDG_RUNTIME_DIR/headrace, else a directory of ours in the system's temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(os.fsencode(runtime)) <= 50 and os.access(runtime, os.W_OK):
        parent = Path(runtime) / "headrace"
    else:
        # A long TMPDIR (as test runners set) would leave no room for socket names.
        base = tempfile.gettempdir()
        parent = Path(base if len(os.fsencode(base)) <= 40 else "/tmp") / f"headrace-{os.getuid()}"
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(parent)
    except OSError as error:
        raise _unsafe(parent, str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise _unsafe(parent, f"mode {stat.filemode(found.st_mode)}, owner {found.st_uid}")
    return parent


def _unsafe(parent: Path, got: str) -> ConfigError:
    return ConfigError(
        Problem(
            file=str(parent),
            line=0,
            path="",
            expected=f"a directory of user {os.getuid()} that nobody else can enter (mode 0700), for sockets",
            got=got,
            way_out="remove it, or point XDG_RUNTIME_DIR to a directory of yours",
        )
    )


def _remove_dead(parent: Path) -> None:
    for directory in parent.iterdir():
        try:
            lock_fd = os.open(directory, _DIRECTORY)
        except OSError:
            continue  # a socket, or removed by somebody else just now
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass  # alive, or on a file system that can't tell
        finally:
            os.close(lock_fd)
