"""Which transforms a chain may name, where they come from, and why the others may not be named.

In:  albumentations 2.0.8, plug-in modules.
Out: name -> class, name -> the reason for a refusal, name -> what replaced it since albumentations 1.x.
Never lets albumentations import torch (1.7 s and 180 MB a worker) or ask PyPI for news.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import cv2
import numpy as np

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
_hide_torch = "torch" not in sys.modules
if _hide_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
import albumentations  # noqa: E402
from albumentations.augmentations.pixel.functional import sz_lut  # noqa: E402
from albumentations.core.composition import BaseCompose  # noqa: E402
from albumentations.core.transforms_interface import BasicTransform, DualTransform, ImageOnlyTransform  # noqa: E402
from albumentations.core.utils import ensure_contiguous_output as as_contiguous  # noqa: E402

if _hide_torch:
    # albumentations looks for torch again only in from_dict, which we never call; a trainer in this
    # process (`--workers 0`, tests) must still be able to import it.
    del sys.modules["torch"]

# What a transform warns of while it runs ("already gray") is no error, and must not become one under `python -W error`.
warnings.filterwarnings("ignore", module=r"albumentations\.")

# One worker uses one core; more threads change no byte and gain nothing (DESIGN.md, section 6).
cv2.setNumThreads(0)

TO_TENSOR = "ToTensorV2"
"""Done by the trainer's finish, so its class (which needs torch) is never used here."""

ALLOWED: frozenset[str] = frozenset(
    """
    AdditiveNoise AdvancedBlur AutoContrast Blur CLAHE ChannelDropout ChannelShuffle ChromaticAberration ColorJitter
    Defocus Downscale Emboss Equalize FancyPCA FromFloat GaussNoise GaussianBlur GlassBlur HEStain HueSaturationValue
    ISONoise Illumination ImageCompression InvertImg MedianBlur MotionBlur MultiplicativeNoise Normalize
    PlanckianJitter PlasmaBrightnessContrast PlasmaShadow Posterize RGBShift RandomBrightnessContrast RandomFog
    RandomGamma RandomGravel RandomRain RandomShadow RandomSnow RandomSunFlare RandomToneCurve RingingOvershoot
    SaltAndPepper Sharpen ShotNoise Solarize Spatter Superpixels ToFloat ToGray ToRGB ToSepia UnsharpMask ZoomBlur
    Affine CenterCrop CoarseDropout Crop CropAndPad D4 ElasticTransform Erasing FrequencyMasking GridDistortion
    GridDropout GridElasticDeform HorizontalFlip LongestMaxSize Morphological NoOp OpticalDistortion Pad PadIfNeeded
    Perspective PiecewiseAffine PixelDropout RandomCrop RandomCropFromBorders RandomGridShuffle RandomResizedCrop
    RandomRotate90 RandomScale RandomSizedCrop Resize Rotate SafeRotate ShiftScaleRotate SmallestMaxSize
    SquareSymmetry ThinPlateSpline TimeMasking TimeReverse Transpose VerticalFlip XYMasking
    """.split()  # noqa: SIM905 (ninety quoted lines would hide what is in the list)
)
"""Every transform of 2.0.8 that makes an image from that image alone."""

COMPOSITIONS: frozenset[str] = frozenset(
    ["Compose", "OneOf", "OneOrOther", "RandomOrder", "SelectiveChannelTransform", "Sequential", "SomeOf"]
)

_NEEDS_BOXES = "it needs boxes or masks, and a headrace sample is an image and a label"
_NEEDS_REFERENCES = "it mixes in other images, so a sample would not depend on its own image alone"
_THREE_D = "it works on volumes, and headrace carries images"
FORBIDDEN: dict[str, str] = {
    "TextImage": "it reads a font file named by a parameter, and nothing a chain names is opened",
    "Lambda": "it calls Python code; write a plug-in with a transform class instead",
    "TemplateTransform": _NEEDS_REFERENCES,
    "MixUp": _NEEDS_REFERENCES,
    "ToTensor3D": _THREE_D,
    "ReplayCompose": "`headrace replay` remakes any sample from its coordinates; use Sequential",
    **dict.fromkeys(["FDA", "HistogramMatching", "PixelDistributionAdaptation"], _NEEDS_REFERENCES),
    **dict.fromkeys(["Mosaic", "OverlayElements"], _NEEDS_REFERENCES),
    **dict.fromkeys(["MaskDropout", "CropNonEmptyMaskIfExists", "ConstrainedCoarseDropout"], _NEEDS_BOXES),
    **dict.fromkeys(["AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop"], _NEEDS_BOXES),
    **dict.fromkeys(["RandomSizedBBoxSafeCrop", "RandomCropNearBBox"], _NEEDS_BOXES),
    **dict.fromkeys(["CenterCrop3D", "CoarseDropout3D", "CubicSymmetry", "Pad3D", "PadIfNeeded3D"], _THREE_D),
    "RandomCrop3D": _THREE_D,
}

GONE_SINCE_1: dict[str, str] = {
    "Flip": "OneOf: [HorizontalFlip, VerticalFlip]",
    "Cutout": "CoarseDropout",
    "JpegCompression": "ImageCompression",
    "GaussianNoise": "GaussNoise",
    "RandomBrightness": "RandomBrightnessContrast with contrast_limit: 0",
    "RandomContrast": "RandomBrightnessContrast with brightness_limit: 0",
    "ToTensor": "ToTensorV2",
    "IAAAdditiveGaussianNoise": "GaussNoise",
    "IAAAffine": "Affine",
    "IAAEmboss": "Emboss",
    "IAAFliplr": "HorizontalFlip",
    "IAAFlipud": "VerticalFlip",
    "IAAPerspective": "Perspective",
    "IAAPiecewiseAffine": "PiecewiseAffine",
    "IAASharpen": "Sharpen",
    "IAASuperpixels": "Superpixels",
}


def known_transforms(plugins: Mapping[str, ModuleType]) -> dict[str, Any]:
    """Name -> class: the allow-list, and each transform class that a plug-in module itself defines.

    A plug-in's class is known by its bare name and as `module.Class`; it can't replace one of albumentations.
    """
    known: dict[str, Any] = {name: getattr(albumentations, name) for name in sorted(ALLOWED)}
    for module_name, module in plugins.items():
        for name, member in vars(module).items():
            is_transform = inspect.isclass(member) and issubclass(member, ImageOnlyTransform | DualTransform)
            if is_transform and member.__module__ == module.__name__:
                known.setdefault(name, member)
                known[f"{module_name}.{name}"] = member
    return known


def is_library_class(transform_class: type) -> bool:
    """Whether this is albumentations' own class of that name, and not a plug-in's or one derived from it."""
    return getattr(albumentations, transform_class.__name__, None) is transform_class


def look_up_in_place(image: np.ndarray, table: np.ndarray) -> None:
    """Replaces each byte of a contiguous array by the table's; in place, unlike cv2.LUT, and six times as fast."""
    _look_up(image, table, inplace=True)


_look_up = inspect.unwrap(sz_lut)  # without its checks that both arrays are contiguous


def composition(name: str) -> Any:
    """The class of one of COMPOSITIONS."""
    return getattr(albumentations, name)


__all__ = [
    "ALLOWED",
    "COMPOSITIONS",
    "FORBIDDEN",
    "GONE_SINCE_1",
    "TO_TENSOR",
    "BaseCompose",
    "BasicTransform",
    "as_contiguous",
    "composition",
    "is_library_class",
    "known_transforms",
    "look_up_in_place",
]
