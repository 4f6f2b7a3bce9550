"""The stream: batches of finished tensors, in order, each with its coordinates.

In:  raw batches from a receiver (a thread on sockets, or inline).
Out: `Batch`es; how long the loop waited for them.
Finishing (Normalize, layout, float) happens here, in the calling thread, when a batch is taken.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import torch

from pipeline.recipe import BatchSpec, Finish
from pipeline.timeline import Timeline
from trainer.batch import Batch
from trainer.buffers import BufferPool
from trainer.finish import Finisher
from trainer.receiver import RawBatch, ReceiverState


class RawBatches(Protocol):
    """What a stream takes batches from."""

    timeline: Timeline
    state: ReceiverState

    def next_batch(self, stall_timeout_s: float) -> RawBatch | None: ...

    def wait_for_spec(self, timeout_s: float) -> BatchSpec: ...

    def end(self) -> None: ...


class BatchStream:
    """Iterating gives each batch exactly once, in order, to the end of the stream."""

    def __init__(
        self,
        receiver: RawBatches,
        *,
        num_samples: int,
        classes: tuple[str, ...],
        device: torch.device,
        stall_timeout_s: float,
    ) -> None:
        self.classes = classes
        self.waited_s = 0.0
        """Seconds the loop has waited for data, finishing not counted."""
        self._receiver = receiver
        self._num_samples = num_samples
        self._device = device
        self._stall_timeout_s = stall_timeout_s
        self._finisher: Finisher | None = None
        self._finished_pool = BufferPool(max_free=2)
        self._being_copied: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        """Pinned memory that a copy to the GPU may still read."""

    @property
    def num_steps(self) -> int:
        """Batches from the beginning of the stream to its end."""
        return self._receiver.timeline.num_steps

    @property
    def spec(self) -> BatchSpec:
        """What the stream delivers; waits for the probe's answer."""
        return self._receiver.wait_for_spec(self._stall_timeout_s)

    def __iter__(self) -> Iterator[Batch]:
        while (raw := self.next_raw()) is not None:
            yield self._finished(raw)

    def next_raw(self) -> RawBatch | None:
        """The next batch as it came over the wire; None at the end."""
        started_s = time.perf_counter()
        raw = self._receiver.next_batch(self._stall_timeout_s)
        self.waited_s += time.perf_counter() - started_s
        return raw

    def close(self) -> None:
        """Give the receiver's sockets back."""
        self._receiver.end()

    def _finished(self, raw: RawBatch) -> Batch:
        return Batch(
            step=raw.range.step,
            epoch=raw.range.start // self._num_samples,
            start=raw.range.start,
            stop=raw.range.stop,
            recipe=raw.range.recipe,
            digest=raw.digest,
            images=self._finish(raw.images_NHWC),
            labels=raw.labels_N.to(self._device, non_blocking=True),
            sample_ids=raw.sample_ids_N,
        )

    def _finish(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        if self._finisher is None:
            self._finisher = Finisher(self.spec.finish, self._device)
        if self._device.type == "cuda":
            finished = self._finisher(images_NHWC)
            self._keep_until_copied(images_NHWC)
            return finished
        return self._finisher(images_NHWC, self._room_for(images_NHWC, self._finisher.finish))

    def _room_for(self, images_NHWC: torch.Tensor, finish: Finish) -> torch.Tensor | None:
        return self._finished_pool.take(tuple(images_NHWC.shape), torch.float32) if finish.scale else None

    def _keep_until_copied(self, images_NHWC: torch.Tensor) -> None:
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._being_copied.append((copied, images_NHWC))
        while self._being_copied and self._being_copied[0][0].query():  # type: ignore[no-untyped-call]
            self._being_copied.popleft()
