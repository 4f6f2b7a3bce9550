"""Values that know where they were written, and a notebook of what is wrong with them.

In:  what `pipeline/config.py` read from YAML.
Out: `Located` trees, plain values, and problems with file, line and path.
Never reads a file, knows nothing of jobs or chains.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pipeline.errors import ConfigError, Problem

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A scalar, a tuple of Located, or a dict of Located under text keys, with its place."""

    value: Scalar | tuple[Located, ...] | dict[str, Located]
    file: str
    line: int
    """1-based; 0 for values of a `--set`."""
    key_line: int = 0
    """Line of the key that names this value; its own line where there is none."""

    @property
    def items(self) -> dict[str, Located]:
        """The entries of a map; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    def plain(self) -> Any:
        """The value as ordinary dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, tuple):
            return [entry.plain() for entry in self.value]
        return self.value

    def with_item(self, key: str, entry: Located) -> Located:
        """The same map with one entry put or replaced."""
        return replace(self, value={**self.items, key: entry})


@dataclass(slots=True)
class ProblemList:
    """Gathers every problem, so that the user sees them all at once."""

    problems: list[Problem] = field(default_factory=list)

    def add(
        self, at: Located, path: str, *, expected: str, got: str, way_out: str = "", line: int | None = None
    ) -> None:
        """Notes one problem at a value's line, or at `line` (such as its key's)."""
        place = at.line if line is None else line
        self.problems.append(Problem(file=at.file, line=place, path=path, expected=expected, got=got, way_out=way_out))

    def take(self, error: ConfigError) -> None:
        """Adds another error's problems to these."""
        self.problems.extend(error.problems)

    def in_order(self) -> tuple[Problem, ...]:
        """All problems noted so far, by file and line."""
        return tuple(sorted(self.problems, key=lambda problem: (problem.file, problem.line)))


def describe(value: Any) -> str:
    """A value as a message shows it: short, on one line."""
    if isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {describe(entry)}' for key, entry in value.items())}}}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(describe, value))}]"
    elif value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or all known names if none is like it and they are few, or nothing."""
    names = list(known)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if close:
        return f"did you mean {by_lower[max(close, key=partial(_likeness, name.lower()))]}?"
    return f"known here: {', '.join(names)}" if 0 < len(names) <= 20 else ""


def _likeness(name: str, other: str) -> float:
    """0 to 1; up to four equal first letters weigh more, as Winkler has it: GaussBlurr means no GlassBlur."""
    ratio = difflib.SequenceMatcher(None, name, other).ratio()
    num_equal = next((i for i in range(4) if name[i : i + 1] != other[i : i + 1]), 4)
    return ratio + 0.1 * num_equal * (1 - ratio)
