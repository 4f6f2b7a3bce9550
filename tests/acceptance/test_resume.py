"""Checkpoint and exact resume, with real processes: killed, stopped, started twice, out of disk."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint_folder import checkpoint_steps
from tests.home import Home
from tests.processes import Headrace, lines_of, outcome_of, run_headrace, workers, write_job

SLOW = """
import os, time
from albumentations import ImageOnlyTransform

class Slow(ImageOnlyTransform):
    \"\"\"Sets the pace by sleeping, so that there is time to be killed, on any machine.\"\"\"

    def apply(self, img, **params):
        time.sleep(float(os.environ.get("TEST_SLEEP_S", "0")))
        return img
"""
HANGING_NET = """
import pathlib, time
from torch import nn

class Net(nn.Sequential):
    num_steps = 0

    def forward(self, images):
        self.num_steps += 1
        if self.num_steps == 11:
            pathlib.Path("hangs").touch()
            time.sleep(1000)
        return super().forward(images)

def make(input_shape, num_classes):
    return Net(nn.Flatten(), nn.Linear(24 * 20 * 3, num_classes))
"""
TAIL: list[dict[str, Any]] = [{"Normalize": {}}, {"ToTensorV2": {}}]
NUM_STEPS = 60
PACE = {"TEST_SLEEP_S": "0.004"}


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


def resumable_job(folder: Path, arrays: Path, **fields: Any) -> Path:
    """Three epochs of 20 steps with a scheduled swap, judged after each, saved every 7 steps."""
    (folder / "slow.py").write_text(SLOW)
    (folder / "strong.yaml").write_text(
        json.dumps([{"Slow": {"p": 1.0}}, {"HorizontalFlip": {}}, {"Affine": {}}, *TAIL])
    )
    (folder / "weak.yaml").write_text(json.dumps([{"Slow": {"p": 1.0}}, {"VerticalFlip": {}}, *TAIL]))
    job: dict[str, Any] = {
        "sources": {"arrays": {"kind": "arrays", "path": str(arrays)}},
        "plugins": ["slow.py"],
        "train": {
            "source": "arrays",
            "chain": [{"from_epoch": 0, "use": "strong.yaml"}, {"from_epoch": 2, "use": "weak.yaml"}],
            "batch_size": 5,
            "epochs": 3,
        },
        "eval": {"source": "arrays", "chain": TAIL, "batch_size": 50},
        "slice_size": 5,
        "workers": 1,
        "checkpoint": {"every_steps": 7},
        "model": {"kind": "mlp", "width": 8, "depth": 1},
        "schedule": {"kind": "plateau", "patience": 0},
        "clip": {"kind": "norm", "threshold": 1e-4},  # so low that there is a verdict on it
        "health": {"every_steps": 5, "light_every_steps": 1},
        "device": "cpu",
        "torch_threads": 1,
    }
    return write_job(folder, **{**job, **fields})


def num_steps(run_dir: Path) -> int:
    return max((line["step"] + 1 for line in lines_of(run_dir / "metrics.jsonl")), default=0)


def killed_at_random(job: Path, run_dir: Path, home: Home, seed: int, num_kills: int) -> None:
    """The run to its end, its trainer killed at random moments: also while it starts, and while it saves."""
    coin = random.Random(seed)
    for number in range(num_kills + 1):
        options = ["--resume"] if (run_dir / "job.yaml").exists() else []
        train = ("train", job, "--run-dir", run_dir, *options)
        with Headrace(*train, folder=job.parent, environment={**home.environment, **PACE}) as run:
            if number == num_kills:
                ended = run.finish()
                assert ended.code == 0, ended.err
            else:
                reached, more = num_steps(run_dir), coin.randrange(1, 16)
                with contextlib.suppress(AssertionError):  # it may come to its end before
                    run.wait_until(lambda goal=reached + more: num_steps(run_dir) >= goal, f"{more} more steps")
                time.sleep(coin.uniform(0.0, 0.05))
                run.process.kill()
        home.kill_all()


def check_kills_change_nothing(folder: Path, arrays: Path, home: Home, seed: int, num_kills: int) -> None:
    job = resumable_job(folder, arrays)
    killed_at_random(job, folder / "killed", home, seed, num_kills)
    calm = run_headrace("train", job, "--run-dir", folder / "calm", folder=folder, environment=home.environment)
    assert calm.code == 0, calm.err
    expected = outcome_of(folder / "calm")
    assert len(expected["steps"]) == NUM_STEPS
    assert len(expected["evaluations"]) == 3
    assert "CLIP" in {verdict["id"] for verdict in expected["verdicts"]}
    assert outcome_of(folder / "killed") == expected
    assert {line["attempt"] for line in lines_of(folder / "killed/metrics.jsonl")} >= {1, 2}
    home.assert_empty_soon()


@pytest.mark.long
def test_a_trainer_killed_at_random_moments_comes_to_the_same(tmp_path: Path, arrays: Path, home: Home) -> None:
    """Law 5: weights, every step's loss and digest, the evaluations."""
    check_kills_change_nothing(tmp_path, arrays, home, seed=1, num_kills=2)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(10))
def test_a_trainer_killed_again_and_again_comes_to_the_same(
    seed: int, tmp_path: Path, arrays: Path, home: Home
) -> None:
    """The same at full size."""
    check_kills_change_nothing(tmp_path, arrays, home, seed=seed, num_kills=6)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)],
    ids=lambda number: number.name,
)
def test_a_stopped_run_exits_4_with_the_command_that_goes_on(
    number: signal.Signals, tmp_path: Path, arrays: Path, home: Home
) -> None:
    """No step is lost or done twice, and nothing is left behind meanwhile."""
    job, run_dir = resumable_job(tmp_path, arrays), tmp_path / "run"
    environment = {**home.environment, **PACE}
    with Headrace("train", job, "--run-dir", "run", folder=tmp_path, environment=environment) as run:
        run.wait_until(lambda: num_steps(run_dir) > 10, "ten steps")
        run.process.send_signal(number)
        stopped = run.finish()
    home.assert_empty_soon()
    assert stopped.code == 4, stopped.err
    done = num_steps(run_dir)
    assert checkpoint_steps(run_dir / "checkpoints")[-1] == done < NUM_STEPS
    assert f"stopped by {number.name} after step {done} of {NUM_STEPS}" in stopped.err
    (command,) = [line for line in stopped.err.splitlines() if "to go on:" in line]
    words = shlex.split(command.partition("to go on:")[2])
    assert words[:2] == ["headrace", "train"]
    resumed = run_headrace(*words[1:], folder=tmp_path, environment=home.environment)
    assert resumed.code == 0, resumed.err
    assert "goes on from checkpoints/step-" in resumed.out
    assert len(lines_of(run_dir / "metrics.jsonl")) == NUM_STEPS
    home.assert_empty_soon()


@pytest.mark.long
def test_a_stop_ends_the_wait_for_a_batch(tmp_path: Path, arrays: Path, home: Home) -> None:
    """A run whose workers hang need not wait for its stall timeout; nor one whose workers can't even begin."""
    job, run_dir = resumable_job(tmp_path, arrays), tmp_path / "run"
    with Headrace("train", job, "--run-dir", run_dir, folder=tmp_path, environment={**home.environment, **PACE}) as run:
        run.wait_until(lambda: num_steps(run_dir) > 3, "three steps")
        for process in workers(run.pid):
            process.suspend()
        done = 0
        while done < (done := num_steps(run_dir)):
            time.sleep(0.5)
        run.process.send_signal(signal.SIGTERM)
        stopped = run.finish(30.0)
    assert stopped.code == 4, stopped.err
    assert f"stopped by SIGTERM after step {done} of {NUM_STEPS}" in stopped.err
    home.assert_empty_soon()
    stuck = {**home.environment, "TEST_SLEEP_S": "60"}
    with Headrace("train", job, "--run-dir", run_dir, "--resume", folder=tmp_path, environment=stuck) as run:
        run.wait_until(lambda: has_resumed(run_dir) and bool(workers(run.pid)), "its services")
        run.process.send_signal(signal.SIGTERM)
        stopped = run.finish(30.0)
    assert stopped.code == 4, stopped.err
    assert "stopped by SIGTERM before its next step" in stopped.err
    assert num_steps(run_dir) == done
    home.assert_empty_soon()


@pytest.mark.long
def test_a_stop_that_takes_longer_than_its_grace_ends_without_a_checkpoint(
    tmp_path: Path, arrays: Path, home: Home
) -> None:
    """A step that hangs must not keep a machine that is to be shut down."""
    (tmp_path / "net.py").write_text(HANGING_NET)
    model = {"kind": "factory", "factory": "net.py:make"}
    job = resumable_job(tmp_path, arrays, workers=0, model=model, checkpoint={"every_steps": 7, "grace_s": 0.5})
    with Headrace("train", job, "--run-dir", "run", folder=tmp_path, environment=home.environment) as run:
        run.wait_until(lambda: (tmp_path / "hangs").exists(), "the step that hangs")
        run.process.send_signal(signal.SIGTERM)
        ended = run.finish(30.0)
    assert ended.code == 130, ended.err
    assert "not stopped within checkpoint.grace_s (0.5 s)" in ended.err
    assert checkpoint_steps(tmp_path / "run/checkpoints") == [7]
    home.assert_empty_soon()


def has_resumed(run_dir: Path) -> bool:
    return any(line["action"] == "resumed" for line in lines_of(run_dir / "journal.jsonl"))


@pytest.mark.long
def test_of_two_resumes_at_once_one_is_refused(tmp_path: Path, arrays: Path, home: Home) -> None:
    job, run_dir = resumable_job(tmp_path, arrays), tmp_path / "run"
    first = run_headrace("train", job, "--run-dir", run_dir, folder=tmp_path, environment=home.environment)
    assert first.code == 0, first.err
    (tmp_path / "second").mkdir()
    resume = ("train", job, "--run-dir", run_dir, "--resume", "--set", "train.epochs=5")
    with (
        Headrace(*resume, folder=tmp_path, environment=home.environment) as one,
        Headrace(*resume, folder=tmp_path / "second", environment=home.environment) as other,
    ):
        ended = sorted((one.finish(), other.finish()), key=lambda each: each.code)
    assert [each.code for each in ended] == [0, 2], [each.err for each in ended]
    assert "a run that is going on (process" in ended[1].err
    assert sorted(line["step"] for line in lines_of(run_dir / "metrics.jsonl")) == list(range(100))


@pytest.mark.long
def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(tmp_path: Path, arrays: Path, home: Home) -> None:
    """A limit on the size of a file stands for the disk: metrics.jsonl reaches it in the middle of the run."""
    job, run_dir = resumable_job(tmp_path, arrays, workers=0), tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        full = run_headrace("train", job, "--run-dir", run_dir, folder=tmp_path, environment=home.environment)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.code == 1, full.err
    assert f"headrace: {run_dir}" in full.err
    assert "can't be written: File too large" in full.err
    assert "Traceback" not in full.err
    assert 0 < num_steps(run_dir) < NUM_STEPS
    resumed = run_headrace(
        "train", job, "--run-dir", run_dir, "--resume", folder=tmp_path, environment=home.environment
    )
    assert resumed.code == 0, resumed.err
    calm = run_headrace("train", job, "--run-dir", tmp_path / "calm", folder=tmp_path, environment=home.environment)
    assert calm.code == 0, calm.err
    assert outcome_of(run_dir) == outcome_of(tmp_path / "calm")


@pytest.mark.long
def test_going_back_keeps_what_came_later_in_a_branch(tmp_path: Path, arrays: Path, home: Home) -> None:
    job, run_dir = resumable_job(tmp_path, arrays, workers=0), tmp_path / "run"

    def train(*options: str) -> tuple[int, str]:
        ended = run_headrace(
            "train", job, "--run-dir", run_dir, *options, folder=tmp_path, environment=home.environment
        )
        return ended.code, ended.err

    assert train() == (0, "")
    before = outcome_of(run_dir)
    code, err = train("--resume", "--from", "49")
    assert (code, "--branch" in err) == (2, True), err
    assert outcome_of(run_dir) == before
    # A checkpoint that is further back than any that is kept is the beginning itself.
    code, err = train("--resume", "--from", "0", "--branch", "--set", "train.batch_size=10")
    assert code == 0, err
    assert len(lines_of(run_dir / "branch-1/metrics.jsonl")) == NUM_STEPS
    assert checkpoint_steps(run_dir / "branch-1/checkpoints") == [49, 56, 60]
    assert num_steps(run_dir) == 30
    code, err = train("--resume", "--from", "21", "--branch", "--set", "train.batch_size=10")
    assert code == 0, err
    assert [line["step"] for line in lines_of(run_dir / "branch-2/metrics.jsonl")] == list(range(21, 30))
    assert num_steps(run_dir) == 30
    home.assert_empty_soon()


@pytest.mark.long
def test_an_earlier_runs_timeline_gives_its_batches_again(tmp_path: Path, arrays: Path, home: Home) -> None:
    """Though the job's own chain files have changed since; and a timeline that fits no such job is refused."""
    job, run_dir = resumable_job(tmp_path, arrays, workers=0), tmp_path / "run"
    environment = home.environment
    first = run_headrace("train", job, "--run-dir", run_dir, folder=tmp_path, environment=environment)
    assert first.code == 0, first.err
    (tmp_path / "weak.yaml").write_text(json.dumps([{"Slow": {"p": 1.0}}, *TAIL]))
    options = ("--run-dir", tmp_path / "again", "--timeline", run_dir / "timeline.jsonl")
    refused = run_headrace(
        "train", job, *options, "--set", "train.batch_size=10", folder=tmp_path, environment=environment
    )
    assert refused.code == 2
    assert "timeline.jsonl: step 0\n  expected: batch size 10" in refused.err
    again = run_headrace("train", job, *options, folder=tmp_path, environment=environment)
    assert again.code == 0, again.err
    assert outcome_of(tmp_path / "again") == outcome_of(run_dir)
