"""One transform, called without the ceremony: the same draws in the same order, the same bytes, one `image` only.

In:  a transform whose `__call__` and `apply_with_params` are albumentations' own; images (H,W,C) or their shape.
Out: its parameters, and the image it makes of them.
Never calls a transform that has its own way of being called, and never writes to an array it doesn't own.

What is left out: the checks of targets that headrace doesn't carry (masks, boxes, volumes), replay mode, and copies
into dictionaries. `PIXELS` replaces a transform's `apply` where equal bytes can be had for less.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from workers.chain_canvas import Canvas, Params
from workers.chain_library import BasicTransform, as_contiguous, is_library_class
from workers.chain_pixels import PIXELS

_CROPS = frozenset(["CenterCrop", "RandomCrop", "RandomResizedCrop", "RandomSizedCrop"])
"""Their parameters depend on the image's shape alone, and they read no row from `crop_coords[3]` on."""


class HasShape(Protocol):
    """An image, or the promise of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class DirectCall:
    """`draw`, then `paint`: the bytes of `transform(image=image)["image"]`, and both generators left alike."""

    __slots__ = ("_apply", "_pixels", "is_crop", "transform")

    def __init__(self, transform: Any) -> None:
        name = type(transform).__name__ if is_library_class(type(transform)) else ""
        self.transform = transform
        self.is_crop = name in _CROPS
        """Whether `draw` needs no more than the shape, and `num_rows` may be less than all."""
        self._apply = transform._key2func["image"]
        self._pixels = PIXELS.get(name)

    def draw(self, image: HasShape) -> Params | None:
        """This sample's parameters, drawn as BasicTransform.__call__ does; None: it isn't to be applied."""
        transform, data = self.transform, {"image": image}
        transform.params = {}
        if not transform.should_apply(force_apply=False):
            return None
        params: Params = transform.update_transform_params(params=transform.get_params(), data=data)
        params.update(transform.get_params_dependent_on_data(params=params, data=data))
        transform.params = params
        return params

    def paint(self, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray:
        """What the transform makes of the image with these parameters."""
        image = as_contiguous(image)
        if self._pixels is not None and (made := self._pixels(self.transform, image, params, canvas)) is not None:
            return made
        result: np.ndarray = as_contiguous(self._apply(image, **params))
        return result

    def num_rows(self, params: Params | None, num_rows: int) -> int:
        """How many of the image's rows, from the top, `paint` looks at."""
        # With padding the coordinates are those of the padded image.
        if params is None or not self.is_crop or params.get("pad_params") is not None:
            return num_rows
        return min(num_rows, int(params["crop_coords"][3]))


def direct_call(transform: Any) -> DirectCall | None:
    """How to call this transform directly; None for a composition or one that has its own way of being called."""
    if not isinstance(transform, BasicTransform) or "image" not in transform._key2func:
        return None
    is_plain = (
        type(transform).__call__ is BasicTransform.__call__
        and getattr(transform.apply_with_params, "__func__", None) is BasicTransform.apply_with_params
        and type(transform).targets_as_params is BasicTransform.targets_as_params
        and not transform.replay_mode
        and not transform.deterministic
    )
    return DirectCall(transform) if is_plain else None
