"""Files that are added while a job runs are the next job's, whoever looks at the folder meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from headrace.library import Stream
from tests.acceptance.conftest import NUM_PHOTOS
from tests.home import Home
from tests.processes import run_headrace, workers, write_job

NUM_STEPS = 20 * NUM_PHOTOS // 4


def test_a_job_goes_on_with_the_samples_it_began_with_though_another_indexes_the_folder_anew(
    photos: Path, tmp_path: Path, empty_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`headrace check` ended such jobs: at the next worker's start, and without any fault at the next evaluation."""
    for name, value in empty_home.environment.items():
        monkeypatch.setenv(name, value)
    held_out = Path(shutil.copytree(photos, tmp_path / "held_out"))
    chain = [{"Resize": {"height": 16, "width": 16}}, "Normalize", "ToTensorV2"]
    job = write_job(
        tmp_path,
        sources={name: {"kind": "folder", "path": name} for name in ("photos", "held_out")},
        train={"source": "photos", "chain": chain, "batch_size": 4, "epochs": 20},
        eval={"source": "held_out", "chain": chain},
        window_batches=2,
        stall_timeout_s=120,
    )
    with Stream(job, workers=1) as stream:
        batches = iter(stream)
        next(batches)
        assert sum(len(batch.labels) for batch in stream.evaluate()) == NUM_PHOTOS
        for folder in (photos, held_out):
            shutil.copy(folder / "cats/000.jpg", folder / "cats/added.jpg")
        checked = run_headrace("check", job, folder=tmp_path, environment=empty_home.environment)
        assert f"photos: {NUM_PHOTOS + 1} samples" in checked.out, checked
        assert sum(len(batch.labels) for batch in stream.evaluate()) == NUM_PHOTOS
        (worker,) = workers(os.getpid())
        worker.kill()
        assert 1 + sum(1 for _ in batches) == NUM_STEPS
