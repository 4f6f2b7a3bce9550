"""The samples that learning rates are tried on, all in memory.

In:  a stream, how many samples are wanted, how many bytes they may take.
Out: `Samples`: the stream's first ones in its order, as they came over the wire; batches cut from any rows of them.
Finishing (Normalize, float) is done batch by batch: finished samples would take four times the memory.

Shapes: N samples, H height, W width, C channels, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pipeline.recipe import BatchSpec
from trainer.batch import Batch
from trainer.finish import Finisher
from trainer.stream import BatchStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The first N samples of a stream, in its order; a sample is in it once an epoch."""

    images_NHWC: torch.Tensor
    """On the CPU, not finished."""
    labels_N: torch.Tensor
    sample_ids_N: torch.Tensor
    spec: BatchSpec

    def __len__(self) -> int:
        return len(self.labels_N)

    def batches(self, rows_R: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """One pass over these rows, in their order; the last batch may be short."""
        finisher = Finisher(self.spec.finish, device)
        for step, rows in enumerate(torch.split(rows_R, batch_size)):
            yield Batch(
                step=step,
                epoch=0,
                start=step * batch_size,
                stop=step * batch_size + len(rows),
                recipe="",
                digest="",
                images=finisher(self.images_NHWC[rows]),
                labels=self.labels_N[rows].to(device),
                sample_ids=self.sample_ids_N[rows],
            )

    def endless(self, rows_R: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Full batches of these rows, which are at least one batch, over and over in the same order."""
        num_rows = len(rows_R) // batch_size * batch_size
        assert num_rows
        while True:
            yield from self.batches(rows_R[:num_rows], batch_size, device)


def collect(stream: BatchStream, num_wanted: int, max_nbytes: int, on_progress: Callable[[int, int], None]) -> Samples:
    """The stream's first samples: as many as are wanted, unless the stream ends or the memory is full before."""
    spec = stream.spec
    image = spec.fields[0]
    dtype: torch.dtype = getattr(torch, image.dtype)
    image_nbytes = math.prod(image.shape) * dtype.itemsize
    num_wanted = min(num_wanted, max_nbytes // image_nbytes)
    # Memory is taken as it is written to, so a stream that ends early costs what it has.
    images_NHWC = torch.empty((num_wanted, *image.shape), dtype=dtype)
    labels_N, sample_ids_N = (torch.empty(num_wanted, dtype=torch.int64) for _ in range(2))
    num_samples = 0
    on_progress(0, num_wanted)
    while num_samples < num_wanted and (raw := stream.next_raw()) is not None:
        num_new = min(len(raw.labels_N), num_wanted - num_samples)
        rows = slice(num_samples, num_samples + num_new)
        images_NHWC[rows] = raw.images_NHWC[:num_new]
        labels_N[rows] = raw.labels_N[:num_new]
        sample_ids_N[rows] = raw.sample_ids_N[:num_new]
        num_samples += num_new
        on_progress(num_samples, num_wanted)
    kept = slice(num_samples)
    return Samples(images_NHWC=images_NHWC[kept], labels_N=labels_N[kept], sample_ids_N=sample_ids_N[kept], spec=spec)
