"""The inline receiver: makes every slice in the calling thread, for a debugger (`workers: 0`).

In:  a function that makes a slice, the same that workers run.
Out: the same batches as `trainer/receiver.py`, through the same frames; no process, no socket, no thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.messages import Lease, Lost, SliceHeader, StreamSpec
from pipeline.recipe import BatchSpec
from pipeline.timeline import Timeline, slices_of
from pipeline.wire import decode_header, encode_slice
from trainer.buffers import BufferPool
from trainer.policy import BadSamplePolicy
from trainer.receiver import RawBatch, ReceiverState, empty_batch, split_digests

MAX_READS = 3

Made = tuple[SliceHeader, Sequence[NDArray[np.generic]]]


class InlineReceiver:
    """Batches in order, each made when it is asked for."""

    def __init__(
        self,
        *,
        stream: str,
        incarnation: int,
        spec: StreamSpec,
        timeline: Timeline,
        batch_spec: BatchSpec,
        make: Callable[[Lease], Made | tuple[int, str]],
        policy: BadSamplePolicy,
        pool: BufferPool,
    ) -> None:
        """`make` gives a slice, or the position that could not be read and why."""
        self.timeline = timeline
        self.batch_spec = batch_spec
        self.state = ReceiverState()
        self._stream, self._incarnation, self._spec = stream, incarnation, spec
        self._make = make
        self._policy = policy
        self._pool = pool
        self._step = 0

    def next_batch(self, stall_timeout_s: float) -> RawBatch | None:
        """The next batch; None at the end of the stream."""
        if self._step >= self.timeline.num_steps:
            return None
        batch = empty_batch(self.timeline.batch(self._step), self.batch_spec, self._pool)
        for start, stop in slices_of(batch.range, self._spec.slice_size):
            self._fill(batch, start, stop)
        self._step += 1
        self._policy.quarantined_from(batch.range.stop)
        return batch

    def wait_for_spec(self, timeout_s: float) -> BatchSpec:
        """What the stream delivers."""
        return self.batch_spec

    def end(self) -> None:
        """Nothing to close."""

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
        num_failures = 0
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
            made = self._make(lease)
            if isinstance(made[0], SliceHeader):
                return made
            position, cause = made[0], str(made[1])
            num_failures += 1
            if num_failures % MAX_READS == 0:
                self._policy.lost([Lost(position=position, attempt=quarantined.get(position, 0), cause=cause)])
            else:
                time.sleep(0.1)
