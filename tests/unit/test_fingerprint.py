"""Fingerprint: workers whose bytes would differ have different ones."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from workers import fingerprint
from workers.environment import worker_environment

ROOT = Path(__file__).parents[2]
DIGESTS = """
import hashlib
import numpy as np
from pipeline.recipe import Chain, ChainNode, Recipe
from workers.chain import compile_chain
from workers.fingerprint import probe_digest

# Not the probe's image: smooth waves with noise on them.
rows, columns = np.mgrid[0:300, 0:400]
noise = np.random.default_rng(7).integers(0, 60, (300, 400, 3))
waves = np.stack([60 * np.sin(rows / 9), 60 * np.cos(columns / 7), 60 * np.sin((rows + columns) / 11)], axis=-1)
image = (waves + 80 + noise).clip(0, 255).astype(np.uint8)
direct = hashlib.sha256()
for name in ("ZoomBlur", "ThinPlateSpline", "GaussianBlur", "Sharpen", "RingingOvershoot", "PlasmaShadow", "HEStain"):
    node = ChainNode(name=name, params={"p": 1.0})
    chain = compile_chain(Recipe(chain=Chain(file="test", nodes=(node,))))
    for offset in range(2):
        direct.update(chain.apply(image, 3, 0, offset).tobytes())
print(probe_digest(), direct.hexdigest())
"""


def digests(**changes: str) -> tuple[str, str]:
    """The probe's digest and one of the transforms themselves, in a process set up as a worker, but for `changes`."""
    environment = {**os.environ, **worker_environment(), "PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-c", DIGESTS]
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    probe, direct = ended.stdout.split()
    return probe, direct


@pytest.fixture(scope="module")
def usual() -> tuple[str, str]:
    return digests()


@pytest.mark.parametrize(
    "changes",
    [{"OPENCV_IPP": "avx2"}, {"OPENCV_CPU_DISABLE": "AVX2"}, {"OPENBLAS_CORETYPE": "Prescott"}],
    ids=["IPP", "no-AVX2", "OpenBLAS-kernel"],
)
def test_a_setting_that_changes_transforms_changes_the_probe(usual: tuple[str, str], changes: dict[str, str]) -> None:
    """Admission by equal bytes rests on it: one worker of another kind, and a sample is no function of coordinates."""
    usual_probe, usual_direct = usual
    probe, direct = digests(**changes)
    if probe == usual_probe and direct == usual_direct:
        pytest.skip(f"these libraries do not react to {changes} on this machine")
    assert probe != usual_probe


def test_equal_settings_have_equal_probes(usual: tuple[str, str]) -> None:
    """Else no two workers would be admitted."""
    assert digests() == usual


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"opencv-python": "4.13.0.92"}, "opencv=4.13.0.92 "),
        ({"opencv-python": "4.13.0.92", "opencv-python-headless": "4.12.0.88"}, "opencv=4.12.0.88+4.13.0.92 "),
        ({}, "opencv=built-elsewhere "),
    ],
)
def test_any_opencv_will_do(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], expected: str) -> None:
    """Users have opencv-python, with windows, beside other packages; conda's has no pip name at all."""
    real = metadata.version

    def version(name: str) -> str:
        if not name.startswith("opencv"):
            return real(name)
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(fingerprint, "version", version)
    assert expected in fingerprint.fingerprint.__wrapped__()
