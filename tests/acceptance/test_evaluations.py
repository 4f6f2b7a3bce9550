"""Evaluation passes come and go for days, so each gives back what it took; and both streams count classes alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.beginning import begin_new, begin_resumed
from headrace.embedded import open_streams
from pipeline.config import load_job
from tests.home import Home
from tests.processes import ROOT, lines_of, run_headrace, write_job
from trainer.loop import train
from trainer.record import Progress

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


@pytest.mark.long
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


@pytest.mark.long
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


SHELF = """
import pathlib
import numpy as np
from pipeline.sources.protocol import RawSample

class Shelf:
    classes = ("a", "b")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)

    def __init__(self, stuck):
        self.fingerprint, self.stuck = stuck * 8, pathlib.Path(__file__).with_name(stuck)

    def __len__(self):
        return 24

    def read(self, index):
        if index == 7 and self.stuck.is_file():
            raise OSError(5, "Input/output error")
        return RawSample(self.images[index], index % 2)

    def describe(self, index):
        return f"shelf[{index}]"
"""


class Killed(BaseException):
    """What SIGKILL is to a test in one process."""


def attempt(job_path: Path, run_dir: Path, unreadable_from: int, killed_after: int) -> dict[int, float]:
    """The losses of an attempt's evaluations, by step; from a step on a held-out sample can't be read."""
    stuck, job = job_path.with_name("stuck"), load_job(job_path)
    stuck.unlink(missing_ok=True)

    def on_progress(progress: Progress) -> None:
        if progress.num_steps_done == unreadable_from:
            stuck.touch()
        if progress.num_steps_done == killed_after:
            raise Killed

    if run_dir.exists():
        begun = begin_resumed(job, run_dir, from_step=None, is_branch=False, accept_changes=False)
    else:
        begun = begin_new(job, run_dir)
    number = begun.folder.attempt
    with begun.folder as folder, open_streams(job, 0, folder, start=begun.start) as streams:
        if killed_after:
            with pytest.raises(Killed):
                train(job, streams, folder, on_progress, begun.resumed)
        else:
            train(job, streams, folder, on_progress, begun.resumed)
    events = [line for line in lines_of(run_dir / "journal.jsonl") if line["action"] == "evaluated"]
    return {event["step"]: event["loss"] for event in events if event["attempt"] == number}


def test_an_evaluation_that_is_done_again_has_the_samples_that_it_had(tmp_path: Path) -> None:
    """Law 5: what could not be read at step 20 was read at step 10, though the run goes on from step 8."""
    (tmp_path / "shelf.py").write_text(SHELF)
    job = write_job(
        tmp_path,
        sources={
            name: {"kind": "plugin", "factory": "shelf.py:Shelf", "options": {"stuck": stuck}}
            for name, stuck in {"shelf": "never", "held": "stuck"}.items()
        },
        train={"source": "shelf", "chain": CHAIN, "batch_size": 8, "epochs": 10},
        eval={"source": "held", "chain": CHAIN, "every_steps": 10},
        checkpoint={"every_steps": 8},
        model={"kind": "mlp", "width": 8, "depth": 1},
        schedule={"kind": "plateau", "patience": 0},
        device="cpu",
        torch_threads=1,
    )
    first = attempt(job, tmp_path / "run", unreadable_from=15, killed_after=22)
    for checkpoint in (tmp_path / "run/checkpoints").glob("step-*16"):  # killed while it was written
        checkpoint.rename(checkpoint.with_name(".partial-" + checkpoint.name))
    (entry,) = lines_of(tmp_path / "run/quarantine.jsonl")
    assert (entry["stream"], entry["step"], entry["index"]) == ("eval", 20, 7)

    again = attempt(job, tmp_path / "run", unreadable_from=0, killed_after=0)

    assert list(first) == [10, 20]
    assert list(again) == [10, 20, 30]
    assert again.items() >= first.items()
