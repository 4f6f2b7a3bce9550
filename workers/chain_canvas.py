"""The canvas: the one array that a sample's transforms may write to.

In:  the array that the caller would like the result in, if any.
Out: arrays that nobody else holds.
Never hands out an array twice: a result that the caller keeps is not written to by the next sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Params = dict[str, Any]
"""What a transform drew for one sample, by name, as its `apply` takes them."""


class Canvas:
    """An array is written to only if it is the last that `claim` gave: then no one else has seen it."""

    __slots__ = ("_offered", "_own")

    def __init__(self) -> None:
        self._offered: np.ndarray | None = None
        self._own: np.ndarray | None = None

    def renew(self, offered: np.ndarray | None) -> None:
        """A new sample begins; `offered` is given to the first claim that it fits."""
        self._offered = offered
        self._own = None

    def claim(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array with nothing in it yet, from now on the one that may be written to."""
        offered = self._offered
        if offered is not None and offered.shape == shape and offered.dtype == dtype:
            self._offered = None
            self._own = offered
        else:
            self._own = np.empty(shape, dtype=dtype)
        return self._own

    def target(self, image: np.ndarray) -> np.ndarray:
        """Where to write a result like `image`: over it if it is ours, else a claimed array, whose bytes are any."""
        return image if image is self._own else self.claim(image.shape, image.dtype)

    def copied(self, image: np.ndarray) -> np.ndarray:
        """`image` itself if it is ours, else a copy that is."""
        target = self.target(image)
        if target is not image:
            np.copyto(target, image)
        return target
