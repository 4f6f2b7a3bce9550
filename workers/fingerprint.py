"""A worker's fingerprint: equal fingerprints make equal bytes.

In:  nothing but this process's libraries and CPU.
Out: library versions and the digest of a fixed chain on a built-in image, as one line of text.
CPU names are not compared: what they change shows in the digest.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version

import numpy as np

from pipeline.recipe import Chain, ChainNode, Recipe
from workers.chain import compile_chain

_LIBRARIES = ("albumentations", "albucore", "numpy", "opencv-python-headless", "scipy")

# Transforms whose bytes are known to change with IPP, AVX2 or the OpenBLAS kernel, and some that don't.
_PROBE_NODES = (
    ("RandomResizedCrop", {"size": [48, 40], "p": 1.0}),
    ("Affine", {"rotate": [-20, 20], "shear": [-5, 5], "p": 1.0}),
    ("Perspective", {"p": 1.0}),
    ("GaussianBlur", {"blur_limit": [3, 7], "p": 1.0}),
    ("ColorJitter", {"p": 1.0}),
    ("CLAHE", {"p": 1.0}),
    ("FancyPCA", {"p": 1.0}),
    ("ElasticTransform", {"p": 1.0}),
    ("GaussNoise", {"p": 1.0}),
)


@cache
def probe_digest() -> str:
    """Digest of the built-in image under the built-in chain, eight draws."""
    nodes = tuple(ChainNode(name=name, params=params) for name, params in _PROBE_NODES)
    compiled = compile_chain(Recipe(chain=Chain(file="built-in probe", nodes=nodes)))
    digest = hashlib.sha256()
    for offset in range(8):
        digest.update(compiled.apply(_image(), seed=1, epoch=2, offset=offset).tobytes())
    return digest.hexdigest()[:16]


@cache
def fingerprint() -> str:
    """One line: platform, library versions, probe digest."""
    versions = " ".join(f"{name}={version(name)}" for name in _LIBRARIES)
    return f"{platform.machine()} python={platform.python_version()} {versions} probe={probe_digest()}"


def _image() -> np.ndarray:
    """A smooth colour gradient with edges and some texture, 96 x 80, made from integers only."""
    rows, columns = np.mgrid[0:96, 0:80].astype(np.int64)
    red, green, blue = rows * 2 + columns, columns * 3, (rows // 12 + columns // 10) % 2 * 200
    texture = (rows * 2654435761 ^ columns * 40503) >> 7 & 15
    return np.stack([(plane + texture) % 256 for plane in (red, green, blue)], axis=-1).astype(np.uint8)
