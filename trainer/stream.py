"""The stream: batches of finished tensors, in order, each with its coordinates.

In:  raw batches from a receiver (a thread on sockets, or inline).
Out: `Batch`es; how long the loop waited for them.
Finishing (Normalize, layout, float) happens here, in the calling thread, when a batch is taken.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch

from pipeline.recipe import BatchSpec, Finish
from pipeline.timeline import Timeline
from trainer.batch import Batch
from trainer.buffers import BufferPool
from trainer.finish import Finisher
from trainer.raw_batches import RawBatch, RawBatches

MAX_FINISHERS = 8
"""Kinds of finish whose constants are kept; a job alternates between a few chains at most."""


class BatchStream:
    """Iterating gives each batch exactly once, in order, to the end of the stream."""

    def __init__(
        self,
        receiver: RawBatches,
        *,
        num_samples: int,
        classes: tuple[str, ...],
        device: torch.device,
    ) -> None:
        self.classes = classes
        self.waited_s = 0.0
        """Seconds the loop has waited for data, finishing not counted."""
        self._receiver = receiver
        self._num_samples = num_samples
        self._device = device
        self._finishers: dict[Finish, Finisher] = {}
        self._finished_pool = BufferPool(max_free=2)
        self._being_copied: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        """Pinned memory that a copy to the GPU may still read."""

    @property
    def num_steps(self) -> int:
        """Batches from the beginning of the stream to its end."""
        return self._receiver.timeline.num_steps

    @property
    def timeline(self) -> Timeline:
        """As it is now; a swap changes what lies ahead."""
        return self._receiver.timeline

    @property
    def fingerprint(self) -> str:
        """Of the workers that the batches come from, "" before it is known."""
        return self._receiver.fingerprint

    @property
    def spec(self) -> BatchSpec:
        """What the next batch delivers; waits until every recipe ahead was probed, ConfigError if one is refused."""
        return self._receiver.wait_for_spec()

    def __iter__(self) -> Iterator[Batch]:
        while (raw := self.next_raw()) is not None:
            yield self._finished(raw)

    def next_raw(self) -> RawBatch | None:
        """The next batch as it came over the wire; None at the end."""
        started_s = time.perf_counter()
        raw = self._receiver.next_batch()
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
            images=self._finish(raw.images_NHWC, raw.spec.finish),
            labels=raw.labels_N.to(self._device, non_blocking=True),
            sample_ids=raw.sample_ids_N,
        )

    def _finish(self, images_NHWC: torch.Tensor, finish: Finish) -> torch.Tensor:
        finisher = self._finisher(finish)
        if self._device.type == "cuda":
            finished = finisher(images_NHWC)
            self._keep_until_copied(images_NHWC)
            return finished
        return finisher(images_NHWC, self._room_for(images_NHWC, finish))

    def _finisher(self, finish: Finish) -> Finisher:
        if finish not in self._finishers:
            while len(self._finishers) >= MAX_FINISHERS:
                del self._finishers[next(iter(self._finishers))]
            self._finishers[finish] = Finisher(finish, self._device)
        return self._finishers[finish]

    def _room_for(self, images_NHWC: torch.Tensor, finish: Finish) -> torch.Tensor | None:
        return self._finished_pool.take(tuple(images_NHWC.shape), torch.float32) if finish.scale else None

    def _keep_until_copied(self, images_NHWC: torch.Tensor) -> None:
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._being_copied.append((copied, images_NHWC))
        while self._being_copied and self._being_copied[0][0].query():  # type: ignore[no-untyped-call]
            self._being_copied.popleft()
