"""Evaluation passes come and go for days, so each gives back what it took; and both streams count classes alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.home import Home
from tests.processes import ROOT, run_headrace, write_job

CHAIN = ["Normalize", "ToTensorV2"]

SCRIPT = """
import os, threading
from pathlib import Path
from headrace import Stream

def taken():
    sockets = [path for path in Path(os.environ["XDG_RUNTIME_DIR"]).rglob("eval-*")]
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(sockets)

with Stream("job.yaml") as stream:
    counts = []
    for number in range(8):
        assert sum(len(batch.labels) for batch in stream.evaluate()) > 300
        counts.append(taken())
    half_done = stream.evaluate()
    next(half_done)
print(counts)
assert counts[1] == counts[-1], counts
assert threading.active_count() == 1, threading.enumerate()
"""


def test_an_evaluation_gives_back_its_descriptors_threads_and_sockets(tmp_path: Path) -> None:
    """A pass left half done ends with the stream."""
    write_job(
        tmp_path,
        sources={part: {"kind": "digits", "split": {"part": part}} for part in ("train", "held_out")},
        train={"source": "train", "chain": CHAIN},
        eval={"source": "held_out", "chain": CHAIN, "batch_size": 100},
        workers=1,
    )
    home = Home()
    try:
        environment = {**os.environ, **home.environment, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    finally:
        home.remove()


def test_a_held_out_source_with_other_classes_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Labels are indices: one missing class folder would shift them all, and the accuracy would be a lie."""
    for part, classes in (("train", ("cat", "dog")), ("held_out", ("cat", "dgo"))):
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "0.jpg").write_bytes(b"never decoded")
    job = write_job(
        tmp_path,
        sources={part: {"kind": "folder", "path": part} for part in ("train", "held_out")},
        train={"source": "train", "chain": CHAIN, "batch_size": 2},
        eval={"source": "held_out", "chain": CHAIN},
    )
    for command in (("check", job), ("train", job)):
        finished = run_headrace(*command, folder=tmp_path)
        assert finished.code == 2, json.dumps(finished.err)
        assert "sources.held_out" in finished.err
        assert "with dog" in finished.err
        assert "with dgo" in finished.err
