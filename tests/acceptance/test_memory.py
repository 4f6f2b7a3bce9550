"""Memory: set by the window, not by the epochs, the epoch's length or a slow trainer."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from headrace import Stream
from pipeline.digests import batch_digest, sample_digest
from tests.home import Home, small_job
from tests.processes import ROOT, Headrace, workers

MIB = 1 << 20
SLACK_NBYTES = 8 * MIB
"""What an allocator may add once: arenas and caches that are not trimmed. A leak of a batch a step exceeds it in the
smoke test, one of 20 kB (a fifth of a batch) over 20 whole epochs, one of 800 bytes over 500, a window that is not kept
in a quarter of a second."""
LABEL_NBYTES = 4
STREAMING = """\
import json, sys, psutil
from headrace import Stream
from tests.processes import workers

with Stream("job.yaml", workers=1) as stream:
    batches = iter(stream)
    next(batches)
    trainer = psutil.Process()
    team = [trainer, *workers(trainer.pid)]
    largest = [0] * len(team)
    for _ in range(int(sys.argv[1])):
        next(batches)
        largest = [max(before, each.memory_info().rss) for before, each in zip(largest, team)]
print(json.dumps(largest))
"""
"""A trainer in a process of its own, as pytest's has the images of its tests in it."""
WINDOW = 4
SIDE, BATCH_SIZE = 64, 32
BATCH_NBYTES = BATCH_SIZE * SIDE * SIDE * 3


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Also for streams that are opened in this process."""
    home = Home()
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    yield home
    home.remove()


def rss_nbytes(*processes: psutil.Process) -> int:
    return sum(process.memory_info().rss for process in processes)


def training_rss(folder: Path, home: Home, *, num_samples: int, epochs: int, first_step: int) -> list[int]:
    """RSS of trainer and worker together, looked at from `first_step` to the run's end."""
    job = small_job(folder, num_samples=num_samples, epochs=epochs)
    num_steps = epochs * num_samples // BATCH_SIZE
    rows = folder / "run/metrics.jsonl"
    seen: list[int] = []
    team: list[psutil.Process] = []
    with Headrace(
        *("train", job, "--workers", "1", "--run-dir", "run", "--set", "health.report=false"),
        folder=folder,
        environment=home.environment,
    ) as run:
        while run.is_running:
            num_steps_done = rows.read_bytes().count(b"\n") if rows.exists() else 0
            if len(team) != 2:
                team = [psutil.Process(run.pid), *workers(run.pid)]
            elif first_step <= num_steps_done < num_steps - 1:
                try:
                    seen.append(rss_nbytes(*team))
                except psutil.NoSuchProcess:
                    break  # it ended between two looks
            time.sleep(0.02)
        finished = run.finish()
    assert finished.code == 0, finished.err
    return seen


def assert_flat_over(epochs: int, home: Home, folder: Path, *, num_samples: int = 1024) -> None:
    # A tenth of the run to warm up: torch's allocator and the order's cache fill in the first epochs.
    first_step = epochs * num_samples // BATCH_SIZE // 10
    seen = training_rss(folder, home, num_samples=num_samples, epochs=epochs, first_step=first_step)
    assert len(seen) >= 9, f"too few looks to tell: {len(seen)}"
    third = len(seen) // 3
    early, late = statistics.median(seen[:third]), statistics.median(seen[-third:])
    assert late - early < SLACK_NBYTES, f"{early / MIB:.1f} MiB grew to {late / MIB:.1f} MiB"


def test_memory_is_flat_over_small_epochs(home: Home, tmp_path: Path) -> None:
    """20 epochs of 16 steps: what an epoch's end leaves behind, and a batch a step."""
    assert_flat_over(20, home, tmp_path, num_samples=512)


@pytest.mark.long
def test_memory_is_flat_over_the_epochs(home: Home, tmp_path: Path) -> None:
    """A job of days would die of the smallest leak a step."""
    assert_flat_over(20, home, tmp_path)


@pytest.mark.long
def test_memory_is_flat_over_many_epochs(home: Home, tmp_path: Path) -> None:
    """The same over 500 epochs, 16,000 steps."""
    assert_flat_over(500, home, tmp_path)


def streaming_rss(folder: Path, home: Home, *, num_samples: int, num_batches: int) -> tuple[int, int]:
    """Largest RSS of trainer and of worker over these batches of a source of this size."""
    folder.mkdir()
    small_job(folder, num_samples=num_samples, side=2)
    command = [sys.executable, "-c", STREAMING, str(num_batches)]
    environment = {**os.environ, **home.environment, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    trainer, worker = json.loads(ended.stdout)
    return trainer, worker


@pytest.mark.long
def test_memory_does_not_depend_on_the_epochs_length(home: Home, tmp_path: Path) -> None:
    """The order is a bijection, not a list: 2,000 times the samples, and only the labels grow, in trainer and worker.
    A list of the epoch's order would take 16 MB and more."""
    small, large = 1_000, 2_000_000
    few, many = (
        streaming_rss(tmp_path / str(number), home, num_samples=number, num_batches=200) for number in (small, large)
    )
    for who, before, after in zip(("trainer", "worker"), few, many, strict=True):
        grown = after - before
        assert grown < (large - small) * LABEL_NBYTES + SLACK_NBYTES, f"{who}: {grown / MIB:.1f} MiB more"


def assert_a_pause_grows_nothing(pause_s: float, home: Home, folder: Path) -> None:
    # Untransformed images: one worker makes some 50 MB a second of them, a dozen windows.
    job = small_job(folder, num_samples=512, side=SIDE, normalise=False)
    with Stream(job, [f"window_batches={WINDOW}"], workers=1) as stream:
        batches = iter(stream)
        for _ in range(20):
            next(batches)
        team = [psutil.Process(), *workers(psutil.Process().pid)]
        assert len(team) == 2
        before = rss_nbytes(*team)
        time.sleep(pause_s)
        grown = rss_nbytes(*team) - before
        waiting = len(stream._streams.train._receiver._placing._batches)  # type: ignore[attr-defined]
        assert waiting == WINDOW, "batches that wait for the loop"
        assert grown < WINDOW * BATCH_NBYTES + SLACK_NBYTES, f"grew by {grown / MIB:.1f} MiB"
        for step in range(20, 60):
            assert next(batches).step == step


@pytest.mark.long
def test_a_trainer_that_pauses_makes_nothing_grow_past_the_window(home: Home, tmp_path: Path) -> None:
    """An evaluation, a checkpoint or a debugger may stop the loop; workers must wait, not pile up."""
    assert_a_pause_grows_nothing(3.0, home, tmp_path)


@pytest.mark.long
def test_a_trainer_that_pauses_for_long_makes_nothing_grow_past_the_window(home: Home, tmp_path: Path) -> None:
    """The same over 20 s."""
    assert_a_pause_grows_nothing(20.0, home, tmp_path)


@pytest.mark.parametrize("num_batches", [20, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_that_a_user_keeps_keep_their_bytes(
    num_workers: int, num_batches: int, home: Home, tmp_path: Path
) -> None:
    """Memory is used again only when nobody looks into it. Without Normalize the tensors are the wire's own bytes."""
    job = small_job(tmp_path, side=8, normalise=False)
    with Stream(job, workers=num_workers) as stream:
        batches = iter(stream)
        kept = [next(batches) for _ in range(num_batches)]
    for batch in kept:
        images = map(np.ascontiguousarray, batch.images.numpy())
        digests = [*map(sample_digest, images, batch.labels.tolist())]
        assert batch_digest(digests, batch.labels.numpy(), batch.sample_ids.numpy()) == batch.digest


@pytest.mark.long
def test_200_normalised_batches_that_a_user_keeps_keep_their_values(home: Home, tmp_path: Path) -> None:
    """Finished tensors stand in buffers of their own."""
    with Stream(small_job(tmp_path, side=8), workers=1) as stream:
        batches = iter(stream)
        kept: list[tuple[torch.Tensor, str]] = []
        for _ in range(200):
            images = next(batches).images
            kept.append((images, checksum(images)))
    assert [checksum(images) for images, _ in kept] == [at_delivery for _, at_delivery in kept]
    assert len({at_delivery for _, at_delivery in kept}) == 200


def checksum(images: torch.Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
