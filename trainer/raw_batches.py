"""Raw batches: what a stream is made of before it is finished, and what any receiver of them offers.

In:  a batch's range and spec, a pool of memory; a slice's header.
Out: room for the batch, which a receiver fills; what happened meanwhile.

Shapes: N batch, H height, W width, C channels.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipeline.digests import SAMPLE_DIGEST_NBYTES, batch_digest
from pipeline.messages import ServiceState
from pipeline.recipe import BatchSpec
from pipeline.slice_header import SliceHeader
from pipeline.timeline import BatchRange, Timeline
from trainer.buffers import BufferPool


@dataclass(slots=True, kw_only=True)
class RawBatch:
    """A batch as it came over the wire; complete before anyone else sees it."""

    range: BatchRange
    spec: BatchSpec
    images_NHWC: torch.Tensor
    labels_N: torch.Tensor
    sample_ids_N: torch.Tensor
    digests: list[bytes]

    @property
    def digest(self) -> str:
        """The batch's digest."""
        return batch_digest(self.digests, self.labels_N.numpy(), self.sample_ids_N.numpy())


def empty_batch(batch: BatchRange, spec: BatchSpec, pool: BufferPool) -> RawBatch:
    """Room for a batch of this spec."""
    num_samples, image = batch.stop - batch.start, spec.fields[0]
    return RawBatch(
        range=batch,
        spec=spec,
        images_NHWC=pool.take((num_samples, *image.shape), getattr(torch, image.dtype)),
        labels_N=torch.empty(num_samples, dtype=torch.int64),
        sample_ids_N=torch.empty(num_samples, dtype=torch.int64),
        digests=[b""] * num_samples,
    )


def split_digests(header: SliceHeader) -> list[bytes]:
    """The header's digests, one a sample."""
    size = SAMPLE_DIGEST_NBYTES
    return [header.digests[start : start + size] for start in range(0, len(header.digests), size)]


@dataclass(slots=True)
class ReceiverState:
    """What happened, for messages and summaries."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Slices not used, by reason: twins, old incarnations, wrong digests."""
    num_samples: int = 0
    """Samples placed."""
    num_taken: int = 0
    """Samples that the training loop was given."""
    read_s: float = 0.0
    make_s: float = 0.0
    """Seconds that workers spent reading, and decoding and transforming."""
    waited_s: float = 0.0
    """Seconds that the training loop has waited, the present wait not counted."""
    waiting_since_s: float | None = None
    """When the present wait began, if there is one."""
    service: ServiceState | None = None
    last_arrival_s: float = field(default_factory=time.monotonic)
    last_heard_s: float = field(default_factory=time.monotonic)

    def total_waited_s(self, now_s: float) -> float:
        """Seconds waited until now."""
        return self.waited_s + (now_s - self.waiting_since_s if self.waiting_since_s is not None else 0.0)

    def dropped_text(self) -> str:
        """The most frequent reasons, "" if nothing was dropped."""
        return ", ".join(f"{count} slices ({reason})" for reason, count in self.dropped.most_common(5))


class RawBatches(Protocol):
    """What a stream takes batches from."""

    state: ReceiverState

    @property
    def timeline(self) -> Timeline:
        """As it is now; a swap changes what lies ahead."""

    @property
    def fingerprint(self) -> str:
        """Of the workers that the slices come from, "" before it is known."""

    def next_batch(self) -> RawBatch | None:
        """The next batch; None at the end of the stream."""

    def wait_for_spec(self) -> BatchSpec:
        """What the next batch delivers, once every recipe ahead was probed; ConfigError for one that is refused."""

    def end(self) -> None:
        """Give everything back."""
