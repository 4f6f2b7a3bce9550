"""A source of the user's own, whose module lies beside the job, from wherever the command is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.home import Home
from tests.processes import run_headrace, write_job

SOURCE = """
import numpy as np
from pipeline.sources import RawSample

class Squares:
    fingerprint = "squares"
    classes = ("even", "odd")
    def __len__(self):
        return 32
    def read(self, index):
        return RawSample(np.full((8, 8, 3), index, np.uint8), index % 2)
    def describe(self, index):
        return f"square {index}"
"""


@pytest.mark.long
def test_a_factory_beside_the_job_is_found_by_check_the_trainer_its_workers_and_replay(
    tmp_path: Path, empty_home: Home
) -> None:
    """As the job's chains and the model's factory are; a module elsewhere is named with --base, as plug-ins are."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/my_squares.py").write_text(SOURCE)
    write_job(
        tmp_path / "jobs",
        sources={"squares": {"kind": "plugin", "factory": "my_squares:Squares"}},
        train={"source": "squares", "chain": ["Normalize", "ToTensorV2"], "batch_size": 8},
        model={"kind": "mlp"},
        workers=1,
    )

    def run(*arguments: str) -> tuple[int, str]:
        ended = run_headrace(*arguments, folder=tmp_path, environment=empty_home.environment)
        return ended.code, ended.out + ended.err

    code, text = run("check", "jobs/job.yaml")
    assert (0, True) == (code, "squares: 32 samples" in text), text
    code, text = run("train", "jobs/job.yaml", "--run-dir", "run")
    assert code == 0, text
    code, text = run("replay", "run", "--step", "3", "--base", "jobs")
    assert (0, True) == (code, "as recorded" in text), text
    code, text = run("replay", "run", "--step", "3")
    assert (2, True) == (code, "--base FOLDER" in text), text
