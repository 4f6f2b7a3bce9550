"""A recipe's chain that tells what it applied: for `headrace replay`, never for training.

In:  a `Recipe`, plug-in modules; then images (H,W,C) with (seed, epoch, offset, attempt).
Out: the augmented image, byte for byte as the workers' chain makes it, and each transform that ran with its
     parameters, in the order in which they ran.
Every transform is called as albumentations itself does it: whatever shortcuts `CompiledChain` takes, this is what
they must equal. Never runs the chain's tail that the trainer does (Normalize, ToTensorV2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from workers.chain import compile_chain
from workers.chain_build import ChainBuilder
from workers.chain_library import BaseCompose, BasicTransform, known_transforms
from workers.randomness import SampleRandomness


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One transform that ran on a sample."""

    name: str
    """Its class, such as `GaussianBlur`."""
    within: tuple[str, ...]
    """The compositions around it, outermost first, such as `OneOf`, `Sequential`."""
    params: Mapping[str, Any]
    """What it drew or derived, as albumentations names it; empty for a plug-in with a `__call__` of its own."""


class RecordingChain:
    """`apply` gives the bytes of the recipe's `CompiledChain`, and says how they came about."""

    def __init__(self, recipe: Recipe, plugins: Mapping[str, ModuleType] | None = None) -> None:
        """ConfigError if the recipe can't be built here."""
        # Compiled for its checks, and to know how much of the tail is left to the trainer.
        finish = compile_chain(recipe, plugins).finish
        num_deferred = int(finish.channels_first) + bool(finish.scale)
        chain = recipe.chain
        nodes = chain.nodes[: len(chain.nodes) - num_deferred]
        channels = 1 if recipe.decode.color == "gray" else 3
        builder = ChainBuilder(chain.file, known_transforms(plugins or {}), channels)
        built = builder.build_all(nodes, chain.path, chain.line)
        if builder.problems:
            raise ConfigError(builder.problems)
        self._randomness = SampleRandomness()
        self._applied: list[Applied] = []
        for transform in built:
            # Before any recorder is put in: compositions hand the generators on to transforms of their own kind only.
            transform.set_random_state(self._randomness.generator, self._randomness.python)
        self._transforms = [_recorded(transform, (), self._applied) for transform in built]

    def apply(
        self, image_HWC: np.ndarray, seed: int, epoch: int, offset: int, attempt: int = 0
    ) -> tuple[np.ndarray, tuple[Applied, ...]]:
        """The augmented image (H,W,C) and the transforms that ran; the input is never written to."""
        self._randomness.reset(seed, epoch, offset, attempt)
        self._applied.clear()
        data: dict[str, Any] = {"image": image_HWC}
        for transform in self._transforms:
            data = transform(**data)
        image = data["image"]
        if image.dtype == np.float64:  # as CompiledChain does
            image = image.astype(np.float32)
        made = np.ascontiguousarray(image if image.ndim == 3 else image[:, :, np.newaxis])
        return made, tuple(self._applied)


class _Recorder:
    """Stands where a transform stood: calls it, and notes what it did."""

    def __init__(self, transform: Any, within: tuple[str, ...], applied: list[Applied]) -> None:
        self._transform = transform
        self._within = within
        self._applied = applied
        # A class with a `__call__` of its own need not keep `params`; they might be those of an earlier sample.
        self._tells_params = type(transform).__call__ is BasicTransform.__call__

    def __call__(self, **data: Any) -> Any:
        # As it was called, and no more: training calls `transform(image=image)`, so a plug-in may take just that.
        made = self._transform(**data)
        params = self._transform.get_applied_params() if self._tells_params else {}
        # One that ran has at least the image's shape among its parameters.
        if params or (not self._tells_params and made["image"] is not data["image"]):
            self._applied.append(Applied(name=type(self._transform).__name__, within=self._within, params=dict(params)))
        return made


def _recorded(transform: Any, within: tuple[str, ...], applied: list[Applied]) -> Any:
    """The transform behind a recorder; of a composition, itself with recorders inside."""
    if not isinstance(transform, BaseCompose):
        return _Recorder(transform, within, applied)
    inside: Sequence[Any] = transform.transforms
    here = (*within, type(transform).__name__)
    transform.transforms = [_recorded(each, here, applied) for each in inside]
    return transform
