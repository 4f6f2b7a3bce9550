"""ColorJitter of 8-bit RGB images, with equal bytes for less.

In:  an image (H,W,3) uint8, the four factors and their order, the sample's canvas.
Out: the jittered image; None for other images.
Never draws; the formulas are those of albumentations 2.0.8 (`augmentations/pixel/functional.py`, adjust_*_torchvision).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from workers.chain_canvas import Canvas, Params
from workers.chain_library import look_up_in_place

_LEVELS = np.arange(256, dtype=np.float32)
_HUES = np.arange(256, dtype=np.int16)


def color_jitter(transform: Any, image: np.ndarray, params: Params, canvas: Canvas) -> np.ndarray | None:
    """ColorJitter: tables, sums and conversions as in albumentations, written over the canvas."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        return None
    for kind in params["order"]:
        image = _ADJUSTMENTS[kind](image, params[_FACTORS[kind]], canvas)
    return image


def _brightness(image: np.ndarray, factor: float, canvas: Canvas) -> np.ndarray:
    """The table of a factor of 0 is all zeros, as that of albumentations' own exception for it."""
    return image if factor == 1 else _mapped(image, _table(factor, 0.0), canvas)


def _contrast(image: np.ndarray, factor: float, canvas: Canvas) -> np.ndarray:
    """The mean is equal to NumPy's: both divide the sum, which is an integer below 2**53 and so exact in either."""
    if factor == 1:
        return image
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean = cv2.sumElems(gray)[0] / gray.size
    if factor == 0:
        return _mapped(image, np.full(256, int(mean + 0.5), dtype=np.uint8), canvas)
    return _mapped(image, _table(factor, mean * (1 - factor)), canvas)


def _saturation(image: np.ndarray, factor: float, canvas: Canvas) -> np.ndarray:
    """The same two calls; the result goes over the image, which is safe pixel by pixel."""
    if factor == 1:
        return image
    target = canvas.target(image)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if factor == 0:
        cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB, dst=target)
        return target
    gray_rgb = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    cv2.addWeighted(image, factor, gray_rgb, 1 - factor, 0, dst=target)
    return target


def _hue(image: np.ndarray, factor: float, canvas: Canvas) -> np.ndarray:
    """The same conversions there and back; the plane of hues is taken out once instead of thrice."""
    if factor == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hues = hsv[..., 0].copy()
    look_up_in_place(hues, np.mod(_HUES + 180 * factor, 180).astype(np.uint8))
    hsv[..., 0] = hues
    target = canvas.target(image)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=target)
    return target


_ADJUSTMENTS = (_brightness, _contrast, _saturation, _hue)
"""In the order of ColorJitter.transforms, whose indices `order` holds."""
_FACTORS = ("brightness", "contrast", "saturation", "hue")


def _table(factor: float, shift: float) -> np.ndarray:
    """`level * factor + shift` in float32, clipped and cut off to whole levels."""
    table = _LEVELS * factor
    if shift:
        table += shift
    np.maximum(table, 0, out=table)
    np.minimum(table, 255, out=table)
    return table.astype(np.uint8)


def _mapped(image: np.ndarray, table: np.ndarray, canvas: Canvas) -> np.ndarray:
    target = canvas.copied(image)
    look_up_in_place(target, table)
    return target
