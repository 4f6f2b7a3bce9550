"""The protocol of a source: random access to raw samples by index.

In:  an index.
Out: `RawSample`: encoded bytes or an array, and a label.
A further kind of source is one file with a class of this shape, and a line in `pipeline/sources/__init__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class RawSample:
    """One sample as it is stored: encoded bytes (JPEG, PNG, WebP) or an array HWC or HW, and its label."""

    data: bytes | np.ndarray
    label: int


class Source(Protocol):
    """Random access to raw samples; equal fingerprints mean equal samples at equal indices."""

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what the samples are (never of mtimes or of where they lie)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> RawSample:
        """The sample at `index`, 0 <= index < len.

        Raises OSError or MemoryError if the read itself fails (that may pass, so it is tried elsewhere),
        and `SampleError` only for what is wrong with the bytes for good.
        """

    def describe(self, index: int) -> str:
        """How a message names the sample: its path inside the source, or `images.npz[17]`."""
