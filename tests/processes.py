"""The `headrace` command as a user runs it, and the processes it starts; for acceptance tests.

In:  arguments, a folder to run in.
Out: exit code and output of real processes; the pids of a run's pool, dispatcher and workers.
Every wait has a deadline. A run that outlives its test is killed, and what it started must then end by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from pipeline.checkpoint_folder import checkpoint_steps, read_state
from tests.home import GONE_WITHIN_S

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120.0
"""Guards against hanging only; far above what any command of a test takes."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Headrace:
    """A running `headrace` command; use as a context manager, so that nothing outlives the test."""

    def __init__(self, *arguments: str | Path, folder: Path, environment: dict[str, str] | None = None) -> None:
        self._out_path, self._err_path = folder / "command.out", folder / "command.err"
        own = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
        with self._out_path.open("wb") as out, self._err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "headrace", *map(str, arguments)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **own, **(environment or {})},
                start_new_session=True,  # a Ctrl-C that a test sends is not for pytest
            )

    def __enter__(self) -> Headrace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Law 9: an AssertionError, unless the test has failed anyway, if what it started outlives a killed command."""
        started = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        left = outliving(started)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert kind is not None or not left, f"left {GONE_WITHIN_S:g} s after a SIGKILL: {left}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def finish(self, deadline_s: float = DEADLINE_S) -> Finished:
        """Wait for the end; an AssertionError with the output if it does not come."""
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s:g} s\n{self._output()}") from None
        return Finished(code, self._out_path.read_text(), self._err_path.read_text())

    def wait_until(self, condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait while the command runs; an AssertionError if it ends, or the deadline passes, before `condition`."""
        give_up_s = time.monotonic() + deadline_s
        while not condition():
            assert self.is_running, f"ended before: {what}\n{self._output()}"
            assert time.monotonic() < give_up_s, f"not within {deadline_s:g} s: {what}\n{self._output()}"
            time.sleep(0.02)

    def printed(self) -> str:
        """What it has written to its standard output so far."""
        return self._out_path.read_text()

    def _output(self) -> str:
        return self._out_path.read_text() + self._err_path.read_text()


def run_headrace(*arguments: str | Path, folder: Path, environment: dict[str, str] | None = None) -> Finished:
    """Run a command to its end in `folder`."""
    with Headrace(*arguments, folder=folder, environment=environment) as command:
        return command.finish()


def descendants(pid: int) -> list[psutil.Process]:
    """The living processes that `pid` started, and those that they started."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def outliving(started: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still live when all should be gone."""
    give_up_s = time.monotonic() + GONE_WITHIN_S
    while (left := [process for process in started if _is_alive(process)]) and time.monotonic() < give_up_s:
        time.sleep(0.02)
    return left


def dispatchers(pid: int) -> list[psutil.Process]:
    """The dispatcher that the command `pid` started: none or one."""
    return [process for process in descendants(pid) if _is_service(process, "pipeline")]


def pools(pid: int) -> list[psutil.Process]:
    """The pool that the command `pid` started: none or one."""
    return [process for process in descendants(pid) if _is_service(process, "workers")]


def fork_servers(pid: int) -> list[psutil.Process]:
    """The fork server of the command `pid`'s pool: none or one."""
    family = _forked(pid)
    return [process for process in family.values() if _parent_pid(process) not in family]


def workers(pid: int) -> list[psutil.Process]:
    """The worker processes of the command `pid`: what its pool's fork server has forked."""
    family = _forked(pid)
    return [process for process in family.values() if _parent_pid(process) in family]


def write_job(folder: Path, **fields: Any) -> Path:
    """A job file with these fields; JSON is YAML. No page of the run is made, unless it is asked for."""
    fields["health"] = {"report": False, **fields.get("health", {})}
    path = folder / "job.yaml"
    path.write_text(json.dumps(fields, indent=1))
    return path


def verdicts_of(run_dir: Path) -> list[dict[str, Any]]:
    """The verdicts on a run so far, by themselves: without the run's own place, which its texts name."""
    text = (run_dir / "health.json").read_text().replace(str(run_dir.absolute()), "RUN")
    verdicts: list[dict[str, Any]] = json.loads(text)["verdicts"]
    return verdicts


def outcome_of(run_dir: Path) -> dict[str, Any]:
    """All that a run came to; of each step and evaluation what the last attempt wrote."""
    steps = {line["step"]: line for line in lines_of(run_dir / "metrics.jsonl")}
    evaluations = {line["step"]: line for line in lines_of(run_dir / "journal.jsonl") if line["action"] == "evaluated"}
    newest = run_dir / "checkpoints" / f"step-{checkpoint_steps(run_dir / 'checkpoints')[-1]:08d}"
    return {
        "steps": [(step, line["digest"], line["recipe"], line["loss"]) for step, line in sorted(steps.items())],
        "evaluations": [(step, line["loss"], line["accuracy"]) for step, line in sorted(evaluations.items())],
        "verdicts": verdicts_of(run_dir),
        "weights": read_state(newest)["weights_sha256"],
    }


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a run's .jsonl file; whole lines only, since it may be written right now."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_service(process: psutil.Process, command: str) -> bool:
    line = _command_line(process)
    return any(pair == ("headrace", command) for pair in _pairs(line))


def _pairs(line: list[str]) -> Iterator[tuple[str, str]]:
    return pairwise(line)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _forked(pid: int) -> dict[int, psutil.Process]:
    """The fork server and its forks, which share its command line."""
    return {
        process.pid: process
        for process in descendants(pid)
        if any("multiprocessing.forkserver" in argument for argument in _command_line(process))
    }


def _parent_pid(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0
