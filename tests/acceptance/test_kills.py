"""SIGKILL: of workers, the pool or the dispatcher, where nothing may change."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.processes import Headrace, descendants, dispatchers, lines_of, pools, run_headrace, workers, write_job

SLOW = """
import os, time
from albumentations import ImageOnlyTransform

class Slow(ImageOnlyTransform):
    \"\"\"Sets the pace by sleeping, so that a run lasts its time on any machine and leaves the cores to others.\"\"\"

    def apply(self, img, **params):
        time.sleep(float(os.environ.get("TEST_SLEEP_S", "0")))
        return img
"""
SLEEP_S = 0.002
SAMPLES_PER_S = 2 / SLEEP_S
"""What two workers reach at most."""


def slow_job(folder: Path, arrays: Path, num_epochs: int) -> Path:
    (folder / "slow.py").write_text(SLOW)
    return write_job(
        folder,
        sources={"arrays": {"kind": "arrays", "path": str(arrays)}},
        plugins=["slow.py"],
        train={
            "source": "arrays",
            "chain": [
                {"Slow": {"p": 1.0}},
                {"HorizontalFlip": {}},
                {"Affine": {}},
                {"Normalize": {}},
                {"ToTensorV2": {}},
            ],
            "batch_size": 20,
            "epochs": num_epochs,
        },
        slice_size=5,
        window_batches=4,
        model={"kind": "mlp", "width": 8, "depth": 1},
        device="cpu",
        torch_threads=1,
    )


def outcome(run_dir: Path) -> tuple[list[str], str]:
    """The batch digests, and the final weights' digest."""
    *_, checkpoint = sorted((run_dir / "checkpoints").glob("step-*"))
    state = msgspec.json.decode((checkpoint / "state.json").read_bytes())
    return [line["digest"] for line in lines_of(run_dir / "metrics.jsonl")], state["weights_sha256"]


def train_under_fire(job: Path, run_dir: Path, every_s: float) -> int:
    """Train while a random worker is killed every so often; the number of kills."""
    environment = {"TEST_SLEEP_S": str(SLEEP_S)}
    coin = random.Random(1)
    num_kills = 0
    with Headrace(
        "train", job, "--workers", "2", "--run-dir", run_dir, folder=job.parent, environment=environment
    ) as run:
        run.wait_until(lambda: bool(lines_of(run_dir / "metrics.jsonl")), "the first step")
        while run.is_running:
            time.sleep(every_s)
            if living := workers(run.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    coin.choice(living).kill()
                    num_kills += 1
        ended = run.finish()
    assert ended.code == 0, ended.err
    return num_kills


def check_kills_change_nothing(folder: Path, arrays: Path, seconds: float) -> None:
    job = slow_job(folder, arrays, num_epochs=int(seconds * SAMPLES_PER_S / 100))
    num_kills = train_under_fire(job, folder / "under-fire", every_s=1.0)
    assert num_kills >= seconds / 2
    calm = run_headrace("train", job, "--workers", "1", "--run-dir", folder / "calm", folder=folder)
    assert calm.code == 0, calm.err
    assert outcome(folder / "calm") == outcome(folder / "under-fire")
    assert lines_of(folder / "under-fire" / "quarantine.jsonl") == []


def test_killing_a_worker_every_second_changes_neither_batches_nor_weights(tmp_path, arrays):
    """Laws 2 and 5, at smoke size: workers own nothing."""
    check_kills_change_nothing(tmp_path, arrays, seconds=4)


@pytest.mark.long
def test_killing_a_worker_every_second_for_a_minute_changes_nothing(tmp_path, arrays):
    """The same at full size."""
    check_kills_change_nothing(tmp_path, arrays, seconds=60)


@pytest.mark.long
@pytest.mark.parametrize(("find", "name"), [(dispatchers, "headrace pipeline"), (pools, "headrace workers")])
def test_a_killed_service_is_started_again_and_the_journal_says_so(tmp_path, arrays, find, name):
    """The user finds out what happened, and finds that it changed nothing."""
    job = slow_job(tmp_path, arrays, num_epochs=20)
    environment = {"TEST_SLEEP_S": str(SLEEP_S)}
    run_dir = tmp_path / "killed"
    with Headrace(
        "train", job, "--workers", "2", "--run-dir", run_dir, folder=tmp_path, environment=environment
    ) as run:
        run.wait_until(lambda: bool(lines_of(run_dir / "metrics.jsonl")), "the first step")
        (service,) = find(run.pid)
        service.kill()
        started = descendants(run.pid)
        ended = run.finish()
        _, alive = psutil.wait_procs(started, timeout=5.0)
    assert ended.code == 0, ended.err
    assert alive == []
    notes = [line["note"] for line in lines_of(run_dir / "journal.jsonl") if line["action"] == "service_trouble"]
    assert any(f"`{name}` ended by SIGKILL; it is started again" in note for note in notes), notes
    calm = run_headrace("train", job, "--workers", "1", "--run-dir", tmp_path / "calm", folder=tmp_path)
    assert calm.code == 0, calm.err
    assert outcome(tmp_path / "calm") == outcome(run_dir)
