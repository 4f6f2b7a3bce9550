"""Kernels: what is made without worker processes has the bytes of what they make, whatever NumPy chooses by itself."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import inline_worker
from tests.home import write_arrays
from tests.processes import ROOT, lines_of, run_headrace, write_job
from workers.environment import kernel_environment

NATIVE = {"OPENBLAS_CORETYPE": "Sandybridge"}
"""Stands for a CPU of another kind: set when Python starts, it is what NumPy chooses unless headrace is there first."""
CHAIN = [{"HEStain": {"p": 1.0}}, {"ThinPlateSpline": {"p": 1.0}}, "Normalize", "ToTensorV2"]
"""What they make depends on the kernel of OpenBLAS."""
SCRIPT = """\
import {first}
from headrace import Stream
with Stream("job.yaml", workers=0) as stream:
    print(*(batch.digest for batch in stream), sep="\\n")
"""

pytestmark = pytest.mark.skipif(
    "OPENBLAS_CORETYPE" not in kernel_environment(), reason="workers keep the kernels of this machine"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    write_arrays(folder, num_samples=16, side=96)  # smaller ones come out alike
    source = {"kind": "arrays", "path": "arrays.npz"}
    train = {"source": "it", "chain": CHAIN, "batch_size": 8, "epochs": 1}
    return write_job(folder, sources={"it": source}, train=train, device="cpu", model={"kind": "mlp", "width": 8})


@pytest.fixture(scope="module")
def expected(job: Path) -> list[str]:
    """The batches of worker processes."""
    made = digests(job, 1)
    assert len(made) == 2
    return made


def python(folder: Path, *arguments: str, stdin: str = "", **environment: str) -> tuple[str, str]:
    """What a Python of the user's own wrote to stdout and stderr."""
    own = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), **NATIVE}
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **own, **environment},
        input=stdin,
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    return ended.stdout, ended.stderr


def digests(job: Path, num_workers: int) -> list[str]:
    ended = run_headrace("digest", job, "--workers", str(num_workers), folder=job.parent, environment=NATIVE)
    assert (ended.code, ended.err) == (0, "")
    return [line.split()[-1] for line in ended.out.splitlines()]


@pytest.mark.long
def test_without_workers_a_command_makes_the_bytes_of_workers(job: Path, expected: list[str]) -> None:
    """Law 1. A batch that is looked at in a debugger must be the one that the run of last night was trained on."""
    assert digests(job, 0) == expected


@pytest.mark.long
def test_training_in_a_debugger_has_them_too_and_stops_where_it_was_told_to(job: Path, expected: list[str]) -> None:
    """It could not stop if the command started itself again, with a worker's kernels."""
    make, start = inspect.getsourcelines(inline_worker.InlineWorker.make)
    line = start + next(number for number, text in enumerate(make) if "self._streams.make" in text)
    commands = f"b {inline_worker.__file__}:{line}\nc\np 'position', lease.start\ncl 1\nc\nq\n"
    pdb = ["-m", "pdb", "-m", "headrace", "train", job.name, "--workers", "0", "--run-dir", "run"]
    out, _ = python(job.parent, *pdb, stdin=commands)
    assert "('position', 0)" in out
    assert [line["digest"] for line in lines_of(job.parent / "run/metrics.jsonl")] == expected


@pytest.mark.long
def test_a_process_that_chose_other_kernels_before_is_told_of_it(job: Path, expected: list[str]) -> None:
    """A library can't choose NumPy's kernels once NumPy is imported. With what it advises it is quiet, and right."""
    (job.parent / "script.py").write_text(SCRIPT.format(first="numpy"))
    out, err = python(job.parent, "script.py")
    assert out.splitlines() != expected
    assert "some transforms make other bytes in this process than in workers" in err
    assert "to go on: start Python with OPENBLAS_CORETYPE=Haswell, or use worker processes" in err
    out, err = python(job.parent, "script.py", OPENBLAS_CORETYPE="Haswell")
    assert (out.splitlines(), err) == (expected, "")
