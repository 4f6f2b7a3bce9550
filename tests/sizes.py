"""How many cases a law is tried on: `make test` tries a part of them, `make test-long` all."""

from __future__ import annotations

import os

IS_FULL_SIZE = os.environ.get("TEST_SIZE") == "full"
"""Set by `make test-long`."""


def cases(full: int) -> int:
    """`full` at full size, a third of it else; what a smoke test misses, another run of it tries: seeds are random."""
    return full if IS_FULL_SIZE else max(1, full // 3)
