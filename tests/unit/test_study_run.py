"""A study's shares: how one ends is how the study ends."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

import headrace.study_run
from headrace.commands.study import study
from headrace.study_run import run_study
from pipeline.errors import ConfigError, RunFailed
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


def test_a_folder_with_files_in_it_is_no_place_for_a_study(tmp_path: Path) -> None:
    """Nothing is trained, and what lies there stays: results of two studies must not mix."""
    (tmp_path / "job.yaml").write_text(
        "sources: {digits: {kind: digits}}\ntrain: {source: digits, chain: [Normalize]}\n"
        "eval: {source: digits, chain: [Normalize]}\nmodel: {kind: mlp}\n"
    )
    (tmp_path / "study.yaml").write_text("job: job.yaml\naxes: {init: {he: {}}}\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.jsonl").write_text("earlier")
    with pytest.raises(ConfigError, match=r"--out\n  expected: a folder that is absent or empty"):
        study(tmp_path / "study.yaml", out=out)
    assert "earlier" == (out / "results.jsonl").read_text()
