"""The words below a sample's picture: short, rounded, complete enough."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.applied_text import MAX_CHARS, applied_name, applied_params
from pipeline.recipe import Chain, ChainNode, Decode, Recipe
from tests.unit.test_purity import GRAY_ONLY, REQUIRED, images_for
from workers.chain_library import ALLOWED
from workers.recording import Applied, RecordingChain


def said(name: str, **params: object) -> str:
    return applied_params(Applied(name=name, within=(), params=params))


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_each_transform_is_told_on_one_short_line(name: str) -> None:
    """No array is printed whole, no object by its address."""
    color = "gray" if name in GRAY_ONLY else "rgb"
    chain = Chain(file="test", nodes=(ChainNode(name=name, params={**REQUIRED.get(name, {}), "p": 1.0}),))
    recording = RecordingChain(Recipe(chain=chain, decode=Decode(color=color)))
    for offset in range(3):
        _, applied = recording.apply(images_for(name)[0].copy(), 7, 1, offset)
        for one in applied:
            text = applied_params(one)
            assert len(text) <= MAX_CHARS
            assert "\n" not in text
            assert "array(" not in text
            assert " at 0x" not in text


def test_a_choice_is_named_with_what_is_around_it() -> None:
    assert "OneOf > Sequential > Blur" == applied_name(Applied(name="Blur", within=("OneOf", "Sequential"), params={}))


@pytest.mark.parametrize(
    ("expected", "params"),
    [
        ("crop 20x30 at 5,7", {"crop_coords": (5, 7, 25, 37), "shape": (60, 80, 3)}),
        ("brightness 1.23, order (2, 0, 1)", {"brightness": 1.2345, "order": [2, 0, 1]}),
        ("2 holes: 3x4 at 1,2; 5x6 at 10,20", {"holes": np.array([[1, 2, 4, 6], [10, 20, 15, 26]]), "seed": 4}),
        ("1 hole: 3x4 at 1,2", {"holes": np.array([[1, 2, 4, 6]])}),
        ("120 holes", {"holes": np.zeros((120, 4), dtype=int)}),
        ("scale x 1 y 0.5", {"scale": {"x": 1.0, "y": 0.5}, "interpolation": 1, "fill": 0.0}),
        ("matrix [1 0 2.5 / 0 1 -3]", {"matrix": np.array([[1, 0, 2.5], [0, 1, -3], [0, 0, 1]])}),
        ("noise_map 48x64x3, -0.5 to 0.25", {"noise_map": np.linspace(-0.5, 0.25, 48 * 64 * 3).reshape(48, 64, 3)}),
        ("salt_mask on 25 % of 2x2", {"salt_mask": np.array([[True, False], [False, False]])}),
        ("kernel 19 values, 0 to 1", {"kernel": np.linspace(0, 1, 19)}),
        ("alpha_vector (0.1, 0.2, 0.3)", {"alpha_vector": np.array([0.1, 0.2, 0.3], dtype=np.float32)}),
        ("circles 9 of them", {"circles": [(0.1, (1, 2))] * 9}),
        ("", {"shape": (8, 8, 3), "pad_params": None}),
    ],
)
def test_parameters_are_rounded_and_summarised(expected: str, params: dict[str, object]) -> None:
    assert expected == said("Any", **params)


def test_a_turn_is_told_in_degrees() -> None:
    """Rotate keeps only its matrix; the image is turned anticlockwise as seen."""
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    turn = ChainNode(name="Rotate", params={"limit": [30, 30], "p": 1.0})
    _, (applied,) = RecordingChain(Recipe(chain=Chain(file="test", nodes=(turn,)))).apply(image, 1, 0, 0)
    assert applied_params(applied).startswith("by 30 degrees, matrix [")
