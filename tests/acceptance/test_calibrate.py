"""Gradient health's calibration as a user runs it: law 1 at full size, on digits and on the demo's stream."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.home import Home
from tests.processes import ROOT, Headrace, descendants

JOB = ROOT / "configs" / "jobs" / "calibrate.yaml"


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_healthy_training_alarms_and_every_fault_is_named_and_cleared(home: Home, tmp_path: Path) -> None:
    """Exit code 0 means just that; the table has the numbers, for a README too."""
    arguments = ("calibrate", JOB, "--seeds", "2", "--markdown", "--json", "records.json")
    with Headrace(*arguments, folder=tmp_path, environment=home.environment) as command:
        finished = command.finish(deadline_s=3500.0)
    assert finished.code == 0, finished.out + finished.err
    records = json.loads((tmp_path / "records.json").read_text())
    faulty = {record["name"] for record in records if record["expected"]}
    on_a_stream = {record["name"] for record in records if record["data"] == "stream" and not record["expected"]}
    assert len(faulty) >= 20
    assert len({record["name"] for record in records} - faulty) >= 14
    assert on_a_stream
    assert "0 false alarms" in finished.out
    home.assert_empty_soon()


@pytest.mark.long
def test_a_calibration_that_is_stopped_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """A training is a process, and its stream has services: none of them outlives the command, and none is begun."""
    with Headrace("calibrate", JOB, "--processes", "1", folder=tmp_path, environment=home.environment) as command:
        command.wait_until(lambda: len(descendants(command.pid)) > 2, "a training and its stream's services")
        os.kill(command.pid, signal.SIGTERM)
        finished = command.finish()

    assert finished.code == 130
    home.assert_empty_soon()
