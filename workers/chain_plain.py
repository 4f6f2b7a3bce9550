"""The benchmark's plain way to make samples: read, decode, the whole chain, as a user of albumentations writes it.

In:  a recipe, a source, plug-in modules; then indices.
Out: finished samples: normalised float tensors (C,H,W) after Normalize and ToTensorV2, with their labels.
Never reseeds, defers, checks or hashes anything: it is what the workers are measured against, not what they run.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.sources.protocol import Source
from workers.chain_build import ChainBuilder
from workers.chain_library import TO_TENSOR, composition, known_transforms
from workers.decode import decode


class PlainSamples:
    """A map-style data set of the source; what torch's DataLoader takes."""

    def __init__(self, recipe: Recipe, source: Source, plugins: Mapping[str, ModuleType] | None = None) -> None:
        self._source = source
        self._settings = recipe.decode
        self._is_usual = recipe.decode.color == "rgb" and recipe.decode.depth == 8
        self._compose = _plain_compose(recipe, plugins or {})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The transformed image and its label."""
        raw = self._source.read(index)
        return self._compose(image=self._decoded(raw.data))["image"], raw.label

    def _decoded(self, data: bytes | np.ndarray) -> Any:
        if self._is_usual and isinstance(data, bytes):
            # RGB at once: IMREAD_COLOR and a cvtColor after it, as many write it, is slower.
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return decode(data, self._settings)  # arrays, grey, 16 bits: no other straightforward code is at hand


def _plain_compose(recipe: Recipe, plugins: Mapping[str, ModuleType]) -> Any:
    """albumentations' own Compose over every transform of the chain; ConfigError if the chain is wrong."""
    chain = recipe.chain
    has_tensor_tail = bool(chain.nodes) and chain.nodes[-1].name == TO_TENSOR
    nodes = chain.nodes[:-1] if has_tensor_tail else chain.nodes
    builder = ChainBuilder(chain.file, known_transforms(plugins), 1 if recipe.decode.color == "gray" else 3)
    transforms = builder.build_all(nodes, chain.path, chain.line)
    if builder.problems:
        raise ConfigError(builder.problems)
    if has_tensor_tail:
        # Here, not above: it needs torch, which no worker of the pipeline has.
        from albumentations.pytorch import ToTensorV2

        transforms.append(ToTensorV2())
    return composition("Compose")(transforms)
