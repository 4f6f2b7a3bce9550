"""Exit: however one part ends, the rest end too and leave nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.home import Home, small_job
from tests.processes import ROOT, Headrace, lines_of, run_headrace

INTERRUPTED = (130, -signal.SIGINT)
"""A shell shows 130 for both. Python itself ends by the signal if it came while the text of some `exec` ran, such as a
dataclass that is being made."""
STOPPED = 4
"""Once a step is done, a stop is a checkpoint and an exit code that says so."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
QUICKLY_STOPPING = (*(pytest.param(each, marks=pytest.mark.long) for each in STOPPING[:2]), signal.SIGKILL)
"""The smoke: other tests of it stop by SIGINT and by SIGTERM."""
START_UP_S = 4.0
"""About what it takes to the first batch; a moment below falls into start-up, one above into training."""


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


def start_training(home: Home, folder: Path) -> Headrace:
    return Headrace("train", small_job(folder), "--run-dir", "run", folder=folder, environment=home.environment)


def catches_signals(command: Headrace) -> bool:
    """True once Python has started and our first line has run; what comes before is not ours to end."""
    status = Path(f"/proc/{command.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def send_to_terminal_group(command: Headrace, number: signal.Signals) -> None:
    """As Ctrl-C in a terminal does: to the command and to all that did not leave its process group."""
    os.killpg(command.pid, number)


def assert_ended_quietly(command: Headrace, home: Home, number: signal.Signals, codes: tuple[int, ...]) -> None:
    home.assert_empty_soon()
    finished = command.finish()
    assert finished.code in ((-signal.SIGKILL,) if number == signal.SIGKILL else codes)
    assert "Traceback" not in finished.err, finished.err
    assert "Error" not in finished.err, finished.err


@pytest.mark.parametrize("number", QUICKLY_STOPPING, ids=lambda number: number.name)
def test_nothing_is_left_of_a_trainer_that_is_stopped_while_it_trains(
    number: signal.Signals, home: Home, tmp_path: Path
) -> None:
    """Law 9: no process, socket, runtime directory or temporary file, 5 s later."""
    with start_training(home, tmp_path) as command:
        command.wait_until(lambda: len(lines_of(tmp_path / "run/metrics.jsonl")) > 2, "three steps")
        assert len(home.processes()) > 4, "the trainer, dispatcher, pool, fork server and workers"
        assert home.left_files(), "sockets"

        send_to_terminal_group(command, number)

        assert_ended_quietly(command, home, number, (STOPPED,))


@pytest.mark.parametrize("number", QUICKLY_STOPPING, ids=lambda number: number.name)
def test_nothing_is_left_of_a_trainer_that_is_stopped_while_it_starts(
    number: signal.Signals, home: Home, tmp_path: Path
) -> None:
    """Its services are half started then: imports under way, no socket yet, nobody listening for the end."""
    moment_s = random.uniform(0.0, START_UP_S)
    with start_training(home, tmp_path) as command:
        command.wait_until(lambda: catches_signals(command), "the command's first line")
        time.sleep(moment_s)

        send_to_terminal_group(command, number)

        print(f"{number.name} after {moment_s:.3f} s")
        assert_ended_quietly(command, home, number, (*INTERRUPTED, STOPPED))


def test_a_run_that_was_stopped_before_its_first_step_leaves_its_name_free(home: Home, tmp_path: Path) -> None:
    """The same command must work again: there is nothing to resume."""
    with start_training(home, tmp_path) as command:
        command.wait_until(lambda: (tmp_path / "run/job.yaml").exists(), "the run folder")
        send_to_terminal_group(command, signal.SIGINT)
        finished = command.finish()
    assert finished.code in INTERRUPTED
    assert finished.err == "headrace: stopped before its first step\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("trial", range(10))
@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_nothing_is_left_at_any_moment(number: signal.Signals, trial: int, home: Home, tmp_path: Path) -> None:
    """The same at many moments, start-up and training alike."""
    moment_s = START_UP_S * 1.5 * (trial + random.random()) / 10
    with start_training(home, tmp_path) as command:
        command.wait_until(lambda: catches_signals(command), "the command's first line")
        time.sleep(moment_s)

        send_to_terminal_group(command, number)

        print(f"{number.name} after {moment_s:.3f} s")
        assert_ended_quietly(command, home, number, (*INTERRUPTED, STOPPED))


def test_after_a_kill_of_everything_the_next_start_cleans_up(home: Home, tmp_path: Path) -> None:
    """Nobody is left to tidy up, so the next job does; what belongs to a living job stays."""
    with start_training(home, tmp_path) as command:
        command.wait_until(lambda: len(lines_of(tmp_path / "run/metrics.jsonl")) > 2, "three steps")
        home.kill_all()
        assert home.processes() == []
        assert home.left_files(), "the sockets of the dead"

    digest = run_headrace("digest", "job.yaml", "--batches", "1", folder=tmp_path, environment=home.environment)

    assert digest.code == 0, digest.err
    home.assert_empty_soon()


def test_a_job_that_ends_by_itself_says_nothing_on_stderr_and_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """A warning at exit, of a thread or a socket, would be one too many."""
    job = small_job(tmp_path, epochs=1)
    environment = {**home.environment, "PYTHONWARNINGS": "default::ResourceWarning"}

    finished = run_headrace("train", job, "--run-dir", "run", folder=tmp_path, environment=environment)

    assert (finished.code, finished.err) == (0, "")
    home.assert_empty_soon()


@pytest.mark.long
@pytest.mark.parametrize("redirection", ["--workers 1 | head -n 1", "--workers 0 >&-", "--workers 0 > /dev/full"])
def test_a_reader_that_goes_away_is_no_traceback(redirection: str, home: Home, tmp_path: Path) -> None:
    """`headrace digest ... | head` is an ordinary thing to type."""
    small_job(tmp_path)
    command = f"{sys.executable} -P -m headrace digest job.yaml --batches 100 {redirection}"

    finished = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, **home.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert "Traceback" not in finished.stderr, finished.stderr
    assert "Exception ignored" not in finished.stderr, finished.stderr
    home.assert_empty_soon()
