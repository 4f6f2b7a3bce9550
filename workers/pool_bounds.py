"""A pool's name and size limits, from what its command line says.

In:  numbers and a name, 0 or "" where nothing was said.
Out: both limits, a name; ConfigError for what can't be.
"""

from __future__ import annotations

import os
import re
import uuid

from pipeline.errors import ConfigError, Problem

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


def pool_bounds(num: int, minimum: int, maximum: int) -> tuple[int, int]:
    """The least and the greatest number of workers; `maximum` 0: twice the cores, 8 or `num`, what is most."""
    most = maximum or max(num, minimum, 8, 2 * (os.cpu_count() or 1))
    if not minimum <= num <= most:
        raise ConfigError(
            Problem(
                file="command line",
                line=0,
                path="--num",
                expected=f"a number of workers from --min {minimum} to --max {most}",
                got=str(num),
            )
        )
    return minimum, most


def pool_name(name: str) -> str:
    """The name as given, or a new one."""
    if not name:
        return f"pool-{uuid.uuid4().hex[:8]}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            Problem(
                file="command line",
                line=0,
                path="--name",
                expected="a name of up to 32 letters, digits, dots, hyphens and underscores",
                got=repr(name),
            )
        )
    return name
