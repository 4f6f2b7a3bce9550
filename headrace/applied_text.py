"""What a transform applied, in words: `OneOf > GaussianBlur` with `kernel 19 values, 0.0004 to 0.11`.

In:  `Applied` records of `workers/recording.py`.
Out: its name and its parameters as text; enough to understand the picture, short enough to stand below it.
Pure. Numbers are rounded to three digits and large arrays summarised: this is to be read, not to compute with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.recording import Applied

MAX_CHARS = 180
"""Of one transform's parameters; what is longer is cut. Chosen: five lines below a picture of the contact sheet."""
MAX_LISTED = 4
"""Numbers that are written out; of more, only how many and their range."""

_SAID_ELSEWHERE = frozenset(
    """
    shape interpolation fill fill_mask bbox_matrix matrix_bbox seed random_seed output_shape result_shape
    max_height max_width x_min x_max y_min y_max image_type
    """.split()  # noqa: SIM905 (as a quoted list it would hide what is in it)
)
"""Parameters that repeat the chain file or the image's size, or mean nothing to a reader."""


def applied_name(applied: Applied) -> str:
    """The transform and the compositions around it, as in `OneOf > GaussianBlur`."""
    return " > ".join((*applied.within, applied.name))


def applied_params(applied: Applied) -> str:
    """Its parameters in at most MAX_CHARS; empty for a transform that has none, such as a flip."""
    params = applied.params
    parts = [
        _parameter(name, value) for name, value in params.items() if name not in _SAID_ELSEWHERE and value is not None
    ]
    if applied.name == "Rotate" and "matrix" in params:  # the angle itself is not among its parameters
        parts.insert(0, f"by {_number(_degrees(np.asarray(params['matrix'])))} degrees")
    text = ", ".join(parts)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."


def _parameter(name: str, value: Any) -> str:
    if name == "crop_coords":
        left, top, right, bottom = (int(number) for number in value)
        return f"crop {right - left}x{bottom - top} at {left},{top}"  # width and height, left upper corner
    if name == "holes":
        return _holes(np.asarray(value))
    return f"{name} {_value(value)}"


def _holes(holes_N4: np.ndarray) -> str:
    """`2 holes: 14x12 at 3,9; 10x8 at 40,2`, or only how many there are."""
    text = f"{len(holes_N4)} hole{'s' * (len(holes_N4) != 1)}"
    if not 0 < len(holes_N4) <= MAX_LISTED:
        return text
    corners = [[int(number) for number in hole] for hole in holes_N4]
    places = [f"{right - left}x{bottom - top} at {left},{top}" for left, top, right, bottom in corners]
    return f"{text}: {'; '.join(places)}"


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_value(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        is_short = len(value) <= MAX_LISTED and not any(isinstance(entry, np.ndarray) for entry in value)
        return f"({', '.join(map(_value, value))})" if is_short else f"{len(value)} of them"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.integer | np.floating):
        return _number(float(value))
    return str(value) if isinstance(value, str) else type(value).__name__


def _array(array: np.ndarray) -> str:
    if array.dtype == bool:
        return f"on {_number(100 * float(array.mean()))} % of {_size(array)}" if array.size else "nowhere"
    if array.shape == (3, 3) and not array[2, :2].any():  # an affine map: its last row says nothing
        array = array[:2]
    if array.ndim == 2 and array.size <= 9:
        return f"[{' / '.join(' '.join(_number(float(number)) for number in row) for row in array)}]"
    if array.size <= MAX_LISTED:
        return f"({', '.join(_number(float(number)) for number in array.ravel())})"
    return f"{_size(array)}, {_number(float(array.min()))} to {_number(float(array.max()))}"


def _size(array: np.ndarray) -> str:
    return f"{array.size} values" if array.ndim == 1 else "x".join(map(str, array.shape))


def _number(value: float) -> str:
    """Three digits, and no more digits of a whole number than it has."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:.3g}"


def _degrees(matrix_33: np.ndarray) -> float:
    """The turn, anticlockwise as seen (y points down in an image)."""
    return math.degrees(math.atan2(-matrix_33[1, 0], matrix_33[0, 0]))
