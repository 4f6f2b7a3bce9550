"""A whole calibration: every part of the suite with every seed, in a few processes.

In:  a job file, seeds, how many processes.
Out: each part's records, as they come.
Closing the generator, or any exception, ends all processes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path

from headrace.calibration import PARTS, Record
from headrace.calibration_driver import Drivers


def calibrate(
    job_file: Path, seeds: Sequence[int], *, num_processes: int, is_quick: bool
) -> Generator[tuple[str, list[Record]], None, None]:
    """What was done, and its records; equal arguments give equal records, for any number of processes."""
    drivers = Drivers()
    executor = ThreadPoolExecutor(num_processes)
    try:
        futures = {
            executor.submit(drivers.records, job_file, part, seed, is_quick=is_quick): f"{part}, seed {seed}"
            for seed, part in product(seeds, PARTS)
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        drivers.end()
        executor.shutdown(wait=True)
