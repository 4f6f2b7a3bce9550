"""Trains a study's runs, in several processes at once.

In:  a checked study, a folder of its own.
Out: `Outcome`: a record of each run, which stands in FOLDER/results.jsonl from the moment it is known.
The processes end with this one, however it ends. Their shares are disjoint, so their number changes no record but in
how long it took.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace._house import house_command, house_environment
from pipeline.errors import EXIT_PEER_UNREACHABLE, EXIT_USER_INPUT, ConfigError, Problem, RunFailed
from pipeline.study_file import Study
from trainer.study_records import RunRecord

END_TIMEOUT_S = 20.0
"""A share closes its stream, whose services take a few seconds on a busy machine."""
RESULTS = "results.jsonl"

Progress = Callable[[int, int], None]
"""(steps taken by all runs together, runs that have ended): since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All records of a study, by cell and seed in the study's order."""

    records: tuple[RunRecord, ...]
    wall_s: float
    cpu_s: float
    """Of all processes that trained or made batches."""
    num_processes: int


class _Share:
    """A process with its share of the runs."""

    def __init__(self, study: Study, overrides: Sequence[str], part: int, num_parts: int) -> None:
        self.process = subprocess.Popen(
            house_command("headrace.study_driver", str(study.path), str(part), str(num_parts), *overrides),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the command; the end of stdin ends the shares
            env=house_environment(),
        )

    def read_into(self, lines: queue.SimpleQueue[bytes | int]) -> None:
        """Every line it writes, then its exit code."""
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                lines.put(line)
        lines.put(self.process.wait())

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """Wait until it and all that it started have ended; kill what has not in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_study(study: Study, overrides: Sequence[str], folder: Path, progress: Progress) -> Outcome:
    """Trains every run; RunFailed if a share ended otherwise. Each record is in the file before the next is waited
    for."""
    config = study.config
    num_runs = config.num_cells * len(config.seeds)
    num_processes = min(num_runs, config.processes or len(os.sched_getaffinity(0)))
    start_s, start_cpu_s = time.monotonic(), _children_cpu_s()
    lines: queue.SimpleQueue[bytes | int] = queue.SimpleQueue()
    shares: list[_Share] = []
    records: list[RunRecord] = []
    try:
        for part in range(num_processes):
            shares.append(_Share(study, overrides, part, num_processes))
            threading.Thread(target=shares[-1].read_into, args=(lines,), daemon=True).start()
        with (folder / RESULTS).open("wb") as results:
            num_running = num_processes
            while num_running:
                line = lines.get()
                if isinstance(line, int):
                    num_running -= 1
                    if line:
                        raise _failed(line)
                    continue
                news = json.loads(line)
                if "run" in news:
                    records.append(msgspec.convert(news["run"], RunRecord))
                    results.write(json.dumps(news["run"]).encode() + b"\n")
                    results.flush()
                progress(news.get("steps", 0), int("run" in news))
    finally:
        for share in shares:
            share.hang_up()
        for share in shares:
            share.end()
    return Outcome(
        records=_in_order(study, records),
        wall_s=time.monotonic() - start_s,
        cpu_s=_children_cpu_s() - start_cpu_s,
        num_processes=num_processes,
    )


def claim_folder(folder: Path) -> None:
    """Makes the folder; ConfigError if anything is in it: results of two runs must not mix."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        got = "a folder with files in it" if folder.is_dir() else "a file"
        raise ConfigError(
            Problem(
                file=str(folder),
                line=0,
                path="--out",
                expected="a folder that is absent or empty",
                got=got,
                way_out="name another with --out, or delete this one",
            )
        )
    folder.mkdir(parents=True, exist_ok=True)


def _in_order(study: Study, records: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    place = {tuple(cell.items()): number for number, cell in enumerate(study.config.cells())}
    return tuple(sorted(records, key=lambda run: (place[tuple(run.cell.items())], run.seed)))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of those that have ended, and of theirs
    return used.ru_utime + used.ru_stime


def _failed(code: int) -> RunFailed:
    """What was wrong stands on stderr already, where the process told it; whose fault it is, its exit code says."""
    error = RunFailed(f"study: a process with a share of its runs ended with {_code(code)}; see above")
    if code in (EXIT_USER_INPUT, EXIT_PEER_UNREACHABLE):
        error.exit_code = code
    return error


def _code(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
