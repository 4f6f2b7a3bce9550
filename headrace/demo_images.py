"""The demo's images: crops of six photographs that the scikit-image package ships.

In:  scikit-image's photographs (CC0 or public domain, inside its wheel, nothing is downloaded).
Out: JPEG bytes with their relative paths, the same on each run with the same versions of Pillow and scikit-image.
Never writes a file. Pillow does the scaling and encoding: this is not the training path.

Held-out crops lie in `held_out` boxes, training crops in `train` boxes of the same photograph; the two never overlap,
so no held-out pixel has been trained on. Both show what is typical of the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from headrace.pictures import crop_as_jpeg

# Boxes are (left, top, right, bottom) in pixels of the photograph, right and bottom excluded.
Box = tuple[int, int, int, int]

NUM_TRAIN_PER_CLASS = 300
NUM_HELD_OUT_PER_CLASS = 60
MIN_WIDTH, MAX_WIDTH = 160, 500
"""Images are 4:3, from 160x120 to 500x375."""
MIN_SCALE_PERCENT = 60
"""A crop's side is 60 to 100 % of the largest 4:3 box that fits both regions: smaller ones show bare sky or table,
and with other scales for training than for judging, texture would tell a class less than magnification."""
JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """One class of the demo."""

    name: str
    """Folder of the class."""
    function: str
    """Name in `skimage.data`."""
    size: tuple[int, int]
    """Width and height that the boxes are meant for."""
    train: Box
    held_out: Box
    credit: str
    """Author, source and licence, as scikit-image's documentation states them."""


PHOTOGRAPHS = (
    Photograph(
        name="astronaut",
        function="astronaut",
        size=(512, 512),
        # Left and right, not top and bottom: the suit, which is what both sides share, lies mostly at the bottom.
        train=(0, 0, 290, 512),
        held_out=(290, 0, 512, 512),
        credit="Eileen Collins, NASA Great Images database (https://flic.kr/p/r9qvLn). No known copyright"
        " restrictions, released into the public domain.",
    ),
    Photograph(
        name="cat",
        function="chelsea",
        size=(451, 300),
        train=(200, 0, 451, 300),
        held_out=(0, 0, 200, 300),
        credit="Chelsea the cat, by Stefan van der Walt. CC0 by the photographer.",
    ),
    Photograph(
        name="coffee",
        function="coffee",
        size=(600, 400),
        train=(240, 0, 600, 400),
        held_out=(0, 0, 240, 400),
        credit="Coffee cup, by Rachel Michetti, courtesy of Pikolo Espresso Bar. CC0 by the photographer.",
    ),
    Photograph(
        name="galaxies",
        function="hubble_deep_field",
        size=(1000, 872),
        train=(0, 0, 680, 872),
        held_out=(680, 0, 1000, 872),
        credit="Hubble eXtreme Deep Field, NASA, from HubbleSite"
        " (http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/). May be freely used in the public"
        " domain, after NASA's guidelines.",
    ),
    Photograph(
        name="retina",
        function="retina",
        size=(1411, 1411),
        train=(150, 60, 1261, 900),
        held_out=(150, 900, 1261, 1350),
        credit="Fundus photograph of a normal left eye, by Mikael Häggström, Wikimedia Commons"
        " (https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg). CC0 1.0.",
    ),
    Photograph(
        name="rocket",
        function="rocket",
        size=(640, 427),
        train=(0, 0, 430, 427),
        held_out=(430, 0, 640, 427),
        credit="Launch of DSCOVR on Falcon 9, SpaceX Photos"
        " (https://www.flickr.com/photos/spacexphotos/16511594820/). Released into the public domain.",
    ),
)


def num_images() -> int:
    return len(PHOTOGRAPHS) * (NUM_TRAIN_PER_CLASS + NUM_HELD_OUT_PER_CLASS)


def make_images() -> Iterator[tuple[str, bytes]]:
    """(relative path, JPEG bytes) of every image, in the order of the paths' parts.

    Raises ImportError without scikit-image, and ValueError if its photographs have another size than the boxes need.
    """
    import skimage.data  # here, not above: the command says what to install if it is missing

    for photograph in PHOTOGRAPHS:
        pixels = getattr(skimage.data, photograph.function)()
        size = (pixels.shape[1], pixels.shape[0])
        if size != photograph.size:
            raise ValueError(f"skimage.data.{photograph.function} is {size}, not {photograph.size}")
        for part, num in (("train", NUM_TRAIN_PER_CLASS), ("held_out", NUM_HELD_OUT_PER_CLASS)):
            for number in range(num):
                box, width = choose_crop(photograph, part, number)
                encoded = crop_as_jpeg(pixels, box, (width, width * 3 // 4), quality=JPEG_QUALITY)
                yield f"{part}/{photograph.name}/{number:04d}.jpg", encoded


def choose_crop(photograph: Photograph, part: str, number: int) -> tuple[Box, int]:
    """The box to cut, inside the part's region, and the image's width; a function of the arguments alone."""
    regions = (photograph.train, photograph.held_out)
    largest_width = min(min(right - left, (bottom - top) * 4 // 3) for left, top, right, bottom in regions)
    left, top, right, bottom = photograph.train if part == "train" else photograph.held_out
    # One generator an image, keyed by its place: images do not depend on how many there are.
    random = np.random.default_rng((PHOTOGRAPHS.index(photograph), part == "train", number))
    width = largest_width * int(random.integers(MIN_SCALE_PERCENT, 101)) // 100
    height = width * 3 // 4
    x = int(random.integers(left, right - width + 1))
    y = int(random.integers(top, bottom - height + 1))
    # Multiples of 4 keep the image 4:3 exactly.
    image_width = int(random.integers(MIN_WIDTH // 4, MAX_WIDTH // 4 + 1)) * 4
    return (x, y, x + width, y + height), image_width


def licenses_text() -> str:
    """The Markdown page that lies beside the images: where each photograph comes from and its licence."""
    lines = [
        "# Where these images come from",
        "",
        "Every image is a crop of one of six photographs that the scikit-image package ships. What its documentation",
        "says of each:",
        "",
    ]
    for photograph in PHOTOGRAPHS:
        lines += [f"- `{photograph.name}` (`skimage.data.{photograph.function}`): {photograph.credit}"]
        lines += [f"  Training crops lie in {photograph.train}, held-out crops in {photograph.held_out}."]
    lines += ["", "Boxes are (left, top, right, bottom) in pixels of the photograph; the two never overlap.", ""]
    return "\n".join(lines)
