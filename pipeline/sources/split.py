"""Train/held-out split by hash: each sample falls on its side by itself.

In:  a sample's name (relative path, or index) and the salt.
Out: whether the configured side has it. Adding or removing one sample moves no other.
"""

from __future__ import annotations

import hashlib

import numpy as np

from pipeline.job import SplitByHash


def unit_hash(name: bytes, salt: str) -> float:
    """A number in [0, 1), evenly spread over names: the first 53 bits of SHA-256(salt, NUL, name)."""
    digest = hashlib.sha256(salt.encode() + b"\0" + name).digest()
    # 53 bits are what a float holds exactly; with 64 the largest would round up to 1.0.
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def is_on_side(name: bytes, split: SplitByHash | None) -> bool:
    """True if the side that `split` asks for has this sample; without a split every sample."""
    if split is None:
        return True
    return (unit_hash(name, split.salt) < split.held_out) == (split.part == "held_out")


def rows_on_side(num_rows: int, split: SplitByHash | None) -> np.ndarray | range:
    """The rows that the side has, ascending; a row's name is its decimal number."""
    if split is None:
        return range(num_rows)
    chosen = (row for row in range(num_rows) if is_on_side(b"%d" % row, split))
    return np.fromiter(chosen, np.int64)
