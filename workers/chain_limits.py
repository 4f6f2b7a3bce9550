"""How large a chain's parameters may be, and how albumentations 1.x spelled them.

In:  a transform's name and its parameters as written.
Out: (parameter, expected, got, way out) for each that is absurd; the 2.x spelling of an old parameter.
Never builds a transform. The limits keep one sample's time and memory bounded; unless a reason is given they
are chosen far above what augmentation needs, not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.located import describe

MAX_CHAIN_NODES = 500
MAX_CHAIN_DEPTH = 16
MAX_SIDE = 16_384
MAX_OUTPUT_PIXELS = 1 << 24
"""4096x4096: 48 MiB as RGB bytes, already far more than a batch wants of one sample."""
MAX_VALUES_IN_A_PARAMETER = 100
MAX_NUMBER = 1e6
"""For numbers that have no limit of their own below."""

_SIDES = ("height", "width", "min_height", "min_width", "size", "max_size_hw", "min_max_height", "x_min", "y_min")
LARGEST: dict[str, float] = {
    **dict.fromkeys([*_SIDES, "x_max", "y_max", "pad_height_divisor", "pad_width_divisor"], MAX_SIDE),
    **dict.fromkeys(["unit_size_range", "translate_px", "time_mask_param", "freq_mask_param"], MAX_SIDE),
    **dict.fromkeys(["mask_x_length", "mask_y_length", "shift_xy"], MAX_SIDE),
    **dict.fromkeys(["max_size", "padding", "px", "holes_number_xy", "src_radius", "plasma_size"], 4096),
    **dict.fromkeys(["blur_limit", "radius", "kernel_size", "max_delta", "blur_value", "tile_grid_size"], 255),
    **dict.fromkeys(["grid", "num_grid_xy"], 255),
    **dict.fromkeys(["sigma", "sigma_limit", "sigma_x_limit", "sigma_y_limit"], 200),
    **dict.fromkeys(["gauss_sigma", "alias_blur"], 50),
    **dict.fromkeys(["number_of_patches", "num_shadows_limit", "shadow_dimension", "drop_width"], 100),
    **dict.fromkeys(["num_holes_range", "n_segments"], 10_000),
    **dict.fromkeys(["num_masks_x", "num_masks_y", "num_flare_circles_range", "drop_length", "num_steps"], 1000),
    **dict.fromkeys(["nb_rows", "nb_cols"], 64),
    **dict.fromkeys(["percent", "scale_limit"], 4),
    "scale": 16,
    "shear": 80,  # degrees; nearer to 90 an image that keeps its corners has no bound
    "num_control_points": 16,
    "iterations": 20,
    "max_factor": 10,
    "num_output_channels": 4,
    "max_value": 2**32,
    "max_pixel_value": 2**32,
    "n": MAX_CHAIN_NODES,
}
SMALLEST: dict[str, float] = {
    "step_factor": 0.001,  # ZoomBlur makes (max_factor - 1) / step_factor copies of the image
}
_LARGEST_OF: dict[tuple[str, str], float] = {
    ("Morphological", "scale"): 255,
    ("ElasticTransform", "alpha"): 10_000,
}
_MUST_BE_EMPTY = {("Equalize", "mask"), ("Equalize", "mask_params")}

RENAMED: dict[str, str] = {
    "always_apply": "p: 1.0",
    "value": "fill",
    "fill_value": "fill",
    "image_fill_value": "fill",
    "cval": "fill",
    "pad_val": "fill",
    "pad_cval": "fill",
    "mask_value": "fill_mask",
    "mask_fill_value": "fill_mask",
    "cval_mask": "fill_mask",
    "mask_pad_val": "fill_mask",
    "pad_cval_mask": "fill_mask",
    "pad_mode": "border_mode",
    "mode": "border_mode",
    "order": "interpolation",
    "var_limit": "std_range: [low, high], as shares of the largest value: sqrt(var) / 255",
    "sigmaX_limit": "sigma_x_limit",
    "sigmaY_limit": "sigma_y_limit",
    "threshold": "threshold_range: [low, high], as shares of the largest value",
    "interpolation": "interpolation_pair: {downscale: 0, upscale: 0}",
    "mean": "mean_range: [low, high], as shares of the largest value",
    "holes_number_x": "holes_number_xy: [x, y]",
    "holes_number_y": "holes_number_xy: [x, y]",
    "shift_x": "shift_xy: [x, y]",
    "shift_y": "shift_xy: [x, y]",
    "height": "size: [height, width]",
    "width": "size: [height, width]",
    "size": "height: ... and width: ...",
    **dict.fromkeys(["max_holes", "min_holes"], "num_holes_range: [low, high]"),
    **dict.fromkeys(["max_height", "min_height"], "hole_height_range: [low, high]"),
    **dict.fromkeys(["max_width", "min_width"], "hole_width_range: [low, high]"),
    **dict.fromkeys(["unit_size_min", "unit_size_max"], "unit_size_range: [low, high]"),
    **dict.fromkeys(["quality_lower", "quality_upper"], "quality_range: [low, high]"),
    **dict.fromkeys(["scale_min", "scale_max"], "scale_range: [low, high]"),
    **dict.fromkeys(["slant_lower", "slant_upper"], "slant_range: [low, high]"),
    **dict.fromkeys(["snow_point_lower", "snow_point_upper"], "snow_point_range: [low, high]"),
    **dict.fromkeys(["fog_coef_lower", "fog_coef_upper"], "fog_coef_range: [low, high]"),
    **dict.fromkeys(["angle_lower", "angle_upper"], "angle_range: [low, high]"),
    **dict.fromkeys(["num_shadows_lower", "num_shadows_upper"], "num_shadows_limit: [low, high]"),
    **dict.fromkeys(["num_flare_circles_lower", "num_flare_circles_upper"], "num_flare_circles_range: [low, high]"),
}
"""Parameter of albumentations 1.x -> what to write in 2.x."""


REMOVED: dict[tuple[str, str], str] = {
    ("ElasticTransform", "alpha_affine"): "a separate Affine beside it",
    ("OpticalDistortion", "shift_limit"): "a separate Affine with translate_percent",
    ("RandomGamma", "eps"): "nothing",
    ("PiecewiseAffine", "keypoints_threshold"): "nothing",
}
"""(Transform, parameter) of 1.x without a successor -> what to write instead."""


def new_spelling(name: str, parameter: str, accepted: Mapping[str, Any]) -> str:
    """What to write for a 1.x parameter, if this transform takes the replacement; else empty."""
    hint = RENAMED.get(parameter, "")
    if hint.partition(":")[0] in accepted:
        return hint
    return REMOVED.get((name, parameter), "")


def absurd(name: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(parameter, expected, got) for each value past its limit."""
    for parameter, value in params.items():
        if (name, parameter) in _MUST_BE_EMPTY:
            if value:
                yield parameter, "nothing (it takes Python objects)", describe(value)
            continue
        numbers = list(_numbers(value))
        largest = _LARGEST_OF.get((name, parameter), LARGEST.get(parameter, MAX_NUMBER))
        smallest = SMALLEST.get(parameter)
        if len(numbers) > MAX_VALUES_IN_A_PARAMETER:
            yield parameter, f"at most {MAX_VALUES_IN_A_PARAMETER} numbers", f"{len(numbers)} numbers"
        elif not all(abs(number) <= largest for number in numbers):
            yield parameter, f"at most {largest:g}", describe(value)
        elif smallest is not None and not all(number >= smallest for number in numbers):
            yield parameter, f"at least {smallest:g}", describe(value)
    yield from _absurd_areas(params)


def _absurd_areas(params: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    pairs = [(key, params.get(key)) for key in ("size", "max_size_hw")]
    pairs += [
        (high, (params.get(high), params.get(wide)))
        for high, wide in (("height", "width"), ("min_height", "min_width"))
    ]
    if params.get("pad_if_needed") is True:
        pairs.append(("x_max", (params.get("x_max"), params.get("y_max"))))
    for parameter, pair in pairs:
        sides = list(_numbers(pair))
        if len(sides) == 2 and sides[0] * sides[1] > MAX_OUTPUT_PIXELS and max(sides) <= MAX_SIDE:
            yield parameter, f"at most {MAX_OUTPUT_PIXELS} pixels of output", f"{sides[0]:g} x {sides[1]:g}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from _numbers(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
