"""Samples that kill or stall their worker: named, and handled by the job's policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import lines_of, run_headrace, write_job
from trainer.policy import NOT_KNOWN

NUM_SAMPLES = 48
POISONED = 17

SOURCE = '''
import errno, os, signal, time
import numpy as np
from pipeline.errors import SampleError
from pipeline.order import Order
from pipeline.sources.protocol import RawSample

class Source:
    """Small images; reading a poisoned one kills or stalls the process, or gives bytes that a transform dies of."""
    classes = ("even", "odd")
    fingerprint = "poison"

    def __init__(self, how):
        self.how = how
        order = Order(48, seed=3, shuffle=True)
        (key,) = [key for key in order.keys(0, 48) if key.sample_index == 17]
        self.substitute = order.substitute(key, 1).sample_index

    def __len__(self):
        return 48

    def describe(self, index):
        return f"shelf/{index:03}.raw"

    def read(self, index):
        image = np.full((8, 8, 3), index, np.uint8)
        how = dict(zip((17, 30), self.how.split())).get(index)
        if how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        while how == "loop":
            time.sleep(0.01)
        if how == "torn,":
            raise SampleError("cut short")
        if index == self.substitute and self.how == "torn, its substitute unreadable":
            raise OSError(errno.EIO, "disk error")
        if index == self.substitute and self.how == "torn, its substitute deadly":
            os.kill(os.getpid(), signal.SIGSEGV)
        return RawSample(image, index % 2)
'''

TRANSFORM = """
import os, signal
from albumentations import ImageOnlyTransform

class Brittle(ImageOnlyTransform):
    def apply(self, img, **params):
        if (img == 17).all():
            os.kill(os.getpid(), signal.SIGSEGV)
        return img
"""


def poisoned_job(folder: Path, how: str, policy: str = "substitute", transform: str = "HorizontalFlip") -> Path:
    (folder / "shelf.py").write_text(SOURCE)
    (folder / "brittle.py").write_text(TRANSFORM)
    return write_job(
        folder,
        sources={"shelf": {"kind": "plugin", "factory": "shelf.py:Source", "options": {"how": how}}},
        plugins=["brittle.py"],
        train={
            "source": "shelf",
            "chain": [{transform: {"p": 1.0}}, {"Normalize": {}}, {"ToTensorV2": {}}],
            "batch_size": 8,
        },
        slice_size=4,
        on_bad_sample=policy,
        hang_s=1.0,
        model={"kind": "mlp", "width": 4, "depth": 1},
        device="cpu",
        seed=3,
    )


def train(job: Path, num_workers: int = 2):
    run_dir = job.parent / f"run-{num_workers}"
    ended = run_headrace("train", job, "--workers", str(num_workers), "--run-dir", run_dir, folder=job.parent)
    return ended, run_dir


def quarantined(run_dir: Path):
    """The one quarantine entry; the journal must tell the same."""
    (entry,) = lines_of(run_dir / "quarantine.jsonl")
    (event,) = [line for line in lines_of(run_dir / "journal.jsonl") if line["action"] == "bad_sample"]
    for key in ("position", "index", "name", "cause"):
        assert entry[key] == event[key]
    return entry


def digests(run_dir: Path):
    return [line["digest"] for line in lines_of(run_dir / "metrics.jsonl")]


def test_a_sample_that_crashes_its_reader_and_one_that_loops_in_it_are_named_and_substituted(tmp_path):
    """The two in one run, the second after workers have died of the first."""
    ended, run_dir = train(poisoned_job(tmp_path, "segfault loop"))
    assert ended.code == 0, ended.err
    causes = {entry["name"]: entry["cause"] for entry in lines_of(run_dir / "quarantine.jsonl")}
    assert {"shelf/017.raw", "shelf/030.raw"} == set(causes)
    assert "SIGSEGV" in causes["shelf/017.raw"]
    assert "hung: no progress for 1 s" in causes["shelf/030.raw"]
    assert all("shelf.py" in cause for cause in causes.values())
    assert len(digests(run_dir)) == NUM_SAMPLES // 8


@pytest.mark.long
def test_a_sample_that_crashes_its_reader_is_substituted_alike_for_one_and_two_workers(tmp_path):
    """Law 7, and law 1 even then: the substitute is a function of the coordinates."""
    job = poisoned_job(tmp_path, "segfault")
    runs = []
    for num_workers in (1, 2):
        ended, run_dir = train(job, num_workers)
        assert ended.code == 0, ended.err
        entry = quarantined(run_dir)
        assert entry["name"] == "shelf/017.raw"
        assert entry["index"] == POISONED
        assert "SIGSEGV" in entry["cause"]
        assert "shelf.py" in entry["cause"]
        assert "in read" in entry["cause"]
        runs.append(digests(run_dir))
    assert len(runs[0]) == NUM_SAMPLES // 8
    assert runs[0] == runs[1]


@pytest.mark.long
def test_a_transform_that_crashes_on_one_sample_is_named_with_that_sample(tmp_path):
    """The user must learn which transform and which sample to look at."""
    ended, run_dir = train(poisoned_job(tmp_path, "nothing", transform="Brittle"))
    assert ended.code == 0, ended.err
    entry = quarantined(run_dir)
    assert entry["name"] == "shelf/017.raw"
    assert "SIGSEGV" in entry["cause"]
    assert "brittle.py" in entry["cause"]
    assert len(digests(run_dir)) == NUM_SAMPLES // 8


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "num_workers", "why"),
    [
        ("torn, its substitute unreadable", 0, "disk error"),
        ("torn, its substitute unreadable", 1, "disk error"),
        ("torn, its substitute deadly", 2, "killed by SIGSEGV"),
    ],
)
def test_a_bad_sample_and_its_substitute_that_is_lost_are_each_named_with_their_own_fault(
    tmp_path, how, num_workers, why
):
    """Who repairs the data by these names must not be sent to a file that has another fault, or none."""
    ended, run_dir = train(poisoned_job(tmp_path, how), num_workers)
    assert ended.code == 0, ended.err
    told = [line for line in lines_of(run_dir / "journal.jsonl") if line["action"] == "bad_sample"]
    (torn,) = [line for line in told if line["index"] == POISONED]
    lost = [line for line in told if line["index"] != POISONED]
    assert not torn["was_substitute"]
    assert torn["cause"] == ("cut short" if why == "disk error" else NOT_KNOWN)
    assert sorted(line["was_substitute"] for line in lost) == [False, True]  # it has a place of its own, too
    assert len({line["name"] for line in lost}) == 1
    assert all(why in line["cause"] for line in lost)
    assert torn["position"] in {line["position"] for line in lost}
    entries = lines_of(run_dir / "quarantine.jsonl")
    assert {(line["position"], line["name"]) for line in entries} == {(line["position"], line["name"]) for line in lost}


@pytest.mark.long
def test_a_sample_that_loops_for_ever_is_named_and_substituted(tmp_path):
    """Without a limit (hang_s) one sample would stop a run of days."""
    ended, run_dir = train(poisoned_job(tmp_path, "loop"))
    assert ended.code == 0, ended.err
    entry = quarantined(run_dir)
    assert entry["name"] == "shelf/017.raw"
    assert "hung: no progress for 1 s" in entry["cause"]
    assert "shelf.py" in entry["cause"]
    assert len(digests(run_dir)) == NUM_SAMPLES // 8


@pytest.mark.long
@pytest.mark.parametrize(("how", "why"), [("segfault", "killed by SIGSEGV"), ("loop", "hung: no progress for 1 s")])
def test_under_fail_a_deadly_sample_ends_the_run_and_is_named(tmp_path, how, why):
    """Exit code 1, with sample, reason and place in what the user sees."""
    ended, run_dir = train(poisoned_job(tmp_path, how, policy="fail"))
    assert ended.code == 1, ended.out + ended.err
    for part in ("shelf/017.raw", why, "shelf.py", "on_bad_sample: fail", "to go on:"):
        assert part in ended.err
    assert "Traceback" not in ended.err
    assert lines_of(run_dir / "quarantine.jsonl") == []
