"""The benchmark's plain way to make samples: read, decode, the whole chain, as a user of albumentations writes it.

In:  a recipe, a source; then indices.
Out: finished samples: normalised float tensors (C,H,W) after Normalize and ToTensorV2, with their labels.
Never reseeds, defers, checks or hashes anything: it is what the workers are measured against, not what they run.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.protocol import Source
from workers.chain_build import ChainBuilder
from workers.chain_library import TO_TENSOR, composition, known_transforms


class PlainSamples:
    """A map-style data set of the source; what torch's DataLoader takes."""

    def __init__(self, recipe: Recipe, source: Source) -> None:
        self._source = source
        self._compose = _plain_compose(recipe)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The transformed image and its label."""
        raw = self._source.read(index)
        encoded = raw.data if isinstance(raw.data, np.ndarray) else np.frombuffer(raw.data, np.uint8)
        # RGB at once: IMREAD_COLOR and a cvtColor after it, as many write it, is slower.
        image_HWC = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        return self._compose(image=image_HWC)["image"], raw.label


def _plain_compose(recipe: Recipe) -> Any:
    """albumentations' own Compose over every transform of the chain; ConfigError if the chain is wrong."""
    chain = recipe.chain
    has_tensor_tail = bool(chain.nodes) and chain.nodes[-1].name == TO_TENSOR
    nodes = chain.nodes[:-1] if has_tensor_tail else chain.nodes
    builder = ChainBuilder(chain.file, known_transforms({}), num_channels=3)
    transforms = builder.build_all(nodes, chain.path, chain.line)
    if builder.problems:
        raise ConfigError(builder.problems)
    if has_tensor_tail:
        # Here, not above: it needs torch, which no worker of the pipeline has.
        from albumentations.pytorch import ToTensorV2

        transforms.append(ToTensorV2())
    return composition("Compose")(transforms)
