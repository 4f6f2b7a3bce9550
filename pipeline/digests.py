"""Digests: what a sample's and a batch's bytes are known by.

In:  final wire bytes of samples, with their labels; their digests, labels and ids.
Out: 16-byte sample digests, hex batch digests. Golden values rest on both: never change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

SAMPLE_DIGEST_NBYTES = 16


def sample_digest(image: NDArray[np.generic], label: int) -> bytes:
    """xxh3-128 of one sample's contiguous bytes, then its label as little-endian int64: a check against faults, not
    against forgers."""
    digest = xxhash.xxh3_128(image.data)
    digest.update(int(label).to_bytes(8, "little", signed=True))  # a user's source may give NumPy's integers
    return digest.digest()


def batch_digest(sample_digests: Sequence[bytes], labels_N: NDArray[np.int64], ids_N: NDArray[np.int64]) -> str:
    """Hex SHA-256 over the samples' digests, then labels, then ids, as little-endian int64, in order."""
    assert len(sample_digests) == len(labels_N) == len(ids_N)
    digest = hashlib.sha256(b"".join(sample_digests))
    digest.update(labels_N.astype("<i8").tobytes())
    digest.update(ids_N.astype("<i8").tobytes())
    return digest.hexdigest()
