"""Equal bytes for less: what some transforms do to the pixels, without their wrappers and temporary arrays.

In:  a transform of albumentations 2.0.8, a contiguous image (H,W,C), the parameters it drew, the sample's canvas.
Out: the bytes of `transform.apply(image, **params)`; None for an image or a setting that is not handled here.
Never draws, never writes to an array but the canvas's own.

A transform that isn't in `PIXELS` would gain little (VerticalFlip), or is rarely a training run's bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from workers.chain_canvas import Canvas, Params
from workers.chain_color import color_jitter
from workers.chain_normalize import require_fit

Pixels = Callable[[Any, np.ndarray, Params, Canvas], np.ndarray | None]

_RESIZED_DTYPES = frozenset(map(np.dtype, (np.uint8, np.uint16, np.float32)))
_SWAPPED = np.dtype(np.uint64).newbyteorder()


def _sized_crop(transform: Any, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray | None:
    """RandomResizedCrop, RandomSizedCrop: the crop is a view, resized into the canvas."""
    crop = _cropped(image, params)
    if crop is None:
        return None
    return _resized(crop, transform.size, transform._get_interpolation_for_resize(crop.shape[:2], "image"), canvas)


def _resize(transform: Any, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray | None:
    """Resize."""
    if transform.area_for_downscale is not None:
        return None
    return _resized(image, (transform.height, transform.width), transform.interpolation, canvas)


def _resized(image: np.ndarray, size_HW: tuple[int, int], interpolation: int, canvas: Canvas) -> np.ndarray | None:
    """The same cv2.resize; up to four channels it takes in one call, so albumentations' chunks are left out."""
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or image.dtype not in _RESIZED_DTYPES or image.size == 0:
        return None
    if size_HW == image.shape[:2]:
        return None
    target = canvas.claim((*size_HW, image.shape[2]), image.dtype)
    cv2.resize(image, (size_HW[1], size_HW[0]), dst=target, interpolation=interpolation)
    return target


def _crop(transform: Any, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray | None:
    """RandomCrop, CenterCrop: the copy that makes the crop contiguous goes into the canvas."""
    crop = None if params["pad_params"] is not None else _cropped(image, params)
    if crop is None or crop.shape == image.shape:
        return None
    target = canvas.claim(crop.shape, crop.dtype)
    np.copyto(target, crop)
    return target


def _cropped(image: np.ndarray, params: Params) -> np.ndarray | None:
    """A view; None if albumentations would refuse the coordinates."""
    x_min, y_min, x_max, y_max = params["crop_coords"]
    is_inside = 0 <= x_min < x_max <= image.shape[1] and 0 <= y_min < y_max <= image.shape[0]
    return image[y_min:y_max, x_min:x_max] if is_inside else None


def _horizontal_flip(transform: Any, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray | None:
    """Each row's bytes reversed, eight at a time, which reverses the channels too; then the channels back again.

    cv2.flip moves three-byte pixels one by one, and takes 2.5 times as long.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[1] % 8 or image.size == 0:
        return None
    rows = image.reshape(image.shape[0], -1)
    reversed_rows = np.empty(rows.shape, dtype=np.uint8)
    # Equal numbers in the other byte order: their bytes are reversed.
    np.copyto(reversed_rows.view(np.uint64), rows.view(_SWAPPED)[:, ::-1])
    target = canvas.target(image)
    cv2.cvtColor(reversed_rows.reshape(image.shape), cv2.COLOR_RGB2BGR, dst=target)
    return target


def _dropout(transform: Any, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray | None:
    """CoarseDropout, Erasing: without a generator for random fills, which a fill with a number doesn't use."""
    holes, fill = params["holes"], transform.fill
    if holes.size == 0 or not isinstance(fill, int | float):
        return None
    value = np.array(fill, dtype=image.dtype)
    target = canvas.copied(image)
    for x_min, y_min, x_max, y_max in holes.tolist():
        target[y_min:y_max, x_min:x_max] = value
    return target


def _normalize(transform: Any, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray | None:
    """Normalize: none of ours, but refused where albumentations would cut or repeat its numbers."""
    require_fit(transform, image)
    return None


PIXELS: dict[str, Pixels] = {
    "CenterCrop": _crop,
    "CoarseDropout": _dropout,
    "ColorJitter": color_jitter,
    "Erasing": _dropout,
    "HorizontalFlip": _horizontal_flip,
    "Normalize": _normalize,
    "RandomCrop": _crop,
    "RandomResizedCrop": _sized_crop,
    "RandomSizedCrop": _sized_crop,
    "Resize": _resize,
}
"""Class of albumentations -> what stands in for its `apply`."""
