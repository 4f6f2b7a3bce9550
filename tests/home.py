"""A home of its own for each run: where it may leave files, and which processes belong to it; for acceptance tests.

In:  nothing.
Out: an environment for the run's commands; the processes that carry it, orphans included; the files they left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import psutil

_MARK = "HEADRACE_TEST_HOME"
_SHARED_MEMORY = Path("/dev/shm")
GONE_WITHIN_S = 5.0 * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""The law's own number, on a machine of one's own: however the trainer ends, 5 s after it nothing of the job is left.
Tests that share the machine with others have as much longer as there are others."""


class Home:
    """Private runtime, temporary and cache directories."""

    def __init__(self) -> None:
        # A short path: sockets stand in it, and pytest's own directories are too long for that.
        self.path = Path(tempfile.mkdtemp(prefix="hr-"))
        self.runtime, self.temporary = self.path / "run", self.path / "tmp"
        self.runtime.mkdir(mode=0o700)
        self.temporary.mkdir()
        self._mark = uuid.uuid4().hex
        self._others_memory = _shared_memory()
        self.environment = {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(self.path / "cache"),
            _MARK: self._mark,
        }

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started with this home's environment, however it was orphaned since."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(_MARK) == self._mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass  # it ended meanwhile, or is another user's
        return found

    def left_files(self) -> list[str]:
        """What stands in the runtime and temporary directories, but for what lives longer than a run on purpose."""
        found = [*_files_below(self.runtime), *_files_below(self.temporary)]
        # The directory of all jobs is ours and empty between jobs; torch makes an (empty) cache of its own when the
        # first optimizer is built, for all later processes of the user.
        lasting = {self.runtime / "headrace"}
        left = [str(path) for path in found if path not in lasting and not path.name.startswith("torchinductor_")]
        # Shared memory has no home: what is new and in nobody's use was forgotten, by us or by whoever else runs here.
        # What is gone again a moment later was another program's, on its way to be used.
        new = _shared_memory() - self._others_memory
        return left + sorted((new - _in_use()) & _shared_memory() if new else new)

    def assert_empty_soon(self) -> None:
        """Nothing is left within the law's time."""
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while True:
            left = [*map(_describe, self.processes()), *self.left_files()]
            if not left:
                return
            assert time.monotonic() < deadline_s, f"left after {GONE_WITHIN_S:g} s: {left}"
            time.sleep(0.05)

    def kill_all(self) -> None:
        """SIGKILL everything at once: stopped first, so that nobody can react to another's death."""
        processes = self.processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):  # it died of another's death
                    os.kill(process.pid, number)
        psutil.wait_procs(processes, timeout=GONE_WITHIN_S)

    def remove(self) -> None:
        """Nothing of this home outlives its test."""
        self.kill_all()
        shutil.rmtree(self.path, ignore_errors=True)


def _files_below(folder: Path) -> list[Path]:
    """All that stands in it, although directories vanish while we look: `os.walk` passes over them, `rglob` raises."""
    return [Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files)]


def _shared_memory() -> set[str]:
    return {str(path) for path in _SHARED_MEMORY.glob("*")}


def _in_use() -> set[str]:
    """The files that living processes have open or map."""
    paths: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            paths |= {opened.path for opened in process.open_files()}
            paths |= {mapping.path for mapping in process.memory_maps()}
    return paths


def _describe(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended since it was found
        return f"process {process.pid}, ending"


def write_arrays(folder: Path, *, num_samples: int = 256, side: int = 32) -> Path:
    """Random images (num_samples, side, side, 3) with labels 0 to 3, as one .npz."""
    images = np.random.default_rng(0).integers(0, 256, (num_samples, side, side, 3), dtype=np.uint8)
    path = folder / "arrays.npz"
    np.savez(path, images=images, labels=np.arange(num_samples) % 4)
    return path


def small_job(folder: Path, *, num_samples: int = 256, side: int = 32, normalise: bool = True, **train: object) -> Path:
    """A job file over random arrays; by default its training takes days."""
    write_arrays(folder, num_samples=num_samples, side=side)
    chain: list[object] = [{"HorizontalFlip": {"p": 0.5}}]
    if normalise:
        chain += ["Normalize", "ToTensorV2"]
    job = {
        "name": "small",
        "sources": {"photos": {"kind": "arrays", "path": "arrays.npz"}},
        "train": {"source": "photos", "chain": chain, "batch_size": 32, "epochs": 100_000, **train},
        "model": {"kind": "mlp", "width": 8, "depth": 1},
        "device": "cpu",
        "torch_threads": 1,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job, indent=1))
    return path
