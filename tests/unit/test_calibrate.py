"""`headrace calibrate`: what is wrong is told before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.commands.calibrate import calibrate
from pipeline.errors import ConfigError


def test_a_job_that_is_not_there_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a process: `headrace calibrate` alone looks for the job where the repository has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headrace.calibration_run.calibrate", lambda *arguments, **options: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=r"configs/jobs/calibrate\.yaml\n  expected: a readable file"):
        calibrate()
