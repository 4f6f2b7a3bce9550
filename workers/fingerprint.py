"""A worker's fingerprint: equal fingerprints make equal bytes.

In:  nothing but this process's libraries and CPU.
Out: library versions and the digest of fixed transforms on built-in images, as one line of text.
CPU names are not compared: what they change shows in the digest.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from pipeline.recipe import Chain, ChainNode, Recipe
from workers.chain import compile_chain

_LIBRARIES = ("albumentations", "albucore", "numpy", "scipy")
_OPENCV_DISTRIBUTIONS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
"""Each of these installs cv2; at equal versions they differ in windows and extra modules only."""

_LARGE_HW, _SMALL_HW = (300, 400), (150, 200)
"""GaussianBlur, RingingOvershoot and PlasmaShadow give the same bytes with and without AVX2 on images of 240 x 320."""

_PROBES: tuple[tuple[str, dict[str, Any], tuple[int, int], int], ...] = (
    # Bytes change with IPP:
    ("ZoomBlur", {}, _SMALL_HW, 2),
    # with IPP and with the OpenBLAS kernel:
    ("ThinPlateSpline", {}, _SMALL_HW, 2),
    # with the OpenBLAS kernel:
    ("HEStain", {}, _SMALL_HW, 2),
    # with AVX2:
    ("GaussianBlur", {}, _LARGE_HW, 2),
    ("Sharpen", {}, _LARGE_HW, 2),
    ("RingingOvershoot", {}, _LARGE_HW, 2),
    ("PlasmaShadow", {}, _LARGE_HW, 2),
    # with nothing tried so far, but they interpolate, or go through other libraries' kernels:
    ("RandomResizedCrop", {"size": [96, 96]}, _LARGE_HW, 2),
    ("Affine", {"rotate": [-20, 20], "shear": [-5, 5]}, _LARGE_HW, 2),
    ("Perspective", {}, _LARGE_HW, 2),
    ("ColorJitter", {}, _LARGE_HW, 2),
    ("FancyPCA", {}, _SMALL_HW, 1),
    ("GaussNoise", {}, _SMALL_HW, 2),
)
"""Transform, parameters, size of the image, draws. Each on its own: behind others, a difference in the last bit is
rounded away."""


@cache
def probe_digest() -> str:
    """Digest of what each transform of the probe makes of the built-in image."""
    digest = hashlib.sha256()
    for name, params, size_HW, num_draws in _PROBES:
        node = ChainNode(name=name, params={**params, "p": 1.0})
        compiled = compile_chain(Recipe(chain=Chain(file="built-in probe", nodes=(node,))))
        for offset in range(num_draws):
            digest.update(compiled.apply(_image(*size_HW), seed=1, epoch=2, offset=offset).tobytes())
    return digest.hexdigest()[:16]


@cache
def fingerprint() -> str:
    """One line: platform, library versions, probe digest."""
    versions = " ".join(f"{name}={version(name)}" for name in _LIBRARIES)
    python = platform.python_version()
    return f"{platform.machine()} python={python} {versions} opencv={_opencv_version()} probe={probe_digest()}"


def _opencv_version() -> str:
    """Of whichever distribution is installed; more than one may claim the same files."""
    found = []
    for name in _OPENCV_DISTRIBUTIONS:
        try:
            found.append(version(name))
        except PackageNotFoundError:
            continue
    return "+".join(found) or "built-elsewhere"


@cache
def _image(num_rows: int, num_columns: int) -> np.ndarray:
    """A smooth colour gradient with edges and some texture, made from integers only."""
    rows, columns = np.mgrid[0:num_rows, 0:num_columns].astype(np.int64)
    red, green, blue = rows * 2 + columns, columns * 3, (rows // 12 + columns // 10) % 2 * 200
    texture = (rows * 2654435761 ^ columns * 40503) >> 7 & 15
    return np.stack([(plane + texture) % 256 for plane in (red, green, blue)], axis=-1).astype(np.uint8)


if __name__ == "__main__":
    print(fingerprint())
