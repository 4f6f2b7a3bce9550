"""The benchmark runs from its command to its table: real processes, all four contenders, a tiny job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

JOB = """\
name: tiny
sources:
  photos: {kind: arrays, path: photos.npz}
train:
  source: photos
  chain: [HorizontalFlip, Normalize, ToTensorV2]
  batch_size: 8
  epochs: 1000000
workers: 2
"""


@pytest.mark.long
def test_the_benchmark_prints_ratios_and_leaves_no_process(tmp_path: Path) -> None:
    """No speed is asserted: other tests share the machine."""
    random = np.random.default_rng(0)
    images_NHWC = random.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=images_NHWC, labels=np.zeros(32, np.int64))
    job, results = tmp_path / "job.yaml", tmp_path / "results.json"
    job.write_text(JOB)
    command = [sys.executable, "-m", "headrace", "bench", str(job), "--own-images", "--json", str(results)]
    windows = ["--rounds", "1", "--seconds", "0.2", "--ignore", "0.1"]
    done = subprocess.run([*command, *windows], capture_output=True, text=True, timeout=240)
    assert (0, "") == (done.returncode, done.stderr)
    for name in ("pipeline / raw limit", "pipeline / DataLoader", "reseeding a sample", "dispatcher's share of a core"):
        assert name in done.stdout
    found = json.loads(results.read_text())
    assert [{"headrace", "raw", "loader", "loader-untuned"}] == [set(entry) for entry in found["rounds"]]
    for entry in found["rounds"]:
        for measured in entry.values():
            assert measured["samples_per_s"] > 0
            assert 2 == len(measured["worker_memory"])
    # Every process of the benchmark has the job's path among its arguments, or a parent that had.
    assert [] == [process.pid for process in psutil.process_iter() if _mentions(process, str(job))]


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return text in process.cmdline()
    except psutil.Error:
        return False
