"""Buffers: memory is used again when no tensor refers to it, and never before."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sizes import cases
from trainer.buffers import BufferPool

SHAPE = (4, 8, 8, 24)


def addresses(*tensors: torch.Tensor) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_a_dropped_tensor_gives_its_memory_to_the_next() -> None:
    """So a stream allocates a window's worth once, and then nothing."""
    pool = BufferPool(max_free=2)
    tensor = pool.take(SHAPE, torch.uint8)
    address = tensor.data_ptr()
    del tensor
    assert pool.take(SHAPE, torch.uint8).data_ptr() == address


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor[1:3],
        lambda tensor: tensor.permute(0, 3, 1, 2),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: tensor.view(torch.float32) * torch.ones(6, requires_grad=True),
    ],
    ids=["slice", "permuted", "numpy", "storage", "saved for backward"],
)
def test_memory_that_anything_looks_into_is_not_used_again(keep: Callable[[torch.Tensor], object]) -> None:
    """A user may keep a view, an array or a graph instead of the tensor itself."""
    pool = BufferPool(max_free=2)
    tensor = pool.take(SHAPE, torch.uint8)
    address = tensor.data_ptr()
    kept = keep(tensor)
    del tensor
    gc.collect()
    others = [pool.take(SHAPE, torch.uint8) for _ in range(4)]
    assert address not in addresses(*others)
    del kept


@settings(max_examples=cases(200))
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from([1, 2, 5])), max_size=60))
def test_tensors_that_live_never_share_memory(steps: list[tuple[bool, int, int]]) -> None:
    """Any order of taking and dropping, sizes that grow and shrink; every tensor keeps what was written to it."""
    pool = BufferPool(max_free=3)
    living: list[tuple[torch.Tensor, int]] = []
    for number, (is_take, which, size) in enumerate(steps):
        if is_take or not living:
            tensor = pool.take((size, 16), torch.int64)
            living.append((tensor.fill_(number), number))
        else:
            del living[which % len(living)]
        assert len(addresses(*(tensor for tensor, _ in living))) == len(living)
        assert all(bool((tensor == value).all()) for tensor, value in living)


def test_no_more_than_max_free_blocks_wait() -> None:
    """Whoever kept 200 batches and dropped them gets the memory back."""
    pool = BufferPool(max_free=3)
    kept = [pool.take(SHAPE, torch.uint8) for _ in range(50)]
    assert len(addresses(*kept)) == 50
    kept.clear()
    pool.take(SHAPE, torch.uint8)
    assert len(pool._blocks) <= 3


def test_tensors_are_aligned_and_contiguous() -> None:
    """What vectorised kernels and pinned copies want."""
    tensor = BufferPool(max_free=1).take(SHAPE, torch.float32)
    assert tensor.data_ptr() % 64 == 0
    assert tensor.is_contiguous()
    assert (tuple(tensor.shape), tensor.dtype) == (SHAPE, torch.float32)
