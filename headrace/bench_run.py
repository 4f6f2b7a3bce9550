"""Runs the contenders in turns.

In:  a job file with overrides, how many rounds of which length.
Out: each contender's window of each round.
Each contender lives in a process of its own, for the whole run; they end with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from headrace._house import house_command, house_environment
from headrace.bench_contenders import CONTENDERS, Measured, contender_environment
from headrace.bench_report import Round, rows
from pipeline.errors import RunFailed
from workers.randomness import SampleRandomness

END_TIMEOUT_S = 10.0


class Driver:
    """A contender's process."""

    def __init__(self, name: str, job_file: Path, overrides: Sequence[str], num_workers: int) -> None:
        self._name = name
        self._process = subprocess.Popen(
            house_command("headrace.bench_driver", name, str(job_file), str(num_workers), *overrides),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the command; the end of stdin ends the drivers
            env=house_environment(contender_environment(name)),
        )

    def wait_until_started(self) -> None:
        """Returns once it has delivered a first time; RunFailed if it ended instead."""
        self._reply()

    def measure(self, ignore_s: float, count_s: float) -> Measured:
        """One window; returns when the contender rests again."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reply that does not come tells of it
            self._process.stdin.write(f"{ignore_s} {count_s}\n".encode())
            self._process.stdin.flush()
        return msgspec.json.decode(self._reply(), type=Measured)

    def hang_up(self) -> None:
        """Let it end by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def end(self) -> None:
        """Wait until it and all that it started have ended; kill what has not in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _reply(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RunFailed(f"benchmark: {CONTENDERS[self._name]} ended with exit code {code}; why stands above")
        return line


def measure_rounds(
    job_file: Path,
    overrides: Sequence[str],
    num_workers: int,
    *,
    num_rounds: int,
    ignore_s: float,
    count_s: float,
    report: Callable[[str], None],
) -> list[Round]:
    """Every contender's windows, in turns: A B C D, A B C D, ..."""
    drivers: dict[str, Driver] = {}
    try:
        report(f"starting {', '.join(CONTENDERS.values())}")
        for name in CONTENDERS:
            drivers[name] = Driver(name, job_file, overrides, num_workers)
        for driver in drivers.values():
            driver.wait_until_started()
        rounds: list[Round] = []
        for number in range(num_rounds):
            entry = {name: driver.measure(ignore_s, count_s) for name, driver in drivers.items()}
            rounds.append(entry)
            rates = "  ".join(f"{name} {measured.samples_per_s:.0f}" for name, measured in entry.items())
            report(f"round {number + 1} of {num_rounds}, samples/s: {rates}")
    finally:
        for driver in drivers.values():
            driver.hang_up()
        for driver in drivers.values():
            driver.end()
    return rounds


def reseed_us(repeats: int = 7, calls: int = 5000) -> float:
    """Median microseconds to set a sample's random numbers."""
    reset = SampleRandomness().reset
    timings_s = timeit.repeat(lambda: reset(7, 3, 123_456), repeat=repeats, number=calls)
    return 1e6 * median(timings_s) / calls


def write_json(path: Path, rounds: Sequence[Round], reseeding_us: float) -> None:
    """Every window and every row of the table, for tools."""
    everything = {"rounds": rounds, "targets": rows(rounds, reseeding_us)}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(everything)) + b"\n")
