"""A pool's name, size and limits, from what its command line says.

In:  numbers and a name; None, 0 or "" where nothing was said.
Out: its size and both limits, a name; ConfigError for what can't be.
"""

from __future__ import annotations

import os
import re
import uuid
from typing import NamedTuple

from pipeline.errors import ConfigError, Problem

DEFAULT_NUM = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class Bounds(NamedTuple):
    """How many workers a pool begins with, and between which limits it may be scaled."""

    num: int
    minimum: int
    maximum: int


def pool_bounds(num: int | None, minimum: int, maximum: int) -> Bounds:
    """`maximum` 0: twice the cores, 8 or `num`, what is most; `num` None: 2, or what is nearest to it."""
    most = maximum or max(num or 0, minimum, 8, 2 * (os.cpu_count() or 1))
    if minimum > most:
        raise _refusal("--max", f"at least --min {minimum}", str(maximum))
    if num is None:
        num = min(max(DEFAULT_NUM, minimum), most)
    if not minimum <= num <= most:
        raise _refusal("--num", f"a number of workers from --min {minimum} to --max {most}", str(num))
    return Bounds(num, minimum, most)


def check_hang_s(hang_s: float) -> None:
    """ConfigError for a time that no worker could keep."""
    if not hang_s > 0:  # nan neither
        raise _refusal("--hang-s", "seconds, above 0", str(hang_s))


def pool_name(name: str) -> str:
    """The name as given, or a new one."""
    if not name:
        return f"pool-{uuid.uuid4().hex[:8]}"
    if not _NAME.fullmatch(name):
        expected = "a name of up to 32 letters, digits, dots, hyphens and underscores"
        raise _refusal("--name", expected, repr(name))
    return name


def _refusal(path: str, expected: str, got: str) -> ConfigError:
    return ConfigError(Problem(file="command line", line=0, path=path, expected=expected, got=got))
