"""The control: with shuffled labels nothing can be learned, so held-out accuracy stays near chance; with true ones
the same job learns.

That the quickstart itself learns (above 90 % on regions it never saw) is held by test_readme.py: it runs `make demo`.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.processes import lines_of, run_headrace, write_job

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


def digits_job(folder: Path, *, is_shuffled: bool) -> Path:
    """Digits of 8x8 pixels and a small net; the labels of the training side are the true ones, or drawn among them."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images_NHW = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    random_order = np.random.default_rng(0).permutation(1400)
    for part, rows in (("train", slice(0, 1400)), ("held_out", slice(1400, None))):
        true = labels[rows]
        kept = true[random_order] if is_shuffled and part == "train" else true
        np.savez(folder / f"{part}.npz", images=images_NHW[rows], labels=kept)
    chain = [{"Normalize": {"mean": [0.3], "std": [0.35]}}, {"ToTensorV2": {}}]
    return write_job(
        folder,
        sources={part: {"kind": "arrays", "path": f"{part}.npz"} for part in ("train", "held_out")},
        train={"source": "train", "chain": chain, "batch_size": 50, "epochs": 4},
        eval={"source": "held_out", "chain": chain},
        model={"kind": "mlp", "width": 32, "depth": 1},
        optimizer={"kind": "adamw", "lr": 0.005},
        device="cpu",
        seed=1,
    )


@pytest.mark.parametrize(("is_shuffled", "least", "most"), [(False, 0.8, 1.0), (True, 0.0, 0.25)])
def test_digits_are_learned_from_true_labels_only(is_shuffled: bool, least: float, most: float, tmp_path: Path) -> None:
    """Chance is 1/10. What learned from shuffled labels would have seen the held-out ones."""
    job = digits_job(tmp_path, is_shuffled=is_shuffled)
    finished = run_headrace("train", job, "--workers", "1", "--run-dir", "run", folder=tmp_path)
    assert finished.code == 0, finished.err
    evaluations = [line for line in lines_of(tmp_path / "run/journal.jsonl") if line["action"] == "evaluated"]
    assert least <= evaluations[-1]["accuracy"] <= most


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
