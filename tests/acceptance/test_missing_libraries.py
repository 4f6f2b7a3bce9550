"""Workers whose libraries are missing end a run at once, and the cause is the last thing that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.home import Home, small_job
from tests.processes import ROOT, run_headrace


@pytest.mark.parametrize(
    "command",
    [("check",), pytest.param(("train", "--workers", "2", "--run-dir", "run"), marks=pytest.mark.long)],
    ids=lambda it: it[0],
)
def test_workers_that_can_not_be_imported_are_told_with_the_way_out(command: tuple[str, ...], tmp_path: Path) -> None:
    """Not after `stall_timeout_s`, and not as a worker that `ended with exit code 1`."""
    stub = tmp_path / "broken/albumentations/__init__.py"
    stub.parent.mkdir(parents=True)
    stub.write_text("raise ModuleNotFoundError('no albumentations today')")
    home = Home()
    environment = {**home.environment, "PYTHONPATH": f"{tmp_path / 'broken'}:{ROOT}"}
    name, *options = command
    ended = run_headrace(name, small_job(tmp_path), *options, folder=tmp_path, environment=environment)
    home.assert_empty_soon()
    home.remove()
    assert ended.code == 2, ended.err
    told = " ".join(ended.err.split())
    assert "got: ModuleNotFoundError: no albumentations today to go on: pip install 'headrace[workers]'" in told
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists(), "the same command works once they are there"
