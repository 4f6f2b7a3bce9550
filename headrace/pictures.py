"""Pictures: arrays of pixels become the bytes of image files, cut and scaled.

In:  uint8 arrays.
Out: JPEG or PNG bytes, the same on each run with the same version of Pillow.
Never opens a file. With `sheet.py`, which draws, this is Pillow's home; samples are decoded elsewhere, by OpenCV.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def crop_as_jpeg(
    pixels_HWC: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int], *, quality: int
) -> bytes:
    """What lies in the box (left, top, right, bottom; right and bottom excluded), scaled to (width, height)."""
    left, top, right, bottom = box
    # Cropped first: with resize(box=...) the filter would read beyond the box, across the border.
    crop = Image.fromarray(np.ascontiguousarray(pixels_HWC[top:bottom, left:right]))
    return _encoded(crop.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=quality)


def shown_within(pixels_HWC: np.ndarray, side: int, *, smallest: int, quality: int) -> bytes:
    """PNG of a picture of at most `smallest` pixels a side, as it is; JPEG of a larger one, made to fit `side`."""
    image = Image.fromarray(pixels_HWC)
    if max(image.size) <= smallest:
        return _encoded(image, "PNG", optimize=True)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _encoded(image, "JPEG", quality=quality, optimize=True)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
