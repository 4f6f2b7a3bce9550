"""Compiled chains: strict building, the finish's values, what a failing transform is called."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import albumentations
import numpy as np
import pytest

from pipeline.config import load_chain
from pipeline.errors import ConfigError, Problem, SampleError
from pipeline.recipe import Chain, ChainNode, Decode, Finish, Recipe
from pipeline.user_code import load_module, source_digest
from tests.unit.test_purity import FLOAT_ONLY, GRAY_ONLY, REQUIRED
from workers.chain import CompiledChain, compile_chain
from workers.chain_library import ALLOWED, FORBIDDEN
from workers.randomness import SampleRandomness
from workers.unserved import CannotServe

CHAINS = Path(__file__).parents[2] / "configs" / "chains"


def compiled(text: str, folder: Path, decode: Decode = Decode()) -> CompiledChain:  # noqa: B008 (frozen)
    (folder / "chain.yaml").write_text(text)
    return compile_chain(Recipe(chain=load_chain(folder / "chain.yaml"), decode=decode))


def problems_of(text: str, folder: Path, decode: Decode = Decode()) -> tuple[Problem, ...]:  # noqa: B008 (frozen)
    with pytest.raises(ConfigError) as caught:
        compiled(text, folder, decode)
    return caught.value.problems


def image(channels: int = 3, dtype: Any = np.uint8, side: int = 24) -> np.ndarray:
    largest = np.iinfo(dtype).max
    values: np.ndarray = np.random.default_rng(1).integers(
        0, largest, (side, side + 4, channels), dtype=dtype, endpoint=True
    )
    return values


def finished(image_HWC: np.ndarray, finish: Finish) -> np.ndarray:
    """What the trainer does, said in NumPy."""
    if not finish.scale:
        return image_HWC
    made: np.ndarray = np.float32(image_HWC) * np.float32(finish.scale) + np.float32(finish.shift)
    return made


@pytest.mark.parametrize("file", sorted(CHAINS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_chains_we_ship_compile_and_leave_the_tail_to_the_trainer(file: Path) -> None:
    chain = compile_chain(Recipe(chain=load_chain(file)))
    made = chain.apply(image(side=260), 1, 0, 0)
    assert made.dtype == np.uint8
    assert chain.finish.channels_first
    assert len(chain.finish.scale) == len(chain.finish.shift) == 3
    side = {"imagenet_bench": 224, "tutorial_plain": 32, "tutorial_augmented": 32}.get(file.stem, 64)
    assert made.shape[:2] == (side, side)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"mean": 0.5, "std": 0.25},
        {"mean": [0.1, 0.2, 0.3], "std": 0.5, "normalization": "standard"},
        {"mean": 0, "std": [1, 2, 3], "p": 1},
        {"mean": [0.4], "std": [0.2]},
    ],
)
def test_the_finish_equals_albumentations_own_normalize(params: dict[str, Any], color: Any, dtype: Any) -> None:
    """Within float32 rounding: the values are as large as 1 / std, and two roundings differ."""
    given = {**params, "max_pixel_value": float(np.iinfo(dtype).max)}
    nodes = (ChainNode(name="HorizontalFlip", params={"p": 1.0}), ChainNode(name="Normalize", params=given))
    depth: Any = 8 if dtype is np.uint8 else 16
    recipe = Recipe(chain=Chain(file="f", nodes=nodes), decode=Decode(color=color, depth=depth))
    chain = compile_chain(recipe)
    raw = image(chain.channels, dtype)
    made = chain.apply(raw, 1, 0, 0)
    assert made.dtype == dtype
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    expected = albumentations.Normalize(**arguments)(image=np.ascontiguousarray(raw[:, ::-1]))["image"]
    expected = expected if expected.ndim == 3 else expected[:, :, None]
    got = finished(made, chain.finish)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("mode", ["image", "image_per_channel", "min_max", "min_max_per_channel"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_normalize_modes_stay_in_the_worker(mode: str, channels: int) -> None:
    nodes = (ChainNode(name="Normalize", params={"normalization": mode}), ChainNode(name="ToTensorV2"))
    decode = Decode(color="gray" if channels == 1 else "rgb")
    chain = compile_chain(Recipe(chain=Chain(file="f", nodes=nodes), decode=decode))
    assert chain.finish == Finish(channels_first=True)
    expected = albumentations.Normalize(normalization=mode)(image=image(channels))["image"]
    made = chain.apply(image(channels), 1, 0, 0)
    assert made.dtype == np.float32
    assert made.tobytes() == np.float32(expected).tobytes()


@pytest.mark.parametrize(
    ("text", "is_moved"),
    [
        ("- Normalize", True),
        ("- Normalize: {p: 0.5}", False),
        ("- Normalize\n- HorizontalFlip", False),
        ("- Sequential: {p: 1.0, transforms: [Normalize]}", False),
        ("- ToGray: {num_output_channels: 1, p: 0.5}\n- Normalize", False),
        ("- ToGray: {num_output_channels: 1, p: 1.0}\n- Normalize", True),
        ("- ToGray\n- Normalize", True),
        ("- OneOf: [ToGray: {num_output_channels: 1}]\n- Normalize", False),
    ],
)
def test_only_a_certain_normalize_at_the_end_is_moved(tmp_path: Path, text: str, is_moved: bool) -> None:
    chain = compiled(text + "\n- ToTensorV2", tmp_path)
    assert bool(chain.finish.scale) is is_moved
    if is_moved:
        made = finished(chain.apply(image(), 1, 0, 0), chain.finish)
        assert len(chain.finish.scale) in (1, made.shape[2])


def test_apply_equals_compose_with_the_same_generators(tmp_path: Path) -> None:
    """Calling the transforms directly changes no byte: Compose under force_apply draws nothing itself."""
    text = "- RandomCrop: {height: 16, width: 16}\n- HorizontalFlip\n- ColorJitter\n- OneOf: [GaussNoise, Blur]\n- D4"
    chain, twin = compiled(text, tmp_path), compiled(text, tmp_path)
    compose = albumentations.Compose(twin._transforms)
    randomness = SampleRandomness()
    compose.set_random_state(randomness.generator, randomness.python)
    for offset in range(30):
        randomness.reset(5, 2, offset)
        expected = compose(force_apply=True, image=image())["image"]
        assert chain.apply(image(), 5, 2, offset).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_what_albumentations_saves_loads_to_the_same_transform(name: str, tmp_path: Path) -> None:
    """save() writes every parameter, some with another type; the samples stay the same."""
    params = {**REQUIRED.get(name, {}), "p": 1.0}
    color: Any = "gray" if name in GRAY_ONLY else "rgb"
    decode = Decode(color=color)
    recipe = Recipe(chain=Chain(file="f", nodes=(ChainNode(name=name, params=params),)), decode=decode)
    chain, transforms = compile_chain(recipe), compile_chain(recipe)._transforms
    if name == "Normalize":  # moved into the finish
        transforms = [albumentations.Normalize()]
    saved = tmp_path / "saved.yaml"
    albumentations.save(albumentations.Compose(transforms), saved, data_format="yaml")
    again = compile_chain(Recipe(chain=load_chain(saved), decode=decode))
    raw = image(chain.channels, side=40)
    if name in FLOAT_ONLY:
        raw = np.float32(raw) / 255
    assert again.apply(raw, 1, 0, 4).tobytes() == chain.apply(raw, 1, 0, 4).tobytes()
    assert again.finish == chain.finish


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("- HorizontalFlp", "chain[0].HorizontalFlp", "HorizontalFlip"),
        ("- horizontalflip", "chain[0].horizontalflip", "HorizontalFlip"),
        ("- Blur: {blur_limi: 3}", "chain[0].Blur.blur_limi", "blur_limit"),
        ("- Blur: {blur_limit: 4}", "chain[0].Blur", "odd"),
        ("- RandomCrop: {height: 3}", "chain[0].RandomCrop.width", "no default"),
        ("- HorizontalFlip: {p: 1.5}", "chain[0].HorizontalFlip.p", "1.5"),
        ("- HorizontalFlip: {p: true}", "chain[0].HorizontalFlip.p", "number"),
        ("- HorizontalFlip: {p: '0.5'}", "chain[0].HorizontalFlip.p", "number"),
        ("- GaussNoise: {per_channel: yes}", "chain[0].GaussNoise.per_channel", "boolean"),
        ("- Rotate: {interpolation: linear}", "chain[0].Rotate.interpolation", "1 linear"),
        ("- HorizontalFlip: [Blur]", "chain[0].HorizontalFlip", "holds no transforms"),
        ("- OneOf: []", "chain[0].OneOf", "empty"),
        ("- OneOf", "chain[0].OneOf", "transforms"),
        ("- OneOf: [Blur: {p: 0}]", "chain[0].OneOf", "above 0"),
        ("- OneOf: {p: 2, transforms: [Blur]}", "chain[0].OneOf.p", "0 to 1"),
        ("- SomeOf: {n: 2, transforms: [Blur]}", "chain[0].SomeOf.n", "1 to 1"),
        ("- SomeOf: {replace: 1, transforms: [Blur]}", "chain[0].SomeOf.replace", "true"),
        ("- OneOrOther: [Blur]", "chain[0].OneOrOther", "two"),
        ("- SelectiveChannelTransform: [Blur]", "chain[0].SelectiveChannelTransform.channels", "0 to 2"),
        ("- Sequential: [OneOf: [Blurr]]", "chain[0].Sequential[0].OneOf[0].Blurr", "Blur"),
        ("- ToTensorV2\n- Blur", "chain[0].ToTensorV2", "last"),
        ("- ToTensorV2: {p: 0.5}", "chain[0].ToTensorV2.p", "1.0"),
        ("- Resize: {height: 100000, width: 3}", "chain[0].Resize.height", "16384"),
        ("- Resize: {height: 8000, width: 8000}", "chain[0].Resize.height", "16777216"),
        ("- RandomResizedCrop: {size: [9000, 9000]}", "chain[0].RandomResizedCrop.size", "16777216"),
        ("- Blur: {blur_limit: 1001}", "chain[0].Blur.blur_limit", "255"),
        ("- ZoomBlur: {step_factor: 1.0e-9}", "chain[0].ZoomBlur.step_factor", "0.001"),
        ("- Normalize: {mean: [0, 0], std: 1}", "chain[0].Normalize.mean", "1 or 3"),
        ("- Normalize: {std: -1}", "chain[0].Normalize.std", "above 0"),
        ("- Normalize: {mean: [0.5, 0.5]}\n- HorizontalFlip", "chain[0].Normalize.mean", "1 or 3"),
        ("- Normalize: {std: [1, 1, 1, 1], p: 0.5}", "chain[0].Normalize.std", "1 or 3"),
        ("- OneOf: [NoOp, Normalize: {mean: []}]", "chain[0].OneOf[1].Normalize.mean", "1 or 3"),
        ("- Normalize: {std: [1, -1, 1]}\n- HorizontalFlip", "chain[0].Normalize.std", "above 0"),
        ("- Normalize: {max_pixel_value: -1, p: 0.5}", "chain[0].Normalize.max_pixel_value", "above 0"),
        ("- os.system: {command: ls}", "chain[0].os.system", "os.system"),
        ("- Equalize: {mask: [[1]]}", "chain[0].Equalize.mask", "nothing"),
    ],
)
def test_a_wrong_chain_is_refused_where_it_is_wrong(tmp_path: Path, text: str, path: str, hint: str) -> None:
    found = {problem.path: problem for problem in problems_of(text, tmp_path)}
    assert hint in str(found[path])
    assert found[path].line == 1


@pytest.mark.parametrize(
    "text",
    [
        "- Normalize: {mean: [0.1, 0.2, 0.3], std: 1}\n- HorizontalFlip",
        "- ToGray: {num_output_channels: 1}\n- Normalize: {p: 0.5}",
        "- ToGray: {num_output_channels: 4, p: 1}\n- Normalize: {mean: [1, 2, 3, 4], std: 1}\n- HorizontalFlip",
        "- SelectiveChannelTransform: {channels: [0, 2], transforms: [Normalize: {mean: [1, 2], std: [1, 2]}]}",
        "- Normalize: {mean: [0, 0], normalization: image}",
    ],
)
def test_a_normalize_whose_numbers_may_be_meant_is_built(tmp_path: Path, text: str) -> None:
    compiled(text, tmp_path)


def test_numbers_that_a_grey_image_has_no_channels_for_are_refused(tmp_path: Path) -> None:
    """Of three it takes the first, as of Normalize's own defaults; two are a mistake."""
    (problem,) = problems_of("- Normalize: {mean: [0.5, 0.5]}", tmp_path, Decode(color="gray"))
    assert (problem.path, problem.got) == ("chain[0].Normalize.mean", "2")


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_a_forbidden_transform_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    (problem,) = problems_of(f"# first\n- {name}", tmp_path)
    assert (problem.line, problem.path) == (2, f"chain[0].{name}")
    assert FORBIDDEN[name] in problem.got


def test_every_transform_of_the_library_is_either_allowed_or_forbidden() -> None:
    bases = (albumentations.ImageOnlyTransform, albumentations.DualTransform, albumentations.Transform3D)
    found = {
        name
        for name, member in vars(albumentations).items()
        if isinstance(member, type) and issubclass(member, bases) and member not in bases
    }
    assert found - {*ALLOWED, *FORBIDDEN} == set()
    assert found >= ALLOWED


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("HorizontalFlip: {always_apply: true}", "p: 1.0"),
        ("RandomResizedCrop: {height: 8, width: 8}", "size: [height, width]"),
        ("RandomSizedCrop: {min_max_height: [4, 8], height: 8, width: 8}", "size: [height, width]"),
        ("GaussNoise: {var_limit: [10, 50]}", "std_range"),
        ("CoarseDropout: {max_holes: 8}", "num_holes_range"),
        ("CoarseDropout: {min_height: 8}", "hole_height_range"),
        ("CoarseDropout: {max_width: 8}", "hole_width_range"),
        ("CoarseDropout: {fill_value: 0}", "fill"),
        ("CoarseDropout: {mask_fill_value: 0}", "fill_mask"),
        ("ImageCompression: {quality_lower: 50}", "quality_range"),
        ("Downscale: {scale_min: 0.5}", "scale_range"),
        ("ElasticTransform: {alpha_affine: 5}", "Affine"),
        ("Rotate: {value: 0}", "fill"),
        ("PadIfNeeded: {mask_value: 0}", "fill_mask"),
        ("Affine: {cval: 0}", "fill"),
        ("Affine: {mode: 0}", "border_mode"),
        ("Perspective: {pad_mode: 0}", "border_mode"),
        ("RandomShadow: {num_shadows_lower: 1}", "num_shadows_limit"),
        ("RandomSnow: {snow_point_lower: 0.1}", "snow_point_range"),
        ("RandomRain: {slant_lower: -5}", "slant_range"),
        ("RandomFog: {fog_coef_upper: 0.5}", "fog_coef_range"),
        ("RandomSunFlare: {num_flare_circles_lower: 5}", "num_flare_circles_range"),
        ("Solarize: {threshold: 128}", "threshold_range"),
        ("GridDropout: {unit_size_min: 2}", "unit_size_range"),
        ("AdvancedBlur: {sigmaX_limit: 1}", "sigma_x_limit"),
        ("JpegCompression: {p: 0.5}", "ImageCompression"),
        ("Flip", "HorizontalFlip"),
    ],
)
def test_a_parameter_of_1_x_is_refused_with_its_2_x_spelling(tmp_path: Path, text: str, spelling: str) -> None:
    found = problems_of(f"- {text}", tmp_path)
    assert any(spelling in problem.way_out and "1.x" in problem.got for problem in found)


def test_all_problems_of_a_chain_come_at_once(tmp_path: Path) -> None:
    text = "- Blurr\n- OneOf:\n    q: 1\n    transforms:\n      - Lambda\n      - Blur: {p: 7}\n- ToTensorV2: {x: 1}"
    assert {problem.line for problem in problems_of(text, tmp_path)} == {1, 3, 5, 6, 7}


def test_depth_and_number_of_transforms_are_limited() -> None:
    deep = ChainNode(name="Blur")
    for _ in range(20):
        deep = ChainNode(name="Sequential", is_composition=True, children=(deep,))
    wide = tuple(ChainNode(name="NoOp") for _ in range(501))
    for nodes in ((deep,), wide):
        with pytest.raises(ConfigError, match="at most"):
            compile_chain(Recipe(chain=Chain(file="f", nodes=nodes)))


def test_the_deepest_chain_allowed_can_be_written(tmp_path: Path) -> None:
    text = "Blur"
    for _ in range(15):
        text = f"Sequential: {{transforms: [{{{text}}}]}}" if ":" in text else f"Sequential: {{transforms: [{text}]}}"
    assert compiled(f"- {text}", tmp_path)
    with pytest.raises(ConfigError, match="at most 16 levels"):
        compiled(f"- Sequential: [{{{text}}}]", tmp_path)


def test_a_missing_p_is_the_class_own_default(tmp_path: Path) -> None:
    chain = compiled(
        "- RandomCrop: {height: 4, width: 4}\n- HorizontalFlip\n- OneOf: [Blur]\n- SomeOf: [Blur]", tmp_path
    )
    assert [transform.p for transform in chain._transforms] == [1.0, 0.5, 0.5, 1.0]


PLUGIN = """\
import numpy as np
from albumentations import ImageOnlyTransform, HorizontalFlip

class Dim(ImageOnlyTransform):
    def __init__(self, shift: int = 1, p: float = 1.0):
        super().__init__(p=p)
        self.shift = shift

    def apply(self, img, **params):
        if self.shift == 9:
            raise MemoryError
        if self.shift == 8:
            raise FileNotFoundError("no table on this machine")
        return img >> self.shift

class Fails(ImageOnlyTransform):
    def apply(self, img, **params):
        raise RuntimeError("no\\nluck")
"""


@pytest.fixture(name="plugin")
def _plugin(tmp_path: Path) -> ModuleType:
    (tmp_path / "dim.py").write_text(PLUGIN)
    return load_module("dim.py", tmp_path)


def with_plugin(module: ModuleType, *nodes: ChainNode) -> CompiledChain:
    assert module.__file__
    digest = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    return compile_chain(Recipe(chain=Chain(file="f", nodes=nodes), plugins={"dim": digest}), {"dim": module})


def test_a_plug_in_class_is_known_by_its_name(plugin: ModuleType) -> None:
    for name in ("Dim", "dim.Dim"):
        chain = with_plugin(plugin, ChainNode(name=name, params={"shift": 2}))
        assert (chain.apply(image(), 1, 0, 0) == image() >> 2).all()
    with pytest.raises(ConfigError, match=r"did you mean shift\?"):
        with_plugin(plugin, ChainNode(name="Dim", params={"shft": 2}))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("RandomResizedCrop: {size: 64}", "a pair such as [height, width]"),
        ("RandomResizedCrop: {size: [64]}", "a pair such as [height, width]"),
        ("GaussNoise: {std_range: 3}", "a pair such as [0.2, 0.44]"),
        ("Rotate: {limit: [1, 2, 3]}", "a pair such as [-90, 90] or a valid number"),
        ("Normalize: {mean: x}", "a list such as [0.485, 0.456, 0.406] or a valid number"),
    ],
)
def test_a_parameter_of_several_values_is_told_with_an_example(item: str, expected: str, tmp_path: Path) -> None:
    """No `valid tuple`: YAML has none."""
    assert [problem.expected for problem in problems_of(f"- {item}\n", tmp_path)] == [expected]


def test_a_plug_in_must_be_there_and_be_the_same_source(plugin: ModuleType, tmp_path: Path) -> None:
    """What stands in the way is this worker's own: another may serve the stream."""
    chain = Chain(file="f", nodes=())
    for digest, modules, way_out in (
        ("0" * 64, {"dim": plugin}, "put it back"),
        (source_digest("dim.py", tmp_path), {}, "--plugins dim"),
    ):
        with pytest.raises(CannotServe, match=way_out):
            compile_chain(Recipe(chain=chain, plugins={"dim": digest}), modules)


def test_a_plug_in_that_was_edited_after_it_was_loaded_makes_the_bytes_of_what_was_loaded(
    plugin: ModuleType, tmp_path: Path
) -> None:
    """Law 1: a job that began before the edit gets its own bytes, and one that began after it none that are wrong."""
    before = source_digest("dim.py", tmp_path)
    (tmp_path / "dim.py").write_text(PLUGIN.replace("img >> self.shift", "img << self.shift"))
    chain = Chain(file="f", nodes=(ChainNode(name="Dim", params={"shift": 2}),))
    compiled = compile_chain(Recipe(chain=chain, plugins={"dim": before}), {"dim": plugin})
    assert (compiled.apply(image(), 1, 0, 0) == image() >> 2).all()
    with pytest.raises(CannotServe, match=r"restart these workers: .*dim\.py was changed"):
        compile_chain(Recipe(chain=chain, plugins={"dim": source_digest("dim.py", tmp_path)}), {"dim": plugin})


def test_a_failing_transform_is_named_with_its_path(plugin: ModuleType) -> None:
    inner = ChainNode(name="Fails", params={"p": 1.0})
    node = ChainNode(
        name="Sequential", params={"p": 1.0}, is_composition=True, children=(ChainNode(name="NoOp"), inner)
    )
    with pytest.raises(SampleError, match=r"chain\[0\]\.Sequential\[1\]\.Fails .*RuntimeError: no luck"):
        with_plugin(plugin, node).apply(image(), 1, 0, 0)


@pytest.mark.parametrize(("shift", "error"), [(9, MemoryError), (8, FileNotFoundError)])
def test_what_may_fail_on_one_worker_alone_is_not_the_samples_fault(
    plugin: ModuleType, shift: int, error: type[Exception]
) -> None:
    """A substitute for it would make bytes that depend on the worker."""
    with pytest.raises(error):
        with_plugin(plugin, ChainNode(name="Dim", params={"shift": shift})).apply(image(), 1, 0, 0)


def test_a_worker_never_imports_torch() -> None:
    code = "import sys, workers.chain; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=CHAINS.parents[1]).returncode == 0
