"""The conditions under which equal recipes make equal bytes, and make them fast.

In:  nothing.
Out: environment variables for worker processes; malloc settings and a parent-death signal for this process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import signal
import sys
from pathlib import Path

_MMAP_THRESHOLD_NBYTES = 32 << 20
_TRIM_THRESHOLD_NBYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PR_SET_PDEATHSIG = 1  # sys/prctl.h


def kernel_environment() -> dict[str, str]:
    """Variables that fix which kernels OpenCV and OpenBLAS choose, and so some transforms' bytes.

    They must be set before cv2 and NumPy are imported. One core type for all x86-64 machines with AVX2, since
    OpenBLAS would choose by CPU; others keep their own and are told apart by their fingerprint.
    """
    # OpenCV would announce on stderr, in every process, that IPP is off.
    environment = {"OPENCV_IPP": "disabled", "OPENCV_LOG_LEVEL": "ERROR", "NO_ALBUMENTATIONS_UPDATE": "1"}
    if platform.machine() == "x86_64" and "avx2" in _cpu_flags():
        environment["OPENBLAS_CORETYPE"] = "Haswell"
    return environment


def worker_environment() -> dict[str, str]:
    """`kernel_environment`, and one thread for every library: the workers are the threads."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
    return kernel_environment() | {f"{name}_NUM_THREADS": "1" for name in names}


def tune_malloc() -> None:
    """Keep freed image-sized blocks instead of giving them back to the kernel (glibc only).

    Page faults on fresh 0.5 MB arrays otherwise cost 15 to 100 % of a chain.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_NBYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_NBYTES)


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended before the call
        os._exit(1)


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())
