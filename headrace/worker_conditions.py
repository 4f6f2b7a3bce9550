"""Samples made in this process have the bytes of those that workers make: with the kernels that workers have.

In:  this process's environment, and what it has imported.
Out: kernels chosen as workers choose them, where none are chosen yet; elsewhere whether bytes differ, and the way out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

from headrace._house import house_command, house_environment, own_house

_READ_BY = {
    "OPENBLAS_CORETYPE": "numpy",
    "OPENCV_IPP": "cv2",
    "OPENCV_LOG_LEVEL": "cv2",
    "NO_ALBUMENTATIONS_UPDATE": "albumentations",
}
"""Variable of `kernel_environment` -> the module that reads it, once, while it is imported."""


@cache
def take_kernels_of_workers() -> tuple[str, ...]:
    """What is imported after the first call chooses a worker's kernels; the variables that came too late for others.

    In place, not by starting the command again: a debugger would lose its breakpoints.
    """
    with own_house():
        from workers.environment import kernel_environment
    wanted = kernel_environment()
    late = [name for name in wanted if os.environ.get(name) != wanted[name] and _READ_BY[name] in sys.modules]
    # Late ones too: SciPy has an OpenBLAS of its own, and reads the variable after NumPy.
    os.environ.update(wanted)
    return tuple(f"{name}={wanted[name]}" for name in late)


def differs_from_workers(own_fingerprint: str) -> bool:
    """True if samples made in this process are others than workers make.

    Asks a process set up as a worker (1.6 s, once) where a library was imported before its variable was set: it may
    have chosen the same kernels by itself.
    """
    return bool(take_kernels_of_workers()) and own_fingerprint != fingerprint_of_workers()


def way_out() -> str:
    """What a user does, so that samples made in this process are those of workers."""
    return f"start Python with {' '.join(take_kernels_of_workers())}, or use worker processes"


@cache
def fingerprint_of_workers() -> str:
    """What a worker on this machine has for its fingerprint."""
    with own_house():
        from workers.environment import worker_environment
    environment = house_environment(worker_environment())
    asked = subprocess.run(
        house_command("workers.fingerprint"),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    return asked.stdout.decode().strip()
