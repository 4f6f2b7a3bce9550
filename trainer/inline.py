"""The inline receiver: makes every slice in the calling thread, for a debugger (`workers: 0`).

In:  something that probes recipes and makes slices, the same that workers run.
Out: the same batches as `trainer/receiver.py`, through the same frames; no process, no socket, no thread.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ConfigError, Problem
from pipeline.lease_stream import MAX_READS
from pipeline.messages import Lease, Lost, OpenStream, StreamSpec
from pipeline.plan import named_recipes
from pipeline.recipe import BatchSpec, Recipe
from pipeline.slice_header import SliceHeader
from pipeline.timeline import Timeline, slices_of
from pipeline.wire import decode_header, encode_slice
from trainer.buffers import BufferPool
from trainer.course import Course
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import RawBatch, ReceiverState, empty_batch, split_digests
from trainer.swapping import Outcome, Swapping, Wish

Made = tuple[SliceHeader, Sequence[NDArray[np.generic]]]


class SliceMaker(Protocol):
    """A worker, in this thread."""

    fingerprint: str
    """Equal fingerprints make equal bytes."""

    def open(self, message: OpenStream) -> None:
        """What probes and leases refer to from now on."""

    def probe(self, stream: tuple[str, int], digest: str) -> BatchSpec | tuple[Problem, ...]:
        """What a recipe delivers, or why it is refused."""

    def make(self, lease: Lease) -> Made | Lost:
        """The slice, or the sample that could not be read and why."""


class InlineReceiver:
    """Batches in order, each made when it is asked for."""

    def __init__(
        self,
        *,
        stream: str,
        incarnation: int,
        spec: StreamSpec,
        course: Course,
        head_step: int,
        maker: SliceMaker,
        policy: BadSamplePolicy,
        pool: BufferPool,
        on_outcome: Callable[[Wish, Outcome], None] = lambda wish, outcome: None,
    ) -> None:
        """ConfigError for a recipe ahead that is refused."""
        self.state = ReceiverState()
        self._stream, self._incarnation, self._spec = stream, incarnation, spec
        self._course = course
        self._maker = maker
        self._policy = policy
        self._pool = pool
        self._step = head_step
        self._swapping = Swapping(course, on_outcome)
        self._wishes: deque[Wish] = deque()
        self._open()
        for recipe in course.unprobed(head_step):
            answer = maker.probe((stream, incarnation), recipe.digest)
            if not isinstance(answer, BatchSpec):
                raise ConfigError(answer)
            course.learn(recipe.digest, answer, head_step)
        self._open()

    @property
    def timeline(self) -> Timeline:
        """As it is now."""
        return self._course.timeline

    @property
    def fingerprint(self) -> str:
        """Of the libraries that make the slices here."""
        return self._maker.fingerprint

    def next_batch(self) -> RawBatch | None:
        """The next batch; None at the end of the stream."""
        self._fulfil_wishes()
        if self._step >= self.timeline.num_steps:
            return None
        batch = empty_batch(self.timeline.batch(self._step), self._course.spec_at(self._step), self._pool)
        for start, stop in slices_of(batch.range, self._spec.slice_size):
            self._fill(batch, start, stop)
        self._step += 1
        self._policy.quarantined_from(batch.range.stop)
        self.state.num_taken += len(batch.digests)
        return batch

    def wait_for_spec(self) -> BatchSpec:
        """What the next batch delivers."""
        return self._course.spec_at(self._step)

    def wish(self, wish: Wish) -> None:
        """Somebody wants another chain, from the next batch on; from any thread."""
        self._wishes.append(wish)

    def wait_for_wishes(self) -> None:
        """Until every wish has its outcome: they are granted or refused here."""
        self._fulfil_wishes()

    def release(self) -> None:
        """Nothing is made before it is asked for, held or not."""
        self._course.is_held = False

    def end(self) -> None:
        """Nothing to close."""

    def _fulfil_wishes(self) -> None:
        while self._wishes:
            self._swapping.ask(self._wishes.popleft(), self._step)
        while (recipe := self._swapping.probing) is not None:
            self._open(recipe)
            answer = self._maker.probe((self._stream, self._incarnation), recipe.digest)
            spec, problems = (answer, ()) if isinstance(answer, BatchSpec) else (None, answer)
            self._swapping.probed(recipe.digest, spec, problems, self._step)
            self._open()

    def _open(self, *probed: Recipe) -> None:
        course = self._course
        named = named_recipes(course.timeline.entries, course.recipes)
        spec = msgspec.structs.replace(self._spec, timeline=course.timeline.entries, recipes=(*named, *probed))
        known = dict(course.batch_specs)
        self._maker.open(OpenStream(stream=self._stream, incarnation=self._incarnation, spec=spec, batch_specs=known))

    def _fill(self, batch: RawBatch, start: int, stop: int) -> None:
        header, *frames = encode_slice(*self._made(start, stop, batch.range.recipe))
        decoded = decode_header(header)
        rows = slice(start - batch.range.start, stop - batch.range.start)
        for tensor, frame in zip((batch.images_NHWC[rows], batch.labels_N[rows]), frames, strict=True):
            tensor.numpy().data.cast("B")[:] = frame
        batch.digests[rows] = split_digests(decoded)
        batch.sample_ids_N[rows] = torch.tensor(decoded.sample_ids, dtype=torch.int64)
        self.state.num_samples += stop - start
        self.state.read_s += decoded.read_s
        self.state.make_s += decoded.make_s
        self._policy.delivered(stop - start, decoded.bad)

    def _made(self, start: int, stop: int, recipe: str) -> tuple[SliceHeader, Sequence[NDArray[np.generic]]]:
        failed_reads = Counter[tuple[int, int]]()  # by position and attempt, as in pipeline/lease_stream.py
        while True:
            quarantined = self._policy.quarantined_in(start, stop)
            lease = Lease(
                number=1,
                stream=self._stream,
                incarnation=self._incarnation,
                start=start,
                stop=stop,
                recipe=recipe,
                quarantined=quarantined,
            )
            made = self._maker.make(lease)
            if not isinstance(made, Lost):
                return made
            sample = made.position, made.attempt
            failed_reads[sample] += 1
            if failed_reads[sample] == MAX_READS:
                self._policy.lost([made])
            else:
                time.sleep(0.1)
