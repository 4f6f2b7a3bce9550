"""Direct calls: the bytes and the draws of albumentations' own call, for every transform and every shortcut."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SampleError
from pipeline.recipe import Chain, ChainNode, Decode, Recipe
from pipeline.user_code import load_module
from tests.images import encoded
from tests.sizes import cases
from tests.unit.test_purity import FLOAT_ONLY, GRAY_ONLY, REQUIRED
from workers.chain import CompiledChain, compile_chain
from workers.chain_canvas import Canvas
from workers.chain_direct import DirectCall, direct_call
from workers.chain_library import ALLOWED
from workers.chain_pixels import PIXELS
from workers.decode import JpegRows, decode, opened
from workers.randomness import SampleRandomness

ODD = {"Equalize"}
"""Its parameters may need more than the image."""
DTYPES = (np.uint8, np.uint16, np.float32)


def transform_of(name: str, **params: Any) -> tuple[Any, SampleRandomness]:
    """A transform as a chain builds it, and the generators it draws from."""
    with warnings.catch_warnings(action="ignore"):  # some recommend another transform
        transform, randomness = getattr(albumentations, name)(**params), SampleRandomness()
    transform.set_random_state(randomness.generator, randomness.python)
    return transform, randomness


def noise(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Read-only, so that a shortcut which wrote to its input would fail."""
    generator = np.random.default_rng(seed)
    image: np.ndarray = (
        generator.random(shape, dtype=np.float32)
        if dtype == np.float32
        else generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    )
    image.setflags(write=False)
    return image


def state(randomness: SampleRandomness) -> tuple[Any, ...]:
    """All that decides what either generator draws next."""
    numpy_state = str(randomness.generator.bit_generator.state)
    return numpy_state, randomness.python.getstate()


def outcome(call: Any) -> Any:
    """What came out, as bytes and shape; or which error did."""
    try:
        image = call()
    except Exception as error:
        return type(error), str(error)
    return image.shape, image.dtype, image.tobytes()


def called(direct: DirectCall, image: np.ndarray, canvas: Canvas) -> np.ndarray:
    params = direct.draw(image)
    return image if params is None else direct.paint(image, params, canvas)


def assert_equal_calls(name: str, image: np.ndarray, offset: int, **params: Any) -> None:
    """The direct call against the ordinary one: on an array that isn't ours, and on one that is; offered and fresh."""
    transform, randomness = transform_of(name, **params)
    direct = direct_call(transform)
    assert direct is not None
    randomness.reset(1, 2, offset)
    expected = outcome(lambda: transform(image=image)["image"])
    expected_state = state(randomness)
    offered = np.empty(expected[0], expected[1]) if len(expected) == 3 else None
    for is_ours in (False, True):
        for out in (None, offered):
            canvas = Canvas()
            canvas.renew(out)
            given_image = image
            if is_ours:
                given_image = canvas.claim(image.shape, image.dtype)
                given_image[...] = image
            randomness.reset(1, 2, offset)
            got = outcome(lambda: called(direct, given_image, canvas))  # noqa: B023 (called at once)
            assert expected == got
            assert expected_state == state(randomness)


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("name", sorted(ALLOWED - ODD))
def test_every_transform_called_directly_makes_the_same_bytes_with_the_same_draws(name: str, p: float) -> None:
    params = {
        key: tuple(value) if isinstance(value, list) and key != "max_size" else value
        for key, value in REQUIRED.get(name, {}).items()
    }
    for offset, shape in enumerate([(33, 25), (32, 28), (48, 40), (41, 64)][: max(2, cases(4))]):
        image = noise((*shape, 1 if name in GRAY_ONLY else 3), np.float32 if name in FLOAT_ONLY else np.uint8, offset)
        assert_equal_calls(name, image, offset, p=p, **params)


def test_odd_transforms_are_called_the_ordinary_way() -> None:
    assert [direct_call(transform_of(name)[0]) for name in ODD] == [None]


sides = st.sampled_from([1, 2, 3, 7, 8, 16, 24, 31, 32, 33, 64]) | st.integers(1, 70)
images = st.builds(
    lambda height, width, channels, dtype, seed: noise((height, width, channels), dtype, seed),
    sides, sides, st.sampled_from([1, 3, 3, 3, 4]), st.sampled_from([np.uint8, np.uint8, *DTYPES]), st.integers(0, 9),
)  # fmt: skip
offsets = st.integers(0, 10**6)
factors = st.floats(0, 3) | st.sampled_from([0, 1, 1.0, 0.0, 2, 1e-9, 1e5])
pairs = st.tuples(factors, factors).map(sorted).map(tuple)
hues = (st.floats(-0.5, 0.5) | st.sampled_from([0, 0.5, -0.5, 0.1, -1 / 180, 10 / 180, 1e-12, -1e-12])).map(
    lambda hue: (hue, hue)
) | st.just((-0.5, 0.5))
sizes = st.tuples(sides, sides)


@settings(max_examples=cases(300))
@given(images, offsets, pairs, pairs, pairs, hues)
def test_color_jitter_is_the_same(
    image: np.ndarray, offset: int, bright: Any, contrast: Any, sat: Any, hue: Any
) -> None:
    """All orders, factors of 0 and 1, gray and 16-bit images, which take the ordinary way."""
    params = {"brightness": bright, "contrast": contrast, "saturation": sat, "hue": hue}
    assert_equal_calls("ColorJitter", image, offset, p=1.0, **params)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_color_jitter_of_one_colour_is_the_same(value: int) -> None:
    """The mean is then on the edge of rounding, as a whole number or where the weights of gray don't add up to 1."""
    for offset in range(20):
        image = np.full((17, 23, 3), value, np.uint8)
        image[0, 0] = 255 - value
        assert_equal_calls("ColorJitter", image, offset, p=1.0)


def test_a_shift_of_hue_maps_every_colour_alike() -> None:
    """Each of the 180 hues at many saturations, shifted by each number of degrees and a bit."""
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for degree in range(-90, 91, 9):
        for bit in (0, 0.3, -1e-13):
            hue = min(0.5, max(-0.5, degree / 180 + bit / 180))
            assert_equal_calls("ColorJitter", image, 1, p=1.0, hue=(hue, hue))


@settings(max_examples=cases(200))
@given(
    images, offsets, sizes, st.sampled_from([0, 1, 2, 3, 4, 5, 6]), st.sampled_from([None, "image", "image_mask"]),
    st.sampled_from([(0.08, 1.0), (0.9, 1.0), (1.0, 1.0), (1e-4, 1e-3)]),
)  # fmt: skip
def test_crops_that_are_resized_are_the_same(
    image: np.ndarray, offset: int, size: tuple[int, int], interpolation: int, area: str | None, scale: Any
) -> None:
    """Up, down and not at all; every interpolation."""
    common: dict[str, Any] = {"size": size, "interpolation": interpolation, "area_for_downscale": area}
    assert_equal_calls("RandomResizedCrop", image, offset, scale=scale, **common)
    assert_equal_calls("RandomSizedCrop", image, offset, min_max_height=(1, max(1, image.shape[0] // 2)), **common)
    resize = {"height": size[0], "width": size[1], "interpolation": interpolation, "area_for_downscale": area}
    assert_equal_calls("Resize", image, offset, **resize)


@settings(max_examples=cases(150))
@given(images, offsets, sizes, st.booleans(), st.sampled_from(["center", "random", "top_left"]))
def test_plain_crops_are_the_same(
    image: np.ndarray, offset: int, size: tuple[int, int], is_padded: bool, position: str
) -> None:
    """Too large a crop is refused in the same words, or padded."""
    params = {"height": size[0], "width": size[1], "pad_if_needed": is_padded, "pad_position": position}
    assert_equal_calls("RandomCrop", image, offset, **params)
    assert_equal_calls("CenterCrop", image, offset, **params)


@settings(max_examples=cases(150))
@given(images, offsets)
def test_a_horizontal_flip_is_the_same(image: np.ndarray, offset: int) -> None:
    """Widths that are a multiple of eight, and others, which take the ordinary way."""
    assert_equal_calls("HorizontalFlip", image, offset, p=1.0)


@settings(max_examples=cases(150))
@given(
    images, offsets,
    st.sampled_from([0, 255, 0.5, 7.9, 300, -1, True, (1, 2, 3), (4,), "random", "random_uniform"]),
    st.sampled_from([(0.1, 0.2), (0.0, 0.0), (0.9, 0.95), (1, 5)]),
)  # fmt: skip
def test_holes_are_the_same(image: np.ndarray, offset: int, fill: Any, side_range: Any) -> None:
    """Fills that the pixels can't hold are refused in the same words; random ones take the ordinary way.

    No painting-in: OpenCV's depends on what was in memory before, where an image has one row only.
    """
    ranges = {"hole_height_range": side_range, "hole_width_range": side_range, "num_holes_range": (1, 4)}
    assert_equal_calls("CoarseDropout", image, offset, p=1.0, fill=fill, **ranges)
    if not isinstance(fill, bool):
        assert_equal_calls("Erasing", image, offset, p=1.0, fill=fill)


@pytest.mark.parametrize(
    ("name", "params", "image"),
    [
        ("ColorJitter", {}, noise((8, 8, 1))),
        ("ColorJitter", {}, noise((8, 8, 3), np.float32)),
        ("HorizontalFlip", {}, noise((8, 9, 3))),
        ("HorizontalFlip", {}, noise((8, 8, 3), np.uint16)),
        ("CoarseDropout", {"fill": "random"}, noise((40, 40, 3))),
        ("CoarseDropout", {"fill": "inpaint_telea"}, noise((40, 40, 3))),
        ("RandomCrop", {"height": 20, "width": 20, "pad_if_needed": True}, noise((8, 8, 3))),
        ("RandomResizedCrop", {"size": (8, 8)}, noise((16, 16, 5))),
        ("Resize", {"height": 4, "width": 4, "area_for_downscale": "image"}, noise((8, 8, 3))),
    ],
)
def test_what_a_shortcut_is_not_made_for_takes_the_ordinary_way(name: str, params: Any, image: np.ndarray) -> None:
    transform, _ = transform_of(name, **params)
    direct = direct_call(transform)
    assert direct is not None
    drawn = None
    while drawn is None:
        drawn = direct.draw(image)
    assert PIXELS[name](transform, image, drawn, Canvas()) is None
    assert_equal_calls(name, image, 1, **{**params, "p": 1.0})


def test_a_class_that_only_has_the_name_gets_no_shortcut() -> None:
    class HorizontalFlip(albumentations.HorizontalFlip):  # type: ignore[misc]
        def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
            return img + np.uint8(1)

    direct = direct_call(HorizontalFlip(p=1.0))
    assert direct is not None
    assert (called(direct, noise((8, 8, 3)), Canvas()) == noise((8, 8, 3)) + np.uint8(1)).all()


FREE = (
    "HorizontalFlip",
    "ColorJitter",
    "CoarseDropout",
    "VerticalFlip",
    "NoOp",
    "Transpose",
    "Blur",
    "InvertImg",
    "D4",
)
CHOICES = [
    *(ChainNode(name=name) for name in FREE),
    ChainNode(name="Crop", params={"x_max": 16, "y_max": 8}),  # whole rows: a view that is contiguous
    ChainNode(name="Crop", params={"x_min": 3, "y_min": 2, "x_max": 16, "y_max": 16}),
    ChainNode(name="RandomResizedCrop", params={"size": [24, 16]}),
    ChainNode(name="RandomResizedCrop", params={"size": [24, 16], "p": 0.5}),
    ChainNode(name="Resize", params={"height": 24, "width": 16}),
    ChainNode(name="CenterCrop", params={"height": 16, "width": 16, "pad_if_needed": True}),
    ChainNode(name="OneOf", is_composition=True, children=(ChainNode(name="NoOp"), ChainNode(name="ColorJitter"))),
    ChainNode(
        name="Sequential",
        params={"p": 1.0},
        is_composition=True,
        children=(ChainNode(name="HorizontalFlip"), ChainNode(name="Crop", params={"x_max": 16, "y_max": 8})),
    ),
]


def chain_of(*nodes: ChainNode) -> CompiledChain:
    return compile_chain(Recipe(chain=Chain(file="f", nodes=nodes)))


def ordinary(chain: CompiledChain, image: np.ndarray, offset: int) -> np.ndarray:
    """Every transform by its own call."""
    chain._reset(1, 2, offset, 0)
    data: dict[str, Any] = {"image": image}
    for transform in chain._transforms:
        data = transform(**data)
    return np.ascontiguousarray(data["image"])


@settings(max_examples=cases(300))
@given(
    nodes=st.lists(st.sampled_from(CHOICES), max_size=6),
    first=st.integers(0, 10**6),
    offered_HW=st.sampled_from([(24, 16), (16, 16), (30, 24)]),
)
def test_any_chain_makes_the_same_samples_and_writes_to_nobody_elses_array(
    nodes: list[ChainNode], first: int, offered_HW: tuple[int, int]
) -> None:
    """The input, and what was returned for earlier samples, stay as they were, also beside views of each other."""
    chain = chain_of(*nodes)
    image = noise((30, 24, 3))
    kept: list[tuple[np.ndarray, bytes]] = []
    for offset in range(first, first + 4):
        expected = outcome(lambda: ordinary(chain, image, offset))  # noqa: B023 (called at once)
        if len(expected) == 2:  # a crop larger than what came before it left: located
            with pytest.raises(SampleError, match=r"chain\[\d\]"):
                chain.apply(image, 1, 2, offset)
            continue
        offered = np.empty((*offered_HW, 3), np.uint8) if offset % 2 else None
        made = chain.apply(image, 1, 2, offset, 0, offered)
        assert expected == (made.shape, made.dtype, made.tobytes())
        kept.append((made, made.tobytes()))
    assert all(made.tobytes() == before for made, before in kept)


def test_the_benchmarks_chain_writes_its_result_where_it_is_wanted() -> None:
    chain = chain_of(
        ChainNode(name="RandomResizedCrop", params={"size": [24, 16]}),
        *(ChainNode(name=name) for name in ("HorizontalFlip", "ColorJitter", "CoarseDropout")),
    )
    batch = np.zeros((6, 24, 16, 3), np.uint8)
    for offset, row in enumerate(batch):
        assert chain.apply(noise((30, 40, 3)), 1, 2, offset, 0, row) is row
        assert row.tobytes() == ordinary(chain, noise((30, 40, 3)), offset).tobytes()


CROPS = [
    ChainNode(name="RandomResizedCrop", params={"size": [24, 16]}),
    ChainNode(name="RandomResizedCrop", params={"size": [24, 16], "p": 0.5}),
    ChainNode(name="RandomSizedCrop", params={"min_max_height": [10, 40], "size": [24, 16]}),
    ChainNode(name="RandomCrop", params={"height": 20, "width": 30}),
    ChainNode(name="RandomCrop", params={"height": 90, "width": 30, "pad_if_needed": True, "pad_position": "random"}),
    ChainNode(name="CenterCrop", params={"height": 20, "width": 30}),
    ChainNode(name="Crop", params={"y_max": 9, "x_max": 9}),
    ChainNode(name="HorizontalFlip"),
]


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("node", [*CROPS, None], ids=lambda node: node.name if node else "nothing")
def test_a_jpeg_decoded_as_far_as_the_crop_gives_the_same_sample(node: ChainNode | None, color: Any) -> None:
    nodes = (node, ChainNode(name="HorizontalFlip")) if node else ()
    chain = compile_chain(Recipe(chain=Chain(file="f", nodes=nodes), decode=Decode(color=color)))
    data, settings = encoded("JPEG", image=noise((61, 45, 3))), Decode(color=color)
    for offset in range(30):
        image = opened(data, settings)
        assert isinstance(image, JpegRows)
        expected = chain.apply(decode(data, settings), 1, 2, offset)
        assert chain.apply(image, 1, 2, offset).tobytes() == expected.tobytes()


class Promise:
    """An image that notes how much of it was asked for."""

    shape = (61, 45, 3)

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[int] = []
        self.error = error

    def top(self, num_rows: int) -> np.ndarray:
        self.asked.append(num_rows)
        if self.error:
            raise self.error
        return noise(self.shape)[:num_rows]


def test_no_more_rows_are_asked_for_than_the_first_crop_looks_at() -> None:
    for node, expected in zip(CROPS[3:], (range(20, 62), {61}, {40}, {61}, {61}), strict=True):
        asked = set()
        for offset in range(50):
            promise = Promise()
            chain_of(node).apply(promise, 1, 2, offset)
            asked |= set(promise.asked)
            assert len(promise.asked) == 1
        assert asked <= set(expected)
        assert node.name != "RandomCrop" or len(asked) > 10 or asked == {61}


@pytest.mark.parametrize("node", [CROPS[0], CROPS[-1]], ids=lambda node: node.name)
def test_what_fails_before_the_image_is_there_is_not_the_transforms_fault(node: ChainNode) -> None:
    with pytest.raises(SampleError, match=r"^JPEG: broken$"):
        chain_of(node).apply(Promise(SampleError("JPEG: broken")), 1, 2, 3)
    with pytest.raises(MemoryError):
        chain_of(node).apply(Promise(MemoryError()), 1, 2, 3)


def test_a_failing_shortcut_or_crop_is_named_with_its_path() -> None:
    hole = ChainNode(name="CoarseDropout", params={"fill": 300, "p": 1.0})
    with pytest.raises(
        SampleError, match=r"chain\[1\]\.CoarseDropout failed on an image \(30, 40, 3\) uint8: Overflow"
    ):
        chain_of(ChainNode(name="NoOp"), hole).apply(noise((30, 40, 3)), 1, 2, 3)
    crop = ChainNode(name="RandomCrop", params={"height": 100, "width": 9})
    with pytest.raises(SampleError, match=r"chain\[0\]\.RandomCrop failed on an image \(61, 45, 3\) uint8: CropSize"):
        chain_of(crop).apply(Promise(), 1, 2, 3)


PLUGIN = """\
import numpy as np
from albumentations import ImageOnlyTransform

class Marks(ImageOnlyTransform):
    def __call__(self, *args, force_apply=False, **data):
        return {**data, "mark": data.get("mark", 0) + 1}

class Reads(ImageOnlyTransform):
    def apply_with_params(self, params, **data):
        return {**data, "image": data["image"] + np.uint8(data["mark"])}

class Plain(ImageOnlyTransform):
    def apply(self, img, **params):
        return img + np.uint8(params["shape"][0])

class NeedsMore(ImageOnlyTransform):
    @property
    def targets_as_params(self):
        return ["mark"]
"""


def test_a_plug_in_with_its_own_way_of_being_called_is_called_that_way(tmp_path: Path) -> None:
    """What it adds to the data reaches the transforms after it, plain ones in between notwithstanding."""
    (tmp_path / "marks.py").write_text(PLUGIN)
    module = load_module("marks.py", tmp_path)
    assert [direct_call(getattr(module, name)()) for name in ("Marks", "Reads", "NeedsMore")] == [None] * 3
    assert direct_call(module.Plain()) is not None
    digest = hashlib.sha256((tmp_path / "marks.py").read_bytes()).hexdigest()
    nodes = [ChainNode(name=name, params={"p": 1.0}) for name in ("Marks", "Plain", "Marks", "HorizontalFlip", "Reads")]
    chain = compile_chain(
        Recipe(chain=Chain(file="f", nodes=tuple(nodes)), plugins={"marks": digest}), {"marks": module}
    )
    image = noise((8, 8, 3))
    assert np.array_equal(image[:, ::-1] + np.uint8(8 + 2), chain.apply(image, 1, 2, 3))


BUGGY = """\
from albumentations import ImageOnlyTransform

class Buggy(ImageOnlyTransform):
    def apply(self, img, **params):
        return img[helper(img)]

def helper(img):
    return [7, 8, 9][img.ndim]

class Lazy(ImageOnlyTransform):
    pass
"""


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_plug_in_that_fails_is_told_with_its_own_line_and_the_image_that_it_was_given(
    is_inside: bool, tmp_path: Path
) -> None:
    """Not the decoded one; of a transform inside a composition, what those before it there have made."""
    (tmp_path / "buggy.py").write_text(BUGGY)
    module, digest = load_module("buggy.py", tmp_path), hashlib.sha256(BUGGY.encode()).hexdigest()

    def failure(last: str) -> str:
        resize = ChainNode(name="Resize", params={"height": 9, "width": 11, "p": 1.0})
        nodes = (resize, ChainNode(name=last, params={"p": 1.0}))
        if is_inside:
            nodes = (ChainNode(name="Sequential", params={"p": 1.0}, children=nodes, is_composition=True),)
        recipe = Recipe(chain=Chain(file="f", nodes=nodes), plugins={"buggy": digest})
        with pytest.raises(SampleError) as caught:
            compile_chain(recipe, {"buggy": module}).apply(noise((30, 40, 3)), 1, 2, 3)
        return str(caught.value)

    path = "chain[0].Sequential[1]" if is_inside else "chain[1]"
    expected = f"{path}.Buggy failed on an image (9, 11, 3) uint8: IndexError: list index out of range"
    assert failure("Buggy") == f"{expected} ({tmp_path}/buggy.py:8)"
    assert failure("Lazy").startswith(f"{path}.Lazy failed on an image (9, 11, 3) uint8: NotImplementedError")
    assert ".py" not in failure("Lazy")
