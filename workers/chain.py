"""A recipe's chain, ready to run: an image and its coordinates in, the augmented image out.

In:  a `Recipe`, plug-in modules; then images (H,W,C) with (seed, epoch, offset, attempt).
Out: `CompiledChain`: augmented images (H,W,C), and the `Finish` that is left for the trainer.
Never reads a file, never depends on what it made before; the chain's tail (Normalize, ToTensorV2) is not run here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from pipeline.errors import ConfigError, Problem, SampleError
from pipeline.recipe import ChainNode, Finish, Recipe
from pipeline.sample_causes import failure_text
from pipeline.user_code import file_digest, loaded_digest, own_place
from workers.chain_build import ChainBuilder
from workers.chain_canvas import Canvas
from workers.chain_direct import direct_call
from workers.chain_library import COMPOSITIONS, TO_TENSOR, is_library_class, known_transforms
from workers.chain_normalize import misfits
from workers.randomness import SampleRandomness
from workers.unserved import CannotServe

_OUT_OF_MEMORY_CODE = -4
"""OpenCV's StsNoMem: it raises cv2.error where Python would raise MemoryError."""


class TopDown(Protocol):
    """An image of which no more rows need be decoded than are looked at."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H,W,C) of the whole image."""
        ...

    def top(self, num_rows: int) -> np.ndarray:
        """The whole image's first rows; SampleError if they can't be decoded."""
        ...


class CompiledChain:
    """`apply` is a pure function of the image and its four coordinates. Not to be shared between threads."""

    def __init__(self, transforms: list[Any], paths: dict[int, str], finish: Finish, channels: int) -> None:
        self.finish = finish
        """What the trainer does with a received batch."""
        self.channels = channels
        """Channels of the images it is made for: 3 (rgb) or 1 (gray)."""
        self._transforms = transforms
        self._paths = paths
        self._calls = [(transform, direct_call(transform)) for transform in transforms]
        self._canvas = Canvas()
        randomness = SampleRandomness()
        # One pair for all: were each node seeded alike, their draws would be the same numbers.
        for transform in transforms:
            transform.set_random_state(randomness.generator, randomness.python)
        self._reset = randomness.reset

    def apply(
        self,
        image_HWC: np.ndarray | TopDown,
        seed: int,
        epoch: int,
        offset: int,
        attempt: int = 0,
        out_HWC: np.ndarray | None = None,
    ) -> np.ndarray:
        """Equal images and coordinates give equal bytes, whatever was made before.

        The result is C-contiguous (H,W,C), float32 where the transforms made float64. It may be the input array
        itself, which is never written to, or `out_HWC`, which may be written to and is the result only if it fits.
        Raises SampleError naming the transform that failed, or why the image can't be decoded; MemoryError and
        OSError, which another worker might not meet, pass through.
        """
        self._reset(seed, epoch, offset, attempt)
        self._canvas.renew(out_HWC)
        transform: Any = None
        image: Any = image_HWC
        others: dict[str, Any] = {}
        try:
            if not isinstance(image, np.ndarray) and not self._begins_with_crop:
                image = image.top(image.shape[0])
            # Each transform is called directly: Compose would add a draw and 3 µs of checks that don't apply here.
            for transform, direct in self._calls:
                if direct is None or others:
                    others = transform(image=image, **others)
                    image = others.pop("image")
                    continue
                params = direct.draw(image)
                if not isinstance(image, np.ndarray):
                    image = image.top(direct.num_rows(params, image.shape[0]))
                if params is not None:
                    image = direct.paint(image, params, self._canvas)
            if image.dtype == np.float64:  # from Normalize's modes per image: no model wants the second half
                image = image.astype(np.float32)
            return np.ascontiguousarray(image if image.ndim == 3 else image[:, :, np.newaxis])
        except (MemoryError, OSError):
            raise
        except Exception as error:
            if isinstance(error, SampleError) and not isinstance(image, np.ndarray):
                raise  # it failed before it was an array
            if getattr(error, "code", None) == _OUT_OF_MEMORY_CODE:
                raise MemoryError(str(error)) from error
            is_first = not self._calls or transform is self._calls[0][0]
            seen = image_HWC if is_first else image  # a crop is given the whole image, and reads its top alone
            raise SampleError(self._describe_failure(error, transform, seen)) from error
        finally:
            self._canvas.renew(None)  # else it would keep the caller's array alive

    def beginnings(self) -> Iterator[CompiledChain]:
        """Its first 0, 1, 2, ... transforms; they share its generators, so only one is used at a time."""
        for length in range(len(self._calls) + 1):
            part = copy(self)
            part._calls = self._calls[:length]
            yield part

    @property
    def last_path(self) -> str:
        """Path of its last transform; nothing if it has none."""
        return self._paths.get(id(self._calls[-1][0]), "") if self._calls else ""

    @property
    def _begins_with_crop(self) -> bool:
        direct = self._calls[0][1] if self._calls else None
        return direct is not None and direct.is_crop

    def _describe_failure(self, error: Exception, transform: Any, image_HWC: Any) -> str:
        """The innermost transform on the traceback, by its path (which ends in its class name), and what it was given.

        `image_HWC` is what `transform` was given, one of the chain's own.
        """
        path, seen, failed = self._paths.get(id(transform), "the chain"), image_HWC, transform
        trace = error.__traceback__
        while trace is not None:
            names = trace.tb_frame.f_locals
            if id(names.get("self")) in self._paths:
                failed = names["self"]
                path, seen = self._paths[id(failed)], _image_among(names, seen)
            trace = trace.tb_next
        what = f"of type {type(seen).__name__}"
        if hasattr(seen, "shape"):
            what = f"{seen.shape} {getattr(seen, 'dtype', np.dtype(np.uint8))}"
        text = " ".join(str(error).split())
        return failure_text(path, what, f"{type(error).__name__}: {text}{_line_in_plugin(error, type(failed))}")


def _image_among(names: Mapping[str, Any], otherwise: Any) -> Any:
    """The image that a transform or composition was called with, of the local names of its `__call__`."""
    data = names.get("kwargs", names.get("data"))
    image = data.get("image") if isinstance(data, dict) else None
    return image if isinstance(image, np.ndarray) else otherwise


def _line_in_plugin(error: Exception, transform_class: type) -> str:
    """` (file.py:line)`, the last line of the plug-in's own code; nothing of a transform of the library."""
    written = getattr(sys.modules.get(transform_class.__module__), "__file__", None)
    if is_library_class(transform_class) or not written:
        return ""
    file = Path(written)
    place = own_place(error, file.parent, file)
    return f" ({place[0]}:{place[1]})" if place is not None else ""


def compile_chain(recipe: Recipe, plugins: Mapping[str, ModuleType] | None = None) -> CompiledChain:
    """The chain of `recipe`, built; a ConfigError with every problem if it can't be.

    `plugins` maps the names in `recipe.plugins` to what `load_module` has loaded; CannotServe if the source that was
    run is not that of the recipe, whatever the file holds by now.
    """
    plugins = plugins or {}
    if unserved := list(_plugin_problems(recipe, plugins)):
        raise CannotServe(unserved)
    chain = recipe.chain
    channels = 1 if recipe.decode.color == "gray" else 3
    builder = ChainBuilder(chain.file, known_transforms(plugins), channels)
    nodes, to_tensor = _without_tensor_tail(chain.nodes, chain.path, builder)
    transforms = builder.build_all(nodes, chain.path, chain.line)
    if not builder.problems:  # of nodes that could be built: their parameters have the right types
        for misfit in misfits(nodes, chain.path, channels):
            builder.refuse(*misfit)
    if builder.problems:
        raise ConfigError(builder.problems)
    num_channels = _channels_after(nodes[:-1], channels)
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    if nodes and _is_deferrable(nodes[-1], transforms[-1]) and num_channels is not None:
        normalize = transforms.pop()
        path = f"{chain.path}[{len(nodes) - 1}].Normalize"
        scale, shift = _scale_and_shift(normalize, num_channels, nodes[-1], path, builder)
    if builder.problems:
        raise ConfigError(builder.problems)
    finish = Finish(scale=scale, shift=shift, channels_first=to_tensor)
    return CompiledChain(transforms, builder.paths, finish, channels)


def _plugin_problems(recipe: Recipe, plugins: Mapping[str, ModuleType]) -> Iterator[Problem]:
    chain = recipe.chain
    for name, digest in recipe.plugins.items():
        module = plugins.get(name)
        loaded = "no such plug-in here" if module is None else loaded_digest(module)
        if loaded == digest:
            continue
        file = module.__file__ if module is not None else ""
        if module is None:
            way_out = f"start this worker with --plugins {name}, the same source as the trainer's"
        elif file_digest(module) == digest:
            way_out = f"restart these workers: {file} was changed since they loaded it"
        else:
            way_out = (
                f"{file} was changed while the job runs, or is not the trainer's: put it back and restart these"
                f" workers, or stop and start a new run"
            )
        expected = f"plug-in {name} with source digest {digest[:16]}, as when the job began"
        got = loaded if module is None else f"{loaded[:16]} is loaded here"
        yield Problem(file=chain.file, line=chain.line, path=chain.path, expected=expected, got=got, way_out=way_out)


def _without_tensor_tail(
    nodes: tuple[ChainNode, ...], path: str, builder: ChainBuilder
) -> tuple[tuple[ChainNode, ...], bool]:
    """The nodes before a last ToTensorV2, and whether there is one."""
    if not nodes or nodes[-1].name != TO_TENSOR:
        return nodes, False
    last, here = nodes[-1], f"{path}[{len(nodes) - 1}].{TO_TENSOR}"
    if last.is_composition:
        builder.refuse(last.line, here, f"{TO_TENSOR} without transforms inside", "a list of transforms")
    for name, value in last.params.items():
        line = last.param_lines.get(name, last.line)
        if name == "always_apply":
            builder.refuse(
                line, f"{here}.{name}", "a parameter of albumentations 2.x", f"{name!r}, of 1.x", "remove it"
            )
        elif name not in ("p", "transpose_mask"):
            builder.refuse(line, f"{here}.{name}", f"a parameter of {TO_TENSOR}: p, transpose_mask", repr(name))
        elif name == "p" and (isinstance(value, bool) or value != 1):
            builder.refuse(line, f"{here}.p", "1.0: all of a batch's samples become tensors", repr(value))
        elif name == "transpose_mask" and not isinstance(value, bool):
            builder.refuse(line, f"{here}.{name}", "true or false", repr(value))
    return nodes[:-1], True


def _channels_after(nodes: tuple[ChainNode, ...], channels: int) -> int | None:
    """How many channels an image has after `nodes`; None if that depends on chance or on a plug-in."""
    for node in nodes:
        if node.name in COMPOSITIONS:
            if any(_channels_after((child,), channels) != channels for child in node.children):
                return None
        elif node.name in ("ToGray", "ToRGB"):
            made = node.params.get("num_output_channels", 3)
            is_sure = node.params.get("p", 1.0 if node.name == "ToRGB" else 0.5) == 1
            if made != channels and not is_sure:
                return None
            channels = made
    return channels


def _is_deferrable(node: ChainNode, transform: Any) -> bool:
    return bool(node.name == "Normalize" and transform.p == 1 and transform.normalization == "standard")


def _scale_and_shift(
    normalize: Any, num_channels: int, node: ChainNode, path: str, builder: ChainBuilder
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`(x - mean * max) / (std * max)` as `x * scale + shift`; one value if they are equal for all channels."""
    values: dict[str, tuple[float, ...]] = {}
    for name in ("mean", "std"):
        written = getattr(normalize, name)
        each = (float(written),) if isinstance(written, int | float) else tuple(map(float, written))
        if num_channels != 1 and len(each) not in (1, num_channels):
            line = node.param_lines.get(name, node.line)
            builder.refuse(line, f"{path}.{name}", f"1 or {num_channels} numbers, one a channel", f"{len(each)}")
            return (), ()
        # Of several numbers albumentations gives a one-channel image the first.
        values[name] = each if len(each) == num_channels else each[:1] * num_channels
    largest = float(normalize.max_pixel_value)
    scale = tuple(1.0 / (std * largest) for std in values["std"])
    shift = tuple(-mean / std for mean, std in zip(values["mean"], values["std"], strict=True))
    return scale, shift
