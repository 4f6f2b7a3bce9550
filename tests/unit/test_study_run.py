"""A study's shares: how one ends is how the study ends."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

import headrace.study_run
from headrace.study_run import run_study
from pipeline.errors import RunFailed
from pipeline.study import StudyConfig
from pipeline.study_file import Study

STUDY = Study(
    path=Path("study.yaml"),
    config=StudyConfig.model_validate_json('{"job": "job.yaml", "axes": {"init": {"he": {}}}, "processes": 1}'),
    job_path=Path("job.yaml"),
)


@pytest.mark.parametrize(
    ("code", "own", "told"),
    [
        (1, 1, "exit code 1"),
        (2, 2, "exit code 2"),
        (3, 3, "exit code 3"),
        (4, 1, "exit code 4"),
        (-9, 1, "signal SIGKILL"),
    ],
)
def test_a_study_ends_as_the_share_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, own: int, told: str
) -> None:
    """What the user wrote wrongly, or who is not there, is no failure of the training."""

    class Failing:
        def __init__(self, *arguments: object) -> None:
            pass

        def read_into(self, lines: queue.SimpleQueue[bytes | int]) -> None:
            lines.put(code)

        def hang_up(self) -> None:
            pass

        def end(self) -> None:
            pass

    monkeypatch.setattr(headrace.study_run, "_Share", Failing)
    with pytest.raises(RunFailed, match=told) as raised:
        run_study(STUDY, [], tmp_path, lambda steps, ended: None)
    assert raised.value.exit_code == own
