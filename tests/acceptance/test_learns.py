"""The control: with shuffled labels nothing can be learned, so held-out accuracy stays near chance.

That the quickstart itself learns (above 90 % on regions it never saw) is held by test_readme.py: it runs `make demo`.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from tests.processes import lines_of, run_headrace

ROOT = Path(__file__).resolve().parents[2]


def write_shuffled(folder: Path) -> None:
    """train.csv: a fifth of the demo's training images with labels drawn at random; held_out.csv with the true ones."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for part in ("train", "held_out"):
        images = sorted((ROOT / "demo-data" / part).glob("*/*.jpg"))[::5]
        assert len(images) >= 60, "make install writes demo-data"
        rows[part] = [(str(image), image.parent.name) for image in images]
    labels = [label for _, label in rows["train"]]
    random.Random(0).shuffle(labels)
    rows["train"] = [(path, label) for (path, _), label in zip(rows["train"], labels, strict=True)]
    for part, lines in rows.items():
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *lines])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_shuffled_labels_stay_near_chance(tmp_path: Path) -> None:
    """Chance is 1/6. Held-out images of a class are alike, so accuracy moves by whole classes: the mean over the last
    evaluations is compared, and three classes right of six would already be too many."""
    write_shuffled(tmp_path)
    quickstart = ROOT / "configs" / "jobs" / "quickstart.yaml"
    manifests = {part: {"kind": "manifest", "path": str(tmp_path / f"{part}.csv")} for part in ("train", "held_out")}
    finished = run_headrace(
        *("train", quickstart, "--run-dir", "run", "--set", f"sources.photos={json.dumps(manifests['train'])}"),
        *("--set", f"sources.held_out={json.dumps(manifests['held_out'])}", "--set", "eval.every_steps=10"),
        *("--set", "train.epochs=16", "--set", "health.report=false"),
        folder=tmp_path,
    )
    assert finished.code == 0, finished.err
    evaluations = [line for line in lines_of(tmp_path / "run" / "journal.jsonl") if line["action"] == "evaluated"]
    accuracies = [line["accuracy"] for line in evaluations]
    assert len(accuracies) >= 8
    assert sum(accuracies[-6:]) / 6 < 0.4, accuracies
