"""Gradient health in a real run: a sample that makes the loss NaN is found, named and shown; no checkpoint hides it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint_folder import read_state
from pipeline.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER_INPUT
from tests.home import Home
from tests.processes import lines_of, run_headrace, verdicts_of, write_job

NUM_SAMPLES, BATCH_SIZE, NUM_EPOCHS = 400, 5, 3
SEED = 1
"""Under it the bad steps are far enough apart for a healthy checkpoint between them."""
POISON = 123
"""The sample that the model can't stand: all white."""
FINITE_STEPS = 50
"""That resolve NONFINITE."""
MODEL = """
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, images):
        is_white = images.flatten(1).amin(dim=1, keepdim=True) > 2.0
        return super().forward(images).masked_fill(is_white, float("nan"))

def make(input_shape, num_classes):
    channels, height, width = input_shape
    return Net(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


@pytest.fixture(scope="module")
def run_dir(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to its end of a job with one poisonous sample, met once an epoch."""
    folder = tmp_path_factory.mktemp("a job")
    generator = np.random.default_rng(1)
    images = generator.integers(0, 200, size=(NUM_SAMPLES, 12, 12, 3), dtype=np.uint8)
    images[POISON] = 255
    np.savez(folder / "images.npz", images=images, labels=np.arange(NUM_SAMPLES) % 4)
    (folder / "model.py").write_text(MODEL)
    job = write_job(
        folder,
        sources={"arrays": {"kind": "arrays", "path": str(folder / "images.npz")}},
        train={
            "source": "arrays",
            "chain": [{"HorizontalFlip": {}}, {"Normalize": {}}, {"ToTensorV2": {}}],
            "batch_size": BATCH_SIZE,
            "epochs": NUM_EPOCHS,
        },
        seed=SEED,
        workers=1,
        checkpoint={"every_steps": 10, "keep": 100},
        model={"kind": "factory", "factory": "model.py:make"},
        optimizer={"kind": "sgd", "lr": 0.001},  # at ten times that, steps are too large: CRITICAL too
        device="cpu",
        torch_threads=1,
    )
    finished = run_headrace("train", job, "--run-dir", folder / "run", folder=folder, environment=home.environment)
    assert finished.code == EXIT_DONE, finished.err
    assert "CRITICAL NONFINITE" in finished.out, "told while it runs"
    return folder / "run"


def bad_steps(run_dir: Path) -> list[int]:
    return [line["step"] for line in lines_of(run_dir / "metrics.jsonl") if line["skipped"]]


def test_no_checkpoint_is_called_healthy_before_the_bad_step_is_left_behind(run_dir: Path) -> None:
    """Law: healthy says that no non-finite flag is pending, and nothing else is critical in this run."""
    bad = bad_steps(run_dir)
    assert len(bad) == NUM_EPOCHS, "the sample is met once an epoch"
    seen = []
    for checkpoint in sorted((run_dir / "checkpoints").glob("step-*")):
        state = read_state(checkpoint)
        since = [state["step"] - 1 - step for step in bad if step < state["step"]]
        assert state["healthy"] == all(num_finite >= FINITE_STEPS for num_finite in since), (state["step"], bad)
        seen.append(state["healthy"])
    assert [state for state, _ in groupby(seen)][:3] == [True, False, True], "and it comes back"


def test_the_verdict_names_the_batch_and_the_sample_and_its_command_shows_them(home: Home, run_dir: Path) -> None:
    """From a NaN to the picture of what made it, by copying one command."""
    verdicts = [one for one in verdicts_of(run_dir) if one["id"] == "NONFINITE"]
    lines = {line["step"]: line for line in lines_of(run_dir / "metrics.jsonl")}
    for verdict, step in zip(verdicts, bad_steps(run_dir), strict=False):
        (trace, *_) = verdict["traces"]
        batch: dict[str, Any] = trace["batch"]
        assert trace["step"] == step
        assert {name: batch[name] for name in ("epoch", "recipe", "digest")} == {
            name: lines[step][name] for name in ("epoch", "recipe", "digest")
        }
        worst = trace["worst_samples"][0]
        assert (worst["id"], worst["loss"]) == (str(POISON), "nan")
        if verdict["resolved_at"] is None:  # all ids are of use only as long as somebody looks into it
            assert batch["sample_ids"][worst["index"]] == POISON
    told = (run_dir / "health.json").read_text()
    command = re.search(r"headrace (replay .* --step \d+) --out", told)
    assert command is not None
    shown = run_headrace(*shlex.split(command[1]), folder=run_dir.parent, environment=home.environment)
    assert shown.code == EXIT_DONE, shown.err
    assert "as recorded" in shown.out


def test_the_exit_code_tells_whether_a_critical_verdict_is_open(home: Home, run_dir: Path) -> None:
    """1 while one is, and where to go back to; 0 without."""

    def health(folder: Path) -> Any:
        return run_headrace("health", folder, folder=run_dir.parent, environment=home.environment)

    last = max(bad_steps(run_dir))
    num_finite = len(lines_of(run_dir / "metrics.jsonl")) - 1 - last
    shown = health(run_dir)
    assert shown.code == (EXIT_DONE if num_finite >= FINITE_STEPS else EXIT_FAILED), shown.out
    if shown.code == EXIT_FAILED:
        assert re.search(r"to go back to it: headrace train \S+.* --resume --from \d+ --branch", shown.out)
    assert health(run_dir.parent).code == EXIT_USER_INPUT


@pytest.mark.long
def test_a_run_that_is_not_watched_learns_the_same(home: Home, run_dir: Path) -> None:
    """Watching changes no bit of the weights."""
    unwatched = run_dir.parent / "unwatched"
    options = ("--set", "health.enabled=false", "--run-dir", unwatched)
    job = run_dir.parent / "job.yaml"
    finished = run_headrace("train", job, *options, folder=run_dir.parent, environment=home.environment)
    assert finished.code == EXIT_DONE, finished.err
    assert not (unwatched / "health.json").exists()

    def weights(folder: Path) -> str:
        return str(read_state(max((folder / "checkpoints").glob("step-*")))["weights_sha256"])

    assert weights(unwatched) == weights(run_dir)
