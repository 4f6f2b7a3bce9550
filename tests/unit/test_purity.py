"""Law 1, over every transform a chain may name: a sample's bytes depend on its coordinates only."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from pipeline.recipe import Chain, ChainNode, Decode, Recipe
from workers.chain import CompiledChain, compile_chain
from workers.chain_library import ALLOWED, COMPOSITIONS

REQUIRED: dict[str, dict[str, Any]] = {
    "CenterCrop": {"height": 20, "width": 16},
    "Crop": {"x_min": 2, "y_min": 3, "x_max": 20, "y_max": 24},
    "CropAndPad": {"px": [-2, 3]},
    "GridElasticDeform": {"num_grid_xy": [3, 3], "magnitude": 4},
    "LongestMaxSize": {"max_size": [16, 20, 24]},
    "PadIfNeeded": {"min_height": 40, "min_width": 36, "position": "random"},
    "RandomCrop": {"height": 20, "width": 16},
    "RandomResizedCrop": {"size": [20, 16]},
    "RandomSizedCrop": {"min_max_height": [8, 24], "size": [20, 16]},
    "Resize": {"height": 20, "width": 16},
    "SmallestMaxSize": {"max_size": [16, 20, 24]},
    "TimeMasking": {"time_mask_param": 10},
    "FrequencyMasking": {"freq_mask_param": 10},
    "XYMasking": {"num_masks_x": [1, 3], "num_masks_y": 2, "mask_x_length": [2, 6], "mask_y_length": 4},
}
"""Parameters a transform can't do without, or without which it would do nothing."""
FLOAT_ONLY = {"FromFloat"}
GRAY_ONLY = {"ToRGB"}


def compiled(*nodes: ChainNode, color: Any = "rgb") -> CompiledChain:
    return compile_chain(Recipe(chain=Chain(file="test", nodes=nodes), decode=Decode(color=color)))


def images_for(name: str) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    shapes = [(32, 28), (48, 40)]
    channels = 1 if name in GRAY_ONLY else 3
    images = [generator.integers(0, 256, (*shape, channels), dtype=np.uint8) for shape in shapes]
    if name in FLOAT_ONLY:
        images = [np.float32(image) / 255 for image in images]
    for image in images:
        image.setflags(write=False)  # a transform that wrote to its input would spoil a source of arrays
    return images


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_equal_coordinates_give_equal_bytes_whatever_came_before(name: str) -> None:
    """Fresh; after other samples of another size and random states elsewhere; and as one among several."""
    node = ChainNode(name=name, params={**REQUIRED.get(name, {}), "p": 1.0})
    color = "gray" if name in GRAY_ONLY else "rgb"
    image, other = images_for(name)

    fresh = compiled(node, color=color).apply(image, 7, 1, 3)
    used = compiled(node, color=color)
    for offset in (4, 3, 9):
        used.apply(other, 7, 1, offset)
        np.random.seed(offset)  # the global state, which a transform must not read
        random.seed(offset)
    again = used.apply(image, 7, 1, 3)

    assert fresh.flags.c_contiguous
    assert fresh.ndim == 3
    assert (fresh.shape, fresh.dtype) == (again.shape, again.dtype)
    assert fresh.tobytes() == again.tobytes()


def test_a_node_draws_the_same_when_it_runs_after_a_skipped_one() -> None:
    """The draws are a sequence: a node with p 0 or 1 takes none, so its neighbour's are not shifted."""
    image = images_for("RandomCrop")[0]
    crop = ChainNode(name="RandomCrop", params={"height": 20, "width": 16})
    skipped = ChainNode(name="GaussNoise", params={"p": 0.0})
    first, second = compiled(crop).apply(image, 1, 0, 5), compiled(crop, skipped).apply(image, 1, 0, 5)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    "changed", [(8, 1, 3, 0), (7, 2, 3, 0), (7, 1, 4, 0), (7, 1, 3, 1), (1, 7, 3, 0), (7, 3, 1, 0)]
)
def test_each_coordinate_changes_the_sample(changed: tuple[int, int, int, int]) -> None:
    """Also where two coordinates merely change places, or their sum stays."""
    image = images_for("GaussNoise")[0]
    chain = compiled(ChainNode(name="GaussNoise", params={"p": 1.0}))
    assert chain.apply(image, 7, 1, 3).tobytes() != chain.apply(image, *changed).tobytes()


def test_flips_at_one_half_give_all_four_outcomes_about_equally() -> None:
    """Chi-square over 2,000 offsets with 3 degrees of freedom: 16.27 is its 99.9 % quantile."""
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    chain = compiled(
        ChainNode(name="HorizontalFlip", params={"p": 0.5}),
        ChainNode(name="VerticalFlip", params={"p": 0.5}),
        color="gray",
    )
    outcomes = [chain.apply(image, 3, 0, offset).tobytes() for offset in range(2000)]
    counts = [outcomes.count(outcome) for outcome in set(outcomes)]
    assert len(counts) == 4
    assert sum((count - 500) ** 2 / 500 for count in counts) < 16.27


def test_nested_compositions_are_pure_too() -> None:
    children = (
        ChainNode(name="HorizontalFlip"),
        ChainNode(name="GaussNoise", params={"p": 1.0}),
        ChainNode(name="RandomBrightnessContrast"),
    )
    image, other = images_for("")
    for name in sorted(COMPOSITIONS):
        chosen = children[:2] if name == "OneOrOther" else children
        params = {"channels": [2, 0]} if name == "SelectiveChannelTransform" else {}
        if name in ("SomeOf", "RandomOrder"):
            params = {"n": 2}
        node = ChainNode(name=name, is_composition=True, children=chosen, params={**params, "p": 0.9})
        used = compiled(node)
        for offset in range(20):
            used.apply(other, 7, 1, offset)
            assert compiled(node).apply(image, 7, 1, offset).tobytes() == used.apply(image, 7, 1, offset).tobytes()
