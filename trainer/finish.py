"""The finish: what the chain's tail left for the trainer's side, done on whole batches.

In:  images as they came over the wire, NHWC and contiguous (uint8, uint16 or float32), and a `Finish`.
Out: the same images as `x * scale + shift` in float32, seen as NCHW (channels_last memory) or NHWC.
Never transposes memory, never changes its input, never knows which transforms the finish stands for.

Shapes: N batch, H height, W width, C channels.
"""

from __future__ import annotations

import torch

from pipeline.recipe import BatchSpec, Finish

_BLOCK_ELEMENTS = (1 << 15) - 1
"""Elements finished at a time on a CPU: 128 KiB of float32, so the second pass over a block finds it in the L2 cache,
and just below the 32,768 from which torch shares an operation among its threads. Measured at batch 64 of 224x224x3, in
microseconds of processor time an image: 127 with one thread (155 in one piece); with two threads beside busy workers
136 to 171, where larger blocks took 180 to 1,200, waiting for each other. On two idle cores 2^17 would be a third
quicker, but idle cores are not what a trainer beside its workers has."""


def delivered_text(spec: BatchSpec) -> str:
    """What a training loop gets under this spec, such as `image float32 3x224x224 (NCHW)`; equal texts, equal kinds."""
    image, *others = spec.fields
    height, width, num_channels = image.shape
    is_first = spec.finish.channels_first
    shape = (num_channels, height, width) if is_first else (height, width, num_channels)
    texts = [f"{image.name} {'float32' if spec.finish.scale else image.dtype} {_sizes(shape)}"]
    texts += [f"{field.name} {field.dtype} {_sizes(field.shape)}".rstrip() for field in others]
    return f"{', '.join(texts)} ({'NCHW' if is_first else 'NHWC'})"


def trained_text(spec: BatchSpec) -> str:
    """The same without the image's size, such as `image float32 with 3 channels, label int64 (NCHW)`."""
    height, width, num_channels = spec.fields[0].shape
    is_first = spec.finish.channels_first
    sized = _sizes((num_channels, height, width) if is_first else (height, width, num_channels))
    return delivered_text(spec).replace(sized, f"with {num_channels} channels", 1)


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


class Finisher:
    """Finishes every batch of a stream with constants that are made once."""

    def __init__(self, finish: Finish, device: torch.device) -> None:
        self.finish = finish
        self.device = device
        self._scale_row = torch.empty(0)
        self._shift_row = torch.empty(0)

    def __call__(self, images_NHWC: torch.Tensor, out_NHWC: torch.Tensor | None = None) -> torch.Tensor:
        """`x * scale + shift` per channel as float32; NCHW in channels_last memory after ToTensorV2, else NHWC.

        `out_NHWC` (float32, contiguous, on the finisher's device) receives the result and is what the returned
        tensor looks into; fresh memory costs its page faults, twice the work itself. Without scale and
        shift the images keep their dtype and memory, and `out_NHWC` is not used. For CUDA the wire bytes are copied
        first, without waiting: a pinned input must live until that copy has ended.
        """
        images_NHWC = images_NHWC.to(self.device, non_blocking=True)
        if self.finish.scale:
            images_NHWC = self._normalise(images_NHWC, out_NHWC)
        return images_NHWC.permute(0, 3, 1, 2) if self.finish.channels_first else images_NHWC

    def _normalise(self, images_NHWC: torch.Tensor, out_NHWC: torch.Tensor | None) -> torch.Tensor:
        if out_NHWC is None:
            out_NHWC = torch.empty(images_NHWC.shape, dtype=torch.float32, device=self.device)
        _, _, width, num_channels = images_NHWC.shape
        self._fit_rows(width, num_channels)
        # A row of W*C constants, not C of them: the inner loop is then long and contiguous, so it is vectorised.
        row = width * num_channels
        # Another device has no such cache, and each block would be two more kernels to launch.
        elements = _BLOCK_ELEMENTS if self.device.type == "cpu" else images_NHWC.numel()
        rows_a_block = max(1, elements // row)
        wire_blocks = torch.split(images_NHWC.view(-1, row), rows_a_block)
        for wire_block, block in zip(wire_blocks, torch.split(out_NHWC.view(-1, row), rows_a_block), strict=True):
            # Converted apart: addcmul on mixed dtypes takes torch's slow element-wise path (370 µs an image).
            block.copy_(wire_block)
            torch.addcmul(self._shift_row, block, self._scale_row, out=block)
        return out_NHWC

    def _fit_rows(self, width: int, num_channels: int) -> None:
        if self._scale_row.numel() != width * num_channels:
            self._scale_row = self._row(self.finish.scale, width, num_channels)
            self._shift_row = self._row(self.finish.shift, width, num_channels)

    def _row(self, constants: tuple[float, ...], width: int, num_channels: int) -> torch.Tensor:
        channels = torch.tensor(constants, dtype=torch.float32, device=self.device).expand(num_channels)
        return channels.repeat(width)
