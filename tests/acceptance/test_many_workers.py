"""Hundreds of workers: a real dispatcher serves them at the rate that they could work at, until it is saturated.

Workers sleep instead of computing, and send small slices; so what is measured is the dispatcher, not the machine.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.known_stream import trainer_identity
from pipeline.messages import Register, RegisterAgain, Registered, StreamBeat, StreamSpec
from pipeline.reassembly import Dropped, Reassembly
from pipeline.recipe import Chain, Recipe
from pipeline.timeline import Timeline, TimelineEntry
from pipeline.transport import Context, Poller
from pipeline.wire import decode_header, decode_message, encode_message
from tests.home import Home
from tests.processes import ROOT, Headrace
from tests.simulated_workers import BATCH_SPEC, DIGEST

RECIPE = Recipe(chain=Chain(file="chain.yaml", nodes=()))
STREAM = "many/train"
BATCH_SIZE, SLICE_SIZE = 256, 16
NEWS_EVERY_S = 0.02
WARM_S, MEASURE_S = 2.0, 4.0
ENOUGH = 0.95
SATURATED = 0.7
"""Share of a core above which the dispatcher's own work is the limit: beside it, one thread moves its messages."""
CROWDED = 90.0
"""Percent of all cores in use: the workers' and the trainer's processes are then kept from their own work."""
MAX_UNITS = 6.0
"""Of `one_unit`, what a slice may cost the dispatcher, at its best: three times what it did with 200 workers on two
cores that had other work, too (2.1 and 2.3)."""


@dataclass(frozen=True)
class Measured:
    """One run."""

    num_workers: int
    ideal: float
    """Slices a second that the workers could make."""
    delivered: float
    cpu_us: float
    """The dispatcher's, per slice."""
    unit_us: float
    """CPU of `one_unit`, before and after: what a core of this machine does, as busy as it is."""
    dispatcher_cores: float
    machine_percent: float

    @property
    def ratio(self) -> float:
        return self.delivered / self.ideal

    @property
    def units(self) -> float:
        """The dispatcher's CPU per slice, whatever the machine."""
        return self.cpu_us / self.unit_us

    def __str__(self) -> str:
        return (
            f"{self.num_workers} workers: {self.delivered:.0f} of {self.ideal:.0f} slices/s (ratio {self.ratio:.3f}), "
            f"dispatcher {self.cpu_us:.0f} us CPU a slice ({self.units:.1f} units), {self.dispatcher_cores:.2f} cores; "
            f"machine {self.machine_percent:.0f} % busy"
        )


def one_unit() -> int:
    """A fixed bit of pure Python, of the kind that a dispatcher does: dict, list and integer work."""
    known: dict[int, list[int]] = {}
    for number in range(500):
        known.setdefault(number * 7919 % 101, []).append(number)
    return sum(len(values) for values in known.values() if values[0] % 2)


def unit_us() -> float:
    """CPU of one unit now."""
    started_s = time.process_time()
    for _ in range(2000):
        one_unit()
    return (time.process_time() - started_s) / 2000 * 1e6


class Consumer:
    """A trainer's side without a trainer: takes each batch as soon as it is complete, checks every slice."""

    def __init__(self, dispatcher: str, data: str, window: int) -> None:
        entry = TimelineEntry(start=0, step=0, recipe=RECIPE.digest, batch_size=BATCH_SIZE)
        num_samples = 1 << 40
        self._spec = StreamSpec(
            source="zeros", source_fingerprint="0", num_samples=num_samples, seed=0, shuffle=False, last_batch="drop",
            end_position=num_samples, slice_size=SLICE_SIZE, recipes=(RECIPE,), timeline=(entry,), endpoint=data,
        )  # fmt: skip
        timeline = Timeline([entry], num_samples=num_samples, last_batch="drop", end_position=num_samples)
        self._core = Reassembly(timeline, stream=STREAM, incarnation=1, window=window, head_step=0)
        self._context = Context()
        self._pull = self._context.pull(data)
        self._dealer = self._context.dealer(dispatcher, trainer_identity(STREAM, 1).decode())
        self._beat_numbers = itertools.count(1)
        self._is_registered = False
        self.num_slices = self.num_dropped = 0

    def run(self, seconds: float) -> None:
        poller = Poller()
        poller.add(self._pull)
        poller.add(self._dealer)
        end_s, next_beat_s = time.monotonic() + seconds, 0.0
        while (now_s := time.monotonic()) < end_s:
            if now_s >= next_beat_s:
                self._speak()
                next_beat_s = now_s + (NEWS_EVERY_S if self._is_registered else 0.5)
            poller.wait(min(next_beat_s, end_s) - now_s)
            while (frame := self._dealer.receive()) is not None:
                message = decode_message(frame)
                if isinstance(message, Registered | RegisterAgain):
                    self._is_registered = isinstance(message, Registered)
            while (head := self._pull.receive_header()) is not None:
                self._pull.skip_rest()
                self._place(head)

    def close(self) -> None:
        self._context.close()

    def _place(self, frame: bytes) -> None:
        header = decode_header(frame)
        placement = self._core.place(header)
        if isinstance(placement, Dropped):
            self.num_dropped += 1
            return
        assert header.digests == DIGEST * (header.stop - header.start)
        self.num_slices += 1
        self._core.mark(header, placement)
        while self._core.is_complete(self._core.head_step):
            self._core.take_head()

    def _speak(self) -> None:
        head_step, arrived, window = self._core.head_step, self._core.arrived(), self._core.window
        if self._is_registered:
            beat = StreamBeat(
                stream=STREAM, incarnation=1, number=next(self._beat_numbers), head_step=head_step, arrived=arrived,
                window=window,
            )  # fmt: skip
            self._dealer.send(encode_message(beat))
            return
        registration = Register(
            stream=STREAM, incarnation=1, spec=self._spec, head_step=head_step, arrived=arrived, window=window,
            batch_specs={RECIPE.digest: BATCH_SPEC},
        )  # fmt: skip
        self._dealer.send(encode_message(registration))


@contextmanager
def simulated(endpoint: str, num_workers: int, sleep_s: float, num_processes: int) -> Iterator[None]:
    """Simulated workers, shared out over a few processes."""
    processes = []
    try:
        for number in range(num_processes):
            share = num_workers // num_processes + (number < num_workers % num_processes)
            command = [
                sys.executable,
                "-m",
                "tests.simulated_workers",
                endpoint,
                str(share),
                str(sleep_s),
                f"w{number}",
            ]
            processes.append(subprocess.Popen(command, cwd=ROOT))
        yield
        assert all(process.poll() is None for process in processes), "a simulated worker has ended"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measured(folder: Path, num_workers: int, sleep_s: float) -> Measured:
    """A run of its own: dispatcher, workers, a consumer."""
    home = Home()
    control, data = (f"ipc://{home.runtime}/{name}.sock" for name in ("control", "data"))
    # Twice what the workers hold: two leases each, and as many under way to the trainer and back.
    window = max(8, 4 * num_workers * SLICE_SIZE // BATCH_SIZE)
    consumer = Consumer(control, data, window)
    unit_before_us = unit_us()
    try:
        with (
            Headrace("pipeline", "--listen", control, folder=folder, environment=home.environment) as dispatcher,
            simulated(control, num_workers, sleep_s, num_processes=max(2, num_workers // 50)),
        ):
            while consumer.num_slices < 2 * num_workers:
                consumer.run(0.2)
            consumer.run(WARM_S)
            process = psutil.Process(dispatcher.pid)
            psutil.cpu_percent()
            before, started_s, cpu = consumer.num_slices, time.monotonic(), process.cpu_times()
            consumer.run(MEASURE_S)
            took_s, num_slices = time.monotonic() - started_s, consumer.num_slices - before
            after = process.cpu_times()
            cpu_s = after.user + after.system - cpu.user - cpu.system
            return Measured(
                num_workers=num_workers,
                ideal=num_workers / sleep_s,
                delivered=num_slices / took_s,
                cpu_us=cpu_s / max(1, num_slices) * 1e6,
                unit_us=(unit_before_us + unit_us()) / 2,
                dispatcher_cores=cpu_s / took_s,
                machine_percent=psutil.cpu_percent(),
            )
    finally:
        consumer.close()
        home.remove()


def test_forty_simulated_workers_deliver_what_they_could(tmp_path: Path) -> None:
    """A machine that is busy with something else says nothing: so the best of three."""
    runs: list[Measured] = []
    while len(runs) < 3 and not any(run.ratio >= ENOUGH for run in runs):
        runs.append(measured(tmp_path, num_workers=40, sleep_s=0.4))
        print(runs[-1])
    assert max(run.ratio for run in runs) >= ENOUGH, "\n".join(map(str, runs))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_hundred_simulated_workers_deliver_what_they_could_until_the_dispatcher_is_saturated(
    tmp_path: Path,
) -> None:
    """Faster and faster workers, up to where the dispatcher has no time left; prints where that is (pytest -s)."""
    runs: list[Measured] = []
    for sleep_s in (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03):
        runs.append(measured(tmp_path, num_workers=200, sleep_s=sleep_s))
        print(runs[-1])
        if runs[-1].ratio < ENOUGH:
            break
    for run in runs:
        is_at_a_limit = run.dispatcher_cores >= SATURATED or run.machine_percent >= CROWDED
        assert run.ratio >= ENOUGH or is_at_a_limit, str(run)
    assert runs[0].ratio >= ENOUGH, str(runs[0])
    # Past the first point a crowded machine excuses any rate, so what a slice costs is held to: beats and ticks are
    # shared by more slices there (438 us at first and 178 at last, in a trial), and nothing else may grow instead.
    assert runs[-1].cpu_us <= runs[0].cpu_us, "\n".join(map(str, runs))
    assert min(run.units for run in runs) <= MAX_UNITS, "\n".join(map(str, runs))
    most, cpu_us = max(run.delivered for run in runs), runs[-1].cpu_us
    print(
        f"at most {most:.0f} slices/s here; at {cpu_us:.0f} us of CPU each, a core serves {1e6 / cpu_us:.0f} slices/s"
    )
