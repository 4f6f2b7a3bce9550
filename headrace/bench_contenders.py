"""What is compared: this pipeline, the raw limit, torch's DataLoader with and without our malloc settings.

In:  a job, how many workers.
Out: `Contender`s that count what they deliver over a window of time.
All read through the same source and run the same chain; the consumer of batches touches one element of each.
"""

from __future__ import annotations

import multiprocessing
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from headrace.bench_count import Counted, CpuSeconds, count
from headrace.bench_usage import Memory, ProcessTree
from pipeline.config_job import Job
from pipeline.sources import open_source
from pipeline.user_code import load_module, plugin_name
from workers.environment import die_with_parent, tune_malloc, worker_environment

if TYPE_CHECKING:
    from workers.chain_plain import PlainSamples


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One window of one contender."""

    samples_per_s: float
    wall_s: float
    cpu_s_per_1000: dict[str, float]
    """CPU seconds for a thousand samples, by part."""
    cpu_share: dict[str, float]
    """Share of one core, by part."""
    worker_memory: list[Memory]


class Contender(ABC):
    """Runs from its making to its `close`; rests while nobody measures it, its buffers full."""

    def measure(self, ignore_s: float, count_s: float) -> Measured:
        """Count `count_s` seconds of delivery, after `ignore_s` that are left out."""
        counted = self._count(ignore_s, count_s)
        return Measured(
            samples_per_s=counted.samples_per_s,
            wall_s=counted.wall_s,
            cpu_s_per_1000={part: 1000 * cpu_s / counted.num_samples for part, cpu_s in counted.cpu_s.items()},
            cpu_share={part: cpu_s / counted.wall_s for part, cpu_s in counted.cpu_s.items()},
            worker_memory=ProcessTree().worker_memory(),
        )

    @abstractmethod
    def close(self) -> None:
        """End every process."""

    @abstractmethod
    def _count(self, ignore_s: float, count_s: float) -> Counted: ...


class Batches(Contender):
    """Counts batches that arrive in this process."""

    _sizes: Iterator[int]

    def _count(self, ignore_s: float, count_s: float) -> Counted:
        # Made anew each time: a worker that died meanwhile has a successor.
        tree = ProcessTree()
        return count(self._sizes, ignore_s=ignore_s, count_s=count_s, clock=time.monotonic, read_cpu=tree.cpu_s)


class Pipeline(Batches):
    """This pipeline, as a user of the library gets it."""

    def __init__(self, job: Job, num_workers: int) -> None:
        from headrace.embedded import Streams  # with torch in it, which the raw limit's parent does without

        self._streams = Streams(job, num_workers, folder=None)
        self._sizes = self._take()
        next(self._sizes)

    def close(self) -> None:
        self._streams.close()

    def _take(self) -> Iterator[int]:
        for batch in self._streams.train:
            batch.images[0, 0, 0, 0].item()
            yield batch.stop - batch.start


class Loader(Batches):
    """torch's DataLoader over the same samples, made by plain albumentations."""

    def __init__(self, job: Job, num_workers: int, *, malloc: bool) -> None:
        from trainer.dataloader_rival import rival_batches

        samples = _plain_samples(job)

        def start_worker(number: int) -> None:
            die_with_parent()
            if malloc:
                tune_malloc()

        self._batches = rival_batches(
            samples, batch_size=job.config.train.batch_size, num_workers=num_workers, on_worker_start=start_worker
        )
        self._sizes = self._take()
        next(self._sizes)

    def close(self) -> None:
        self._batches.close()

    def _take(self) -> Iterator[int]:
        for images, labels in self._batches:
            images[0, 0, 0, 0].item()
            yield len(labels)


class _RawWindow(NamedTuple):
    ignore_s: float
    count_s: float


class RawLimit(Contender):
    """Plain processes that make samples in a loop and throw them away: their summed rate."""

    def __init__(self, job: Job, num_workers: int) -> None:
        # Fresh processes: nothing that the parent did shapes their memory.
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        for number in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_make_samples, args=(job, number, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _count(self, ignore_s: float, count_s: float) -> Counted:
        for pipe in self._pipes:
            pipe.send(_RawWindow(ignore_s, count_s))
        windows: list[Counted] = [pipe.recv() for pipe in self._pipes]
        # The sum of rates, written as one window: each process closed its own a sample's time apart.
        wall_s = sum(window.wall_s for window in windows) / len(windows)
        samples_per_s = sum(window.samples_per_s for window in windows)
        cpu_s = sum(window.cpu_s["workers"] for window in windows)
        return Counted(num_samples=round(samples_per_s * wall_s), wall_s=wall_s, cpu_s={"workers": cpu_s})


def _make_samples(job: Job, number: int, pipe: Connection) -> None:
    die_with_parent()
    tune_malloc()
    samples = _plain_samples(job)
    indices = np.random.default_rng(number)

    def make() -> Iterator[int]:
        while True:
            for index in indices.permutation(len(samples)).tolist():
                samples[index]
                yield 1

    def read_cpu() -> CpuSeconds:
        return {"workers": time.process_time()}

    sizes = make()
    next(sizes)
    pipe.send("ready")
    while True:
        ignore_s, count_s = pipe.recv()
        pipe.send(count(sizes, ignore_s=ignore_s, count_s=count_s, clock=time.monotonic, read_cpu=read_cpu))


def _plain_samples(job: Job) -> PlainSamples:
    from workers.chain_plain import PlainSamples  # not above: this pipeline's trainer must not have albumentations

    base = job.path.absolute().parent
    plugins = {plugin_name(name): load_module(name, base) for name in job.config.plugins}
    return PlainSamples(job.train, open_source(job.config.sources[job.config.train.source], base), plugins)


CONTENDERS = {
    "headrace": "this pipeline",
    "raw": "raw limit",
    "loader": "DataLoader",
    "loader-untuned": "DataLoader, no malloc",
}
"""Name -> what it is called in the report, in the order of a round."""


def contender_environment(name: str) -> dict[str, str]:
    """What is set in a contender's environment beside the user's own; our workers set theirs themselves."""
    return {} if name == "headrace" else worker_environment()


def make_contender(name: str, job: Job, num_workers: int) -> Contender:
    """Start a contender; it has delivered once when this returns."""
    if name == "headrace":
        return Pipeline(job, num_workers)
    if name == "raw":
        return RawLimit(job, num_workers)
    return Loader(job, num_workers, malloc=name == "loader")
