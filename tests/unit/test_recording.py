"""Recording: the same bytes as the workers' chain, and the transforms that really ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import load_chain
from pipeline.recipe import Chain, ChainNode, Decode, Recipe
from pipeline.user_code import load_module, source_digest
from tests.unit.test_purity import GRAY_ONLY, REQUIRED, images_for
from workers.chain import compile_chain
from workers.chain_library import ALLOWED
from workers.recording import Applied, RecordingChain

CHAINS = Path(__file__).parents[2] / "configs" / "chains"
NUM_OFFSETS = 40


def recipe_of(*nodes: ChainNode, color: Any = "rgb") -> Recipe:
    return Recipe(chain=Chain(file="test", nodes=nodes), decode=Decode(color=color))


def node(name: str, *children: ChainNode, **params: Any) -> ChainNode:
    return ChainNode(name=name, params=params, children=children, is_composition=bool(children))


def photo() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def names(applied: tuple[Applied, ...]) -> list[tuple[str, ...]]:
    return [(*one.within, one.name) for one in applied]


def assert_equal_bytes(recipe: Recipe, image_HWC: np.ndarray, offsets: range) -> None:
    compiled, recording = compile_chain(recipe), RecordingChain(recipe)
    for offset in offsets:
        expected = compiled.apply(image_HWC.copy(), 7, 1, offset, offset % 3)
        made, _ = recording.apply(image_HWC.copy(), 7, 1, offset, offset % 3)
        assert (expected.shape, expected.dtype) == (made.shape, made.dtype)
        assert expected.tobytes() == made.tobytes()


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_each_transform_makes_the_bytes_it_makes_in_a_worker(name: str) -> None:
    """However the workers call it: a sheet that shows other pixels than were trained on would be worse than none."""
    color = "gray" if name in GRAY_ONLY else "rgb"
    once = node(name, **REQUIRED.get(name, {}), p=0.7)
    assert_equal_bytes(recipe_of(once, color=color), images_for(name)[0].copy(), range(6))


@pytest.mark.parametrize("file", sorted(CHAINS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_chains_we_ship_make_the_bytes_they_make_in_a_worker(file: Path) -> None:
    assert_equal_bytes(Recipe(chain=load_chain(file)), photo(), range(NUM_OFFSETS))


def test_exactly_the_transforms_that_ran_are_told_in_their_order() -> None:
    """Half of the flips are not applied; what is told must agree with what the pixels show."""
    recording = RecordingChain(recipe_of(node("HorizontalFlip", p=0.5), node("InvertImg", p=0.5)))
    image = photo()
    outcomes = set()
    for offset in range(NUM_OFFSETS):
        made, applied = recording.apply(image, 7, 1, offset)
        outcomes.add(tuple(names(applied)))
        expected = image
        for one in applied:
            expected = expected[:, ::-1] if one.name == "HorizontalFlip" else 255 - expected
        assert expected.tobytes() == made.tobytes()
    assert {(), (("HorizontalFlip",),), (("InvertImg",),), (("HorizontalFlip",), ("InvertImg",))} == outcomes


def test_a_choice_is_told_with_the_compositions_around_it() -> None:
    """Of a OneOf the one that was chosen; a Sequential inside it with all its steps."""
    steps = node("Sequential", node("Transpose", p=1), node("InvertImg", p=1), p=0.5)
    recording = RecordingChain(recipe_of(node("OneOf", steps, node("VerticalFlip"), p=0.8)))
    outcomes = {tuple(names(recording.apply(photo(), 7, 1, offset)[1])) for offset in range(NUM_OFFSETS)}
    both = (("OneOf", "Sequential", "Transpose"), ("OneOf", "Sequential", "InvertImg"))
    assert {(), both, (("OneOf", "VerticalFlip"),)} == outcomes


def test_what_runs_twice_is_told_twice() -> None:
    """SomeOf with replacement may choose the same transform again."""
    twice = node("SomeOf", node("GaussNoise", p=1), n=2, replace=True)
    _, applied = RecordingChain(recipe_of(twice)).apply(photo(), 7, 1, 0)
    assert [("SomeOf", "GaussNoise")] * 2 == names(applied)
    first, second = (one.params["noise_map"] for one in applied)
    assert first.tobytes() != second.tobytes()


def test_parameters_are_those_of_this_sample() -> None:
    recording = RecordingChain(recipe_of(node("RandomCrop", height=20, width=16)))
    for offset in range(NUM_OFFSETS):
        made, (crop,) = recording.apply(photo(), 7, 1, offset)
        left, top, right, bottom = crop.params["crop_coords"]
        assert photo()[top:bottom, left:right].tobytes() == made.tobytes()


def test_the_tail_that_is_left_to_the_trainer_is_not_run() -> None:
    """The pictures of a sheet are those that went over the wire."""
    recipe = recipe_of(node("InvertImg", p=1), node("Normalize"), node("ToTensorV2"))
    made, applied = RecordingChain(recipe).apply(photo(), 7, 1, 0)
    assert (255 - photo()).tobytes() == made.tobytes()
    assert [("InvertImg",)] == names(applied)


def test_a_plug_in_is_called_as_in_training(tmp_path: Path) -> None:
    """One that takes an image and nothing else trains for days; its replay must not fail."""
    source = (
        "from albumentations import ImageOnlyTransform\n"
        "class Plain(ImageOnlyTransform):\n"
        "    def __call__(self, image):\n"
        "        return {'image': 255 - image}\n"
    )
    (tmp_path / "plain.py").write_text(source)
    digests = {"plain": source_digest("plain.py", tmp_path)}
    recipe = Recipe(chain=Chain(file="test", nodes=(node("Plain"), node("HorizontalFlip", p=1))), plugins=digests)
    plugins = {"plain": load_module("plain.py", tmp_path)}
    made, applied = RecordingChain(recipe, plugins).apply(photo(), 7, 1, 0)
    assert compile_chain(recipe, plugins).apply(photo(), 7, 1, 0).tobytes() == made.tobytes()
    assert [("Plain",), ("HorizontalFlip",)] == names(applied)


def test_a_plug_in_with_a_call_of_its_own_is_told_when_it_changed_the_image(tmp_path: Path) -> None:
    """It keeps no parameters that could be trusted."""
    source = (
        "from albumentations import ImageOnlyTransform\n"
        "class Odd(ImageOnlyTransform):\n"
        "    def __call__(self, *args, force_apply=False, **data):\n"
        "        if self.py_random.random() < 0.5:\n"
        "            return data\n"
        "        return {**data, 'image': 255 - data['image']}\n"
    )
    (tmp_path / "odd.py").write_text(source)
    plugins = {"odd": load_module("odd.py", tmp_path)}
    recipe = Recipe(chain=Chain(file="test", nodes=(node("Odd"),)), plugins={"odd": source_digest("odd.py", tmp_path)})
    recording = RecordingChain(recipe, plugins)
    seen = set()
    for offset in range(NUM_OFFSETS):
        made, applied = recording.apply(photo(), 7, 1, offset)
        is_changed = made.tobytes() != photo().tobytes()
        seen.add(is_changed)
        assert ([Applied(name="Odd", within=(), params={})] if is_changed else []) == list(applied)
    assert {True, False} == seen
