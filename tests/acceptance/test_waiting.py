"""A trainer that has to wait: for a worker that is stopped, for too few workers, for workers that deliver nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.embedded import open_streams
from pipeline.config import load_job
from tests.acceptance.test_kills import SLEEP_S, slow_job
from tests.home import Home
from tests.processes import Headrace, lines_of, run_headrace, workers, write_job

STOP_S = 10.0
PACE_S = 0.05
"""Between steps: the two workers could make a batch in a third of it, so they idle most of the time."""
MAX_WORKERS = 4
TIMEOUT_S = 25.0
"""Of a stall: more than a start takes on a busy machine, and less than a worker may hang."""

SHELF = """
import pathlib, time
import numpy as np
from pipeline.sources.protocol import RawSample

class Shelf:
    '''Does not answer while a file `stuck` lies beside it, as a network disk may.'''

    fingerprint, classes = "7" * 32, ("a", "b")

    def __len__(self):
        return 64

    def read(self, index):
        while pathlib.Path(__file__).with_name("stuck").exists():
            time.sleep(0.1)
        return RawSample(np.zeros((8, 8, 3), np.uint8), index % 2)

    def describe(self, index):
        return f"shelf[{index}]"
"""


@pytest.fixture
def home_for_all(empty_home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """For this process too: the streams are opened here."""
    for name, value in empty_home.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TEST_SLEEP_S", str(SLEEP_S))
    return empty_home


@pytest.mark.long
def test_a_stopped_worker_holds_the_trainer_up_for_a_fraction_of_the_stop_while_another_idles(
    tmp_path: Path, arrays: Path, home_for_all: Home
) -> None:
    """What it holds is late, and leased once more: the loop waits for neither its end nor its being found dead."""
    job = load_job(slow_job(tmp_path, arrays, num_epochs=10_000))
    with open_streams(job, 2) as streams:
        batches = iter(streams.train)
        for _ in range(40):  # so many that it is known how long a slice takes
            next(batches)
            time.sleep(PACE_S)
        stopped = workers(os.getpid())[0]
        stopped.suspend()
        took_s = [time.monotonic()]
        while took_s[-1] - took_s[0] < STOP_S:
            next(batches)
            time.sleep(PACE_S)
            took_s.append(time.monotonic())
        with contextlib.suppress(psutil.NoSuchProcess):  # found dead, and replaced
            stopped.resume()
    longest_s = max(after - before for before, after in pairwise(took_s))
    print(f"the longest of {len(took_s)} steps took {longest_s:.2f} s, {longest_s / STOP_S:.2f} of the stop")
    assert longest_s <= STOP_S / 3


@pytest.mark.long
def test_automatic_workers_become_more_while_the_trainer_waits_and_no_more_than_allowed(
    tmp_path: Path, arrays: Path, empty_home: Home
) -> None:
    """They sleep for most of their time, so on any machine more of them deliver more."""
    job, run_dir = slow_job(tmp_path, arrays, num_epochs=10_000), tmp_path / "run"
    environment = {**empty_home.environment, "TEST_SLEEP_S": "0.05"}
    limits = ("--set", f"max_workers={MAX_WORKERS}", "--set", "min_workers=1")
    train = ("train", job, "--run-dir", run_dir, "--workers", "auto", *limits)
    with Headrace(*train, folder=tmp_path, environment=environment) as run:
        run.wait_until(lambda: bool(lines_of(run_dir / "metrics.jsonl")), "the first step")
        first = len(workers(run.pid))
        assert 1 <= first < MAX_WORKERS
        most = first

        def has_grown() -> bool:
            nonlocal most
            most = max(most, len(workers(run.pid)))
            return most == MAX_WORKERS

        run.wait_until(has_grown, f"more than {most} workers")
        done = len(lines_of(run_dir / "metrics.jsonl"))
        run.wait_until(lambda: len(lines_of(run_dir / "metrics.jsonl")) > done + 5, "steps with all of them")
        assert len(workers(run.pid)) == MAX_WORKERS
        run.process.send_signal(signal.SIGTERM)
        assert run.finish().code == 4


def stalling_job(folder: Path, **fields: Any) -> Path:
    (folder / "shelf.py").write_text(SHELF)
    return write_job(
        folder,
        sources={"shelf": {"kind": "plugin", "factory": "shelf.py:Shelf"}},
        train={"source": "shelf", "chain": ["Normalize", "ToTensorV2"], "batch_size": 8, "epochs": 100_000},
        stall_timeout_s=TIMEOUT_S,
        model={"kind": "mlp", "width": 4, "depth": 1},
        device="cpu",
        torch_threads=1,
        **fields,
    )


@pytest.mark.long
def test_under_fail_a_run_whose_workers_deliver_nothing_ends_and_says_so(tmp_path: Path, empty_home: Home) -> None:
    """Exit code 1, after `stall_timeout_s`: long before their hanging would have them replaced."""
    job, run_dir = stalling_job(tmp_path, workers=1, on_stall="fail"), tmp_path / "run"
    with Headrace("train", job, "--run-dir", run_dir, folder=tmp_path, environment=empty_home.environment) as run:
        run.wait_until(lambda: bool(lines_of(run_dir / "metrics.jsonl")), "the first step")
        (tmp_path / "stuck").touch()
        ended = run.finish()
    assert ended.code == 1, ended.err
    told = f"no slice has arrived for {TIMEOUT_S:g} s\n  workers are connected but deliver nothing (workers 1, "
    assert told in ended.err
    assert "Traceback" not in ended.err


def test_under_fail_a_run_that_nobody_answers_exits_3_and_leaves_no_folder(tmp_path: Path, empty_home: Home) -> None:
    """The same command is right once there is a dispatcher."""
    job, endpoint = stalling_job(tmp_path, on_stall="fail"), f"ipc://{empty_home.path}/nobody"
    train = ("train", job, "--run-dir", tmp_path / "run", "--connect", endpoint, "--set", "stall_timeout_s=6")
    ended = run_headrace(*train, folder=tmp_path, environment=empty_home.environment)
    assert ended.code == 3, ended.err
    assert f"headrace: no dispatcher answers at {endpoint}: " in ended.err
    assert f"to go on: start one with `headrace pipeline --listen {endpoint}`" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_under_fail_a_run_beside_services_without_workers_ends_and_says_so(tmp_path: Path, empty_home: Home) -> None:
    """Whoever forgot to start them reads what is missing, in the scheduler's log."""
    job, endpoint = stalling_job(tmp_path, on_stall="fail"), f"ipc://{empty_home.path}/d"
    (tmp_path / "pipeline").mkdir()
    listen, environment = ("pipeline", "--listen", endpoint), empty_home.environment
    with Headrace(*listen, folder=tmp_path / "pipeline", environment=environment) as dispatcher:
        train = ("train", job, "--run-dir", tmp_path / "run", "--connect", endpoint)
        ended = run_headrace(*train, folder=tmp_path, environment=environment)
        dispatcher.process.terminate()
        assert dispatcher.finish().code == 0
    assert ended.code == 1, ended.err
    assert f"no slice has arrived for {TIMEOUT_S:g} s\n  no worker is connected (workers 0, " in ended.err
