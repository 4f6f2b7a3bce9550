"""A worker of a law of cores: its control, its handling of work and its open streams are the real ones; it has no
thread, no socket and no pixels. A sample is one byte, a function of its coordinates as law 1 wants it."""

from __future__ import annotations

import os
import random
import typing
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from pipeline.digests import sample_digest
from pipeline.errors import ConfigError, Problem
from pipeline.messages import Lease, Probe
from pipeline.recipe import BatchSpec, FieldSpec, Recipe
from pipeline.slice_header import SliceHeader
from workers import control as control_module
from workers.control import BEAT_S, Control
from workers.produce import ReadFailed
from workers.streams import OpenStreams, StreamId
from workers.unserved import CannotServe
from workers.worker import _handle
from workers.worker_config import WorkerConfig

LABEL = FieldSpec(name="label", dtype="int64", shape=())
HERE = Path()


class Exited(BaseException):
    """The worker's process ended itself."""


def batch_spec(recipe: Recipe) -> BatchSpec:
    """What a recipe delivers: one byte a sample, or two if its first transform says so."""
    width = 2 if recipe.chain.nodes[0].name == "Wide" else 1
    return BatchSpec(fields=(FieldSpec(name="image", dtype="uint8", shape=(1, width, 1)), LABEL))


def byte_of(recipe: str, position: int, attempt: int) -> int:
    return zlib.crc32(f"{recipe} {position} {attempt}".encode()) % 256


class ByteProducer:
    """Makes slices of single bytes; refuses recipes called Bad."""

    def __init__(self, worker: str, may_read: Callable[[int, int], bool]) -> None:
        self._worker, self._may_read = worker, may_read

    def make(
        self, lease: Lease, recipe: Recipe, _: None, spec: BatchSpec
    ) -> tuple[SliceHeader, list[NDArray[np.generic]]]:
        positions = range(lease.start, lease.stop)
        for position in positions:
            attempt = lease.quarantined.get(position, 0)
            if not self._may_read(position, attempt):
                raise ReadFailed(position, attempt, "I/O error")
        images = np.empty((len(positions), *spec.fields[0].shape), np.uint8)
        for row, position in enumerate(positions):
            images[row] = byte_of(lease.recipe, position, lease.quarantined.get(position, 0))
        header = SliceHeader(
            stream=lease.stream, incarnation=lease.incarnation, worker=self._worker, start=lease.start,
            stop=lease.stop, recipe=lease.recipe, fields=spec.fields, sample_ids=tuple(positions),
            digests=b"".join(map(sample_digest, images, positions)), quarantined=lease.quarantined,
        )  # fmt: skip
        return header, [images, np.array(positions, np.int64)]

    def probe(self, recipe: Recipe, _: None, skip: Container[int]) -> BatchSpec:
        if recipe.chain.nodes[0].name == "Bad":
            problem = Problem(file=recipe.chain.file, line=1, path="chain[0]", expected="a transform", got="Bad")
            raise ConfigError(problem)
        return batch_spec(recipe)


class ByteStreams(OpenStreams):
    """The real open streams, over sources and chains that are none."""

    def __init__(self, worker: str, may_read: Callable[[int, int], bool], *, is_wrong: bool) -> None:
        super().__init__({}, (), HERE, worker)
        self._byte_producer = ByteProducer(worker, may_read)
        self._is_wrong = is_wrong

    def _producer(self, stream: StreamId) -> typing.Any:
        if self._is_wrong:
            raise CannotServe(Problem(file="--source", line=0, path="photos", expected="photos", got="paintings"))
        return self._byte_producer

    def _chain(self, stream: StreamId, digest: str) -> typing.Any:
        return self._recipes[stream][digest], None


class CoreWorker:
    """What a worker's two threads do, one turn at a time; `is_wrong`: started with a folder that is not the job's."""

    def __init__(
        self,
        name: str,
        coin: random.Random,
        send: Callable[[bytes], None],
        push: Callable[[list[bytes]], None],
        may_read: Callable[[int, int], bool],
        *,
        is_wrong: bool = False,
    ) -> None:
        self.name, self._coin, self._push = name, coin, push
        self.is_wrong = is_wrong
        self._streams = ByteStreams(name, may_read, is_wrong=is_wrong)
        config = WorkerConfig(
            name=name, pool="", connect="", sources=typing.cast(Mapping[str, typing.Any], {"photos": None}),
            plugins=(), base=HERE, progress_path=HERE, trace_path=HERE,
        )  # fmt: skip
        wire = SimpleNamespace(dealer=lambda endpoint, identity: SimpleNamespace(send=send))
        self.control = Control(config, typing.cast(typing.Any, wire), "bytes")
        self._next_beat_s = 0.0
        self.control._join()

    def hear(self, frame: bytes) -> None:
        self.control._handle(frame)

    def leave(self, now_s: float) -> None:
        self.control._leave(now_s)

    def turn(self, now_s: float) -> bool:
        """A moment of both threads; False once it has ended."""
        if self._coin.random() < 0.6:
            self._work()
        while not self.control._outbox.empty():
            self.control._send(self.control._outbox.get())
        if self.control._waker.clear() or now_s >= self._next_beat_s:
            self.control._beat(now_s)
            self._next_beat_s = now_s + BEAT_S
        return not self.control._dismissed

    def end(self) -> None:
        self.control._waker.close()

    def _work(self) -> None:
        """What waits, up to the first thing that takes a while."""
        while not self.control.inbox.empty():
            item = self.control.inbox.get()
            assert item is not None
            context = SimpleNamespace(push=lambda endpoint: SimpleNamespace(send=self._send_slice))
            progress = SimpleNamespace(end_slice=lambda delivered: None)
            parts: list[typing.Any] = [context, {}, progress]
            _handle(item, self.control, self._streams, *parts)
            if isinstance(item, Lease | Probe):
                return

    def _send_slice(self, frames: list[bytes | memoryview]) -> bool:
        self._push([bytes(frame) for frame in frames])
        return True


@contextmanager
def model_time(now_s: Callable[[], float]) -> Iterator[None]:
    """Inside, workers' control looks at this clock, and ends itself with Exited."""

    def end(code: int) -> typing.NoReturn:
        raise Exited(code)

    clock, system = SimpleNamespace(monotonic=now_s), SimpleNamespace(_exit=end, getpid=os.getpid)
    with patch.object(control_module, "time", clock), patch.object(control_module, "os", system):
        yield
