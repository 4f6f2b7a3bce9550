"""The running parts: what each process of a job has loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.home import Home, small_job
from tests.processes import Headrace, dispatchers, lines_of, pools, workers


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


def mapped(process: psutil.Process) -> set[str]:
    """Which of the heavy libraries stand in a process's memory, and whether it shares memory."""
    paths = [mapping.path for mapping in process.memory_maps()]
    marks = {"torch": "/torch/", "cv2": "/cv2/", "scipy": "/scipy/", "zmq": "/zmq/", "shared memory": "/dev/shm/"}
    return {name for name, mark in marks.items() if any(mark in path for path in paths)}


@pytest.mark.long
def test_each_process_of_a_job_has_loaded_what_it_needs_and_no_more(home: Home, tmp_path: Path) -> None:
    """As they really run, late imports included; albumentations shows by cv2 and SciPy, without which it can't be."""
    job = small_job(tmp_path)
    with Headrace("train", job, "--run-dir", "run", folder=tmp_path, environment=home.environment) as command:
        command.wait_until(lambda: len(lines_of(tmp_path / "run/metrics.jsonl")) > 2, "three steps")
        trainer = psutil.Process(command.pid)
        loaded = {
            "trainer": mapped(trainer),
            "dispatcher": mapped(*dispatchers(command.pid)),
            "pool": mapped(*pools(command.pid)),
            "workers": set().union(*map(mapped, workers(command.pid))),
        }
    assert loaded == {
        "trainer": {"torch", "zmq"},
        "dispatcher": {"zmq"},
        "pool": {"zmq"},
        "workers": {"cv2", "scipy", "zmq"},
    }
