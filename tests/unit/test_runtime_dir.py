"""The runtime directory: private, short-lived, and never left by the dead."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, RunFailed
from pipeline.runtime_dir import RuntimeDir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """$XDG_RUNTIME_DIR; short, unlike pytest's own directories, since sockets stand in it."""
    with tempfile.TemporaryDirectory(prefix="hr-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)


def leave_by_death(runtime: Path) -> Path:
    """The directory of a process that was killed while it held it."""
    code = "import os, signal\nfrom pipeline.runtime_dir import RuntimeDir\nheld = RuntimeDir.create()\n"
    code += "(held.path / 'control').touch()\nprint(held.path, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return Path(ended.stdout.strip())


def test_nobody_else_can_enter(runtime: Path) -> None:
    """Whoever reaches the socket can give orders."""
    held = RuntimeDir.create()
    for path in (held.path, held.path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    held.remove()


@pytest.mark.parametrize(
    "make_unsafe", [lambda parent: parent.mkdir(mode=0o755), lambda parent: parent.symlink_to("/")]
)
def test_a_parent_that_others_control_is_refused(make_unsafe, runtime: Path) -> None:  # type: ignore[no-untyped-def]
    """In a shared temporary directory somebody else may have made it first."""
    make_unsafe(runtime / "headrace")
    with pytest.raises(ConfigError, match="mode 0700"):
        RuntimeDir.create()


def test_the_next_start_removes_what_the_dead_left_and_nothing_of_the_living(runtime: Path) -> None:
    """A directory that nobody locks belongs to the dead."""
    living = RuntimeDir.create()
    dead = leave_by_death(runtime)
    assert dead.is_dir()

    third = RuntimeDir.create()

    assert not dead.exists()
    assert living.path.is_dir()
    for held in (living, third):
        held.remove()
    assert list((runtime / "headrace").iterdir()) == []


def test_it_lives_as_long_as_any_part_holds_it(runtime: Path) -> None:
    """The services hold their trainer's directory too; one that outlives the others still has its sockets."""
    first = RuntimeDir.create()
    second = RuntimeDir(first.path)
    first.release()
    RuntimeDir.create().remove()
    assert first.path.is_dir()

    second.release()
    RuntimeDir.create().remove()
    assert not first.path.exists()


def test_jobs_that_start_at_once_do_not_remove_each_others_directories(runtime: Path) -> None:
    """A directory is made first and locked then; in between it looks like one of the dead."""

    def start(_: int) -> bool:
        held = RuntimeDir.create()
        is_whole = held.path.is_dir()
        held.remove()
        return is_whole

    with ThreadPoolExecutor(8) as starters:
        assert all(starters.map(start, range(500)))


def test_what_its_maker_never_came_to_lock_is_removed(runtime: Path) -> None:
    """Killed between its making and its locking; one that lives makes another."""
    RuntimeDir.create().remove()
    (runtime / "headrace" / "0dd1").mkdir(mode=0o700)
    RuntimeDir.create().remove()
    assert list((runtime / "headrace").iterdir()) == []


def test_a_living_directory_needs_no_file_in_it_to_live(runtime: Path) -> None:
    """A cleaner of the temporary directory may remove every old file, and spares directories that are locked."""
    living = RuntimeDir.create()
    assert list(living.path.iterdir()) == []
    lock_fd = os.open(living.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):  # what systemd-tmpfiles tries before it looks inside
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock_fd)
    RuntimeDir.create().remove()
    assert living.path.is_dir()
    living.remove()


def test_a_part_that_comes_after_its_directory_was_removed_says_so(runtime: Path) -> None:
    """A service that is started again, say."""
    first = RuntimeDir.create()
    first.remove()
    with pytest.raises(RunFailed, match=f"{first.path}, was removed"):
        RuntimeDir(first.path)


def test_removing_twice_and_by_several_is_harmless(runtime: Path) -> None:
    """Every part removes it at its end; none knows whether it is the last."""
    first = RuntimeDir.create()
    second = RuntimeDir(first.path)
    for held in (first, second, first):
        held.remove()
    assert not first.path.exists()


def test_socket_names_fit_also_below_a_long_temporary_directory(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A path of more than 107 bytes can't be bound; test runners and clusters set long ones."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    held = RuntimeDir.create()
    try:
        assert len(held.endpoint("train-18eac2e3e4a77e7b").removeprefix("ipc://")) <= 107
    finally:
        held.remove()
