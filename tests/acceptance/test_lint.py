"""Lint and LSUV in a real run: told before the first step, without a trace in the weights, and never on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.embedded import open_streams
from pipeline.checkpoint_folder import checkpoint_steps, read_state
from pipeline.config import dump_job, load_job
from pipeline.run_folder import RunFolder
from tests.processes import Finished, lines_of, run_headrace, write_job
from trainer.loop import train

NET = """
from torch import nn

def make(input_shape, num_classes):
    # Dropout: a draw too many before the first step would change every step.
    deep = [part for _ in range(8) for part in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(nn.Flatten(), nn.Linear(24 * 20 * 3, 32), *deep, nn.Dropout(0.2), nn.Linear(32, num_classes))
"""
CHAIN: list[Any] = ["HorizontalFlip", "Normalize", "ToTensorV2"]


def job_of(folder: Path, arrays: Path) -> Path:
    """Five steps an epoch, in one process."""
    (folder / "net.py").write_text(NET)
    return write_job(
        folder,
        name="linted",
        sources={"arrays": {"kind": "arrays", "path": str(arrays)}},
        train={"source": "arrays", "chain": CHAIN, "batch_size": 20},
        model={"kind": "factory", "factory": "net.py:make"},
        workers=0,
        device="cpu",
        torch_threads=1,
    )


def trained(folder: Path, name: str, *options: str) -> Finished:
    ended = run_headrace("train", folder / "job.yaml", "--run-dir", folder / name, *options, folder=folder)
    assert ended.code == 0, ended.err
    return ended


def weights_of(run_dir: Path) -> str:
    newest = checkpoint_steps(run_dir / "checkpoints")[-1]
    return str(read_state(run_dir / "checkpoints" / f"step-{newest:08}")["weights_sha256"])


def events_of(run_dir: Path, action: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(run_dir / "journal.jsonl") if line.get("action") == action]


def test_a_run_with_lint_ends_in_the_weights_of_one_without(tmp_path: Path, arrays: Path) -> None:
    """It warns, with the settings to try, before step 1."""
    path = job_of(tmp_path, arrays)
    with_lint = trained(tmp_path, "with")
    assert "CRITICAL VANISH_BWD" in with_lint.out
    assert "--set model.init=auto" in with_lint.out
    assert with_lint.out.index("lint: ") < with_lint.out.index("step 1/")
    (event,) = events_of(tmp_path / "with", "lint")
    assert event["overrides"] == ["model.activation={name: relu, replace: [sigmoid]}", "model.init=auto"]

    job = load_job(path, ["health.lint=false"])
    with (
        RunFolder.create(tmp_path / "without", dump_job(job.config)) as folder,
        open_streams(job, 0, folder) as streams,
    ):
        train(job, streams, folder, lambda progress: None)
    assert events_of(tmp_path / "without", "lint") == []
    assert weights_of(tmp_path / "with") == weights_of(tmp_path / "without")


@pytest.mark.long
def test_a_resumed_run_keeps_its_weights_and_is_not_looked_at_again(tmp_path: Path, arrays: Path) -> None:
    """LSUV and lint happen once; an epoch and then another is two epochs."""
    job_of(tmp_path, arrays)
    lsuv = ("--set", "model.init=lsuv")
    trained(tmp_path, "whole", *lsuv, "--set", "train.epochs=2")
    trained(tmp_path, "parts", *lsuv)
    resumed = trained(tmp_path, "parts", *lsuv, "--resume", "--accept-changes", "--set", "train.epochs=2")
    assert len(lines_of(tmp_path / "parts" / "metrics.jsonl")) == 10
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "parts")
    (event,) = events_of(tmp_path / "parts", "lsuv")
    assert all(abs(layer["std_after"] - 1.0) <= 0.1 for layer in event["layers"])
    assert len(events_of(tmp_path / "parts", "lint")) == 1
    assert "lint: " not in resumed.out
    assert "lsuv: " not in resumed.out
