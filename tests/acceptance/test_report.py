"""`headrace report`: a real run's page, with its samples made again, and without them where the source is gone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from headrace.report_process import make_report
from headrace.report_samples import NUM_SAMPLES, sample_sheets
from tests.processes import lines_of, run_headrace, write_job

NUM_STEPS = 6


def write_run(folder: Path, arrays: Path) -> None:
    """A run of two epochs of three steps; the second epoch has another chain."""
    for name, transform in (("first.yaml", "HorizontalFlip"), ("second.yaml", "Transpose")):
        crop = {"RandomCrop": {"height": 16, "width": 16}}
        (folder / name).write_text(json.dumps([crop, {transform: {"p": 1.0}}, "Normalize", "ToTensorV2"]))
    schedule = [{"from_epoch": 0, "use": "first.yaml"}, {"from_epoch": 1, "use": "second.yaml"}]
    job = write_job(
        folder,
        name="paged",
        sources={"arrays": {"kind": "arrays", "path": arrays.name}},
        train={"source": "arrays", "chain": schedule, "batch_size": 32, "epochs": 2},
        model={"kind": "mlp", "width": 8, "depth": 2},
        health={"every_steps": 2, "report": False},
        device="cpu",
        torch_threads=1,
    )
    ended = run_headrace("train", job, "--run-dir", "run", "--workers", "1", folder=folder)
    assert ended.code == 0, ended.err


@pytest.mark.long
def test_a_runs_page_shows_its_samples_as_they_were_trained_on(tmp_path: Path, arrays: Path) -> None:
    """The first batch of each recipe, with its recorded digest; and, where the source is gone, why there is none."""
    write_run(tmp_path, arrays)
    run = tmp_path / "run"
    assert NUM_STEPS == len(lines_of(run / "metrics.jsonl"))

    path = make_report(run)  # the command, in a process of its own

    assert run / "report.html" == path
    page = path.read_text()
    assert "finished: 6 steps" in page
    assert 2 == page.count("digest is as recorded")
    assert 2 * NUM_SAMPLES * 2 == len(re.findall(r'<img[^>]*src="data:image/png;base64,', page))
    for words in (
        "From step 0: first.yaml",
        "From step 3: second.yaml",
        "HorizontalFlip",
        "Transpose",
        "Forward signal",
    ):
        assert words in page

    arrays.unlink()
    sheets = sample_sheets(run)

    assert ["From step 0: first.yaml", "From step 3: second.yaml"] == [sheet.title for sheet in sheets]
    assert all(sheet.problem.startswith("Its samples can't be made here: ") for sheet in sheets)
    assert "arrays.npz" in sheets[0].problem
