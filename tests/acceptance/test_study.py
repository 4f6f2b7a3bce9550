"""`headrace study` from its command to its page: real processes, a tiny matrix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.study_run import run_study
from pipeline.study_file import load_study

JOB = """\
name: tiny
sources:
  images: {kind: arrays, path: images.npz}
train: {source: images, chain: [HorizontalFlip, Normalize, ToTensorV2], batch_size: 8}
eval: {source: images, chain: [Normalize, ToTensorV2]}
model: {kind: mlp, width: 8, depth: 6}
optimizer: {kind: sgd, lr: 0.01}
workers: 0
"""
STUDY = """\
name: tiny
job: job.yaml
seeds: [3]
steps: 4
evaluate_every: 0
axes:
  init:
    small: {set: {model.init: {law: normal, std: 0.01}}}
    he: {label: He, set: {model.init: kaiming_normal}}
  chain:
    flipped: {}
    plain: {set: {train.chain: [Normalize, ToTensorV2]}}
claims:
  - {says: He cures it., kind: cures_vanishing, axis: init, before: small, after: [he]}
"""


def study(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "study", "study.yaml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def records(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return sorted(({**line, "cpu_s": 0.0} for line in lines), key=lambda line: json.dumps(line["cell"]))


@pytest.mark.long
def test_a_study_writes_its_page_and_the_number_of_processes_changes_no_record(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images_NHWC = random.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images_NHWC, labels=np.arange(32) % 4)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "study.yaml").write_text(STUDY)

    done = study(tmp_path, "--set", "processes=2")
    assert (0, "") == (done.returncode, done.stderr)
    out = tmp_path / "studies" / "tiny"
    for text in ("He cures it.", "holds", "2 of 2 pairs", "page: studies/tiny/study.html"):
        assert text in " ".join(done.stdout.split()), done.stdout
    page = (out / "study.html").read_text()
    assert "He cures it." in page
    assert 3 == page.count("<svg")
    assert not any(place in page for place in ('src="http', "@import", "<link"))
    found = records(out)
    assert [("he", "flipped"), ("he", "plain"), ("small", "flipped"), ("small", "plain")] == sorted(
        (run["cell"]["chain"], run["cell"]["init"])[::-1]
        for run in found  # type: ignore[index]
    )

    # Without the command and its page: this is about the shares.
    (tmp_path / "alone").mkdir()
    overrides = ["processes=1"]
    run_study(load_study(tmp_path / "study.yaml", overrides), overrides, tmp_path / "alone", lambda steps, ended: None)
    assert found == records(tmp_path / "alone")
