"""Normalize's numbers: one for all channels, or one a channel; anything else albumentations cuts or repeats in silence.

In:  a chain's nodes and the channels of the images it is given; or an image, once it is there.
Out: what is wrong with the numbers of each Normalize, wherever it stands in the chain.
Never builds a transform, never touches a pixel.

albumentations 2.0.8 takes the first of numbers that are too few, and the first C of those that are too many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.recipe import ChainNode
from workers.chain_library import ALLOWED, COMPOSITIONS, TO_TENSOR

_IMAGENET_CHANNELS = 3
"""How many numbers Normalize has by default; a grey image then takes the first."""


class Misfit(NamedTuple):
    """Where a Normalize is wrong, what would be right, what stands there."""

    line: int
    path: str
    expected: str
    got: str


def misfits(nodes: Sequence[ChainNode], path: str, num_channels: int) -> Iterator[Misfit]:
    """Every Normalize, at any depth, whose numbers can't be meant.

    Where a plug-in's transform stands in the chain, nobody knows the channels before the chain has run: their count is
    then left to `require_fit`.
    """
    counts = None if any(map(_is_plugin, _all(nodes))) else _possible_channels(nodes, num_channels)
    return _misfits(nodes, path, counts)


def may_make_floats(nodes: Sequence[ChainNode]) -> bool:
    """False only where images surely leave the chain as the integers that they came in as."""
    return any(node.name in ("Normalize", "ToFloat") or _is_plugin(node) for node in _all(nodes))


def require_fit(transform: Any, image_HWC: Any) -> None:
    """ValueError unless a built Normalize has 1 number, or one for each of the image's channels."""
    num_channels = image_HWC.shape[2] if image_HWC.ndim == 3 else 1
    for name in ("mean", "std"):
        num_numbers = _num_numbers(getattr(transform, name))
        if transform.normalization == "standard" and not _fits(num_numbers, num_channels):
            raise ValueError(f"{name} has {num_numbers} numbers, the image has {num_channels} channels")


def _misfits(nodes: Sequence[ChainNode], path: str, counts: frozenset[int] | None) -> Iterator[Misfit]:
    for index, node in enumerate(nodes):
        here = f"{path}[{index}].{node.name}"
        if node.name == "Normalize" and node.params.get("normalization", "standard") == "standard":
            for name in ("mean", "std"):
                yield from _misfit(node, name, here, counts)
            if node.params.get("max_pixel_value", 1) <= 0:
                yield _at(node, "max_pixel_value", here, "above 0", str(node.params["max_pixel_value"]))
        yield from _misfits(node.children, here, counts)


def _misfit(node: ChainNode, name: str, path: str, counts: frozenset[int] | None) -> Iterator[Misfit]:
    value = node.params.get(name)
    if value is None:  # the default, three numbers
        return
    num_numbers = _num_numbers(value)
    if not num_numbers or (counts is not None and not any(_fits(num_numbers, count) for count in counts)):
        allowed = sorted({1, _IMAGENET_CHANNELS} | (counts or set()))
        expected = f"{' or '.join(map(str, allowed))} numbers, one a channel"
        yield _at(node, name, path, expected, f"{num_numbers}")
    elif name == "std" and min(value if isinstance(value, list | tuple) else [value]) <= 0:
        yield _at(node, name, path, "above 0", str(value))


def _at(node: ChainNode, name: str, path: str, expected: str, got: str) -> Misfit:
    return Misfit(node.param_lines.get(name, node.line), f"{path}.{name}", expected, got)


def _fits(num_numbers: int, num_channels: int) -> bool:
    return num_numbers in (1, num_channels) or (num_channels == 1 and num_numbers == _IMAGENET_CHANNELS)


def _num_numbers(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) else 1


def _possible_channels(nodes: Sequence[ChainNode], num_channels: int) -> frozenset[int]:
    """All counts that may come up somewhere; which of them at which place may be up to chance."""
    counts = {num_channels}
    for node in _all(nodes):
        if node.name in ("ToGray", "ToRGB"):
            counts.add(node.params.get("num_output_channels", 3))
        elif node.name == "SelectiveChannelTransform":
            counts.add(len(node.params.get("channels", ())))
    return frozenset(counts)


def _is_plugin(node: ChainNode) -> bool:
    return node.name not in ALLOWED and node.name not in COMPOSITIONS and node.name != TO_TENSOR


def _all(nodes: Sequence[ChainNode]) -> Iterator[ChainNode]:
    for node in nodes:
        yield node
        yield from _all(node.children)
