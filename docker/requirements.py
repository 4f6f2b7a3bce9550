"""Prints what pyproject.toml asks for, one requirement a line: the base's, and those of the extras that are named.
`build` is what the wheel of headrace itself is made with.

Needs nothing but Python: an image's libraries are installed before, and apart from, the code that changes daily.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(extras: list[str]) -> list[str]:
    """KeyError for an extra that pyproject.toml does not have."""
    content = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
    project = content["project"]
    known = {**project["optional-dependencies"], "build": content["build-system"]["requires"]}
    return [*project["dependencies"], *(line for extra in extras for line in known[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
