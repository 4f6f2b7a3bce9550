"""The benchmark's images: 500x375 JPEGs of quality 90, the size that benchmarks of image loading commonly take.

In:  a folder for caches; the demo's photographs (scikit-image).
Out: a class-per-folder data set, written once and the same each time on the same library versions.
Never touches a folder of the user's.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np

from headrace.demo_images import JPEG_QUALITY, PHOTOGRAPHS, Photograph
from headrace.pictures import crop_as_jpeg

IMAGES_PER_CLASS = 64
"""384 images of 40 kB: all of them stay in the page cache, since disks are not what is measured."""
WIDTH, HEIGHT = 500, 375
MIN_SCALE_PERCENT = 60
FORMAT = 1
"""Raised whenever other images would be written."""


def bench_images(cache: Path) -> Path:
    """The data set's folder below `cache`; written if it is not there. Raises ImportError without scikit-image."""
    target = cache / f"bench-{WIDTH}x{HEIGHT}-q{JPEG_QUALITY}-{FORMAT}"
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
    try:
        for photograph in PHOTOGRAPHS:
            _write_class(partial / photograph.name, photograph)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another benchmark was quicker; its images are the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_class(folder: Path, photograph: Photograph) -> None:
    import skimage.data  # here, not above: the command says what to install if it is missing

    folder.mkdir(parents=True)
    pixels = getattr(skimage.data, photograph.function)()
    full_height, full_width = pixels.shape[:2]
    largest_width = min(full_width, full_height * 4 // 3)
    for number in range(IMAGES_PER_CLASS):
        random = np.random.default_rng((PHOTOGRAPHS.index(photograph), number))
        width = largest_width * int(random.integers(MIN_SCALE_PERCENT, 101)) // 100
        height = width * 3 // 4
        left = int(random.integers(full_width - width + 1))
        top = int(random.integers(full_height - height + 1))
        box = (left, top, left + width, top + height)
        encoded = crop_as_jpeg(pixels, box, (WIDTH, HEIGHT), quality=JPEG_QUALITY)
        (folder / f"{number:04d}.jpg").write_bytes(encoded)
