"""The finish equals `x * scale + shift`, in any layout, dtype and block size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.recipe import Finish
from tests.sizes import cases
from trainer import finish as finish_module
from trainer.finish import Finisher

RGB = Finish(scale=(0.0171, 0.0175, 0.0174), shift=(-2.118, -2.036, -1.804), channels_first=True)
CPU = torch.device("cpu")


def finish_images(images_NHWC: torch.Tensor, finish: Finish) -> torch.Tensor:
    return Finisher(finish, torch.device("cpu"))(images_NHWC)


def random_images(shape_NHWC: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if dtype == "float32":
        return generator.random(shape_NHWC, dtype=np.float32)
    return generator.integers(0, np.iinfo(dtype).max, shape_NHWC, dtype=dtype, endpoint=True)


@settings(max_examples=cases(60))
@given(
    num_images=st.integers(1, 5),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    num_channels=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    is_per_channel=st.booleans(),
    block_elements=st.sampled_from([1, 50, 1000, 1 << 17]),
)
def test_the_finish_is_the_formula(num_images, height, width, num_channels, dtype, is_per_channel, block_elements):
    images_NHWC = random_images((num_images, height, width, num_channels), dtype)
    num_constants = num_channels if is_per_channel else 1
    largest = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    scale = tuple((2.0 + channel) / largest for channel in range(num_constants))
    shift = tuple(-1.5 - channel for channel in range(num_constants))
    expected = images_NHWC.astype(np.float64) * np.float32(scale) + np.float32(shift)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish_module, "_BLOCK_ELEMENTS", block_elements)
        finished = finish_images(torch.from_numpy(images_NHWC), Finish(scale=scale, shift=shift, channels_first=True))
    assert finished.dtype == torch.float32
    assert finished.shape == (num_images, num_channels, height, width)
    np.testing.assert_allclose(finished.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_channels_first_is_a_view_in_channels_last_memory():
    """The model gets NCHW without a transposing copy."""
    finished = finish_images(torch.zeros((2, 5, 7, 3), dtype=torch.uint8), RGB)
    assert finished.shape == (2, 3, 5, 7)
    assert finished.is_contiguous(memory_format=torch.channels_last)


def test_the_result_lies_in_the_given_buffer():
    images_NHWC = torch.from_numpy(random_images((2, 5, 7, 3), "uint8"))
    out_NHWC = torch.full((2, 5, 7, 3), torch.nan)
    finished = Finisher(RGB, CPU)(images_NHWC, out_NHWC)
    assert finished.data_ptr() == out_NHWC.data_ptr()
    assert torch.equal(finished, finish_images(images_NHWC, RGB))


def test_the_wire_images_are_not_changed():
    images_NHWC = torch.from_numpy(random_images((2, 5, 7, 3), "float32"))
    before = images_NHWC.clone()
    finish_images(images_NHWC, RGB)
    assert torch.equal(before, images_NHWC)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels_first", [True, False])
def test_without_scale_the_images_keep_their_dtype_and_memory(dtype, channels_first):
    images_NHWC = torch.from_numpy(random_images((2, 5, 7, 3), dtype))
    finished = finish_images(images_NHWC, Finish(channels_first=channels_first))
    assert finished.dtype == images_NHWC.dtype
    assert finished.data_ptr() == images_NHWC.data_ptr()
    assert finished.shape == ((2, 3, 5, 7) if channels_first else (2, 5, 7, 3))


class Operations(TorchDispatchMode):
    """Counts what would each be a kernel to launch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "num_blocks"), [("meta", 1), ("cpu", 64 * 224 // 48 + 1)])
def test_only_a_cpu_finishes_block_by_block(device: str, num_blocks: int) -> None:
    """A batch in 299 blocks is 598 kernels on a GPU, which has no use for them."""
    images_NHWC = torch.zeros((64, 224, 224, 3), dtype=torch.uint8, device=device)
    finisher = Finisher(RGB, torch.device(device))
    with Operations() as operations:
        finisher(images_NHWC)
    assert operations.names.count("copy_") == operations.names.count("addcmul") == num_blocks


def test_one_finisher_serves_batches_of_different_width_and_count():
    finisher = Finisher(RGB, CPU)
    for shape_NHWC in ((4, 6, 8, 3), (4, 6, 5, 3), (1, 6, 8, 3)):
        images_NHWC = torch.from_numpy(random_images(shape_NHWC, "uint8"))
        assert torch.equal(finisher(images_NHWC), finish_images(images_NHWC, RGB))
