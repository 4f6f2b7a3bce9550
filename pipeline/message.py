"""What all messages share: their base, and located errors on their way to the user.

In and out: nothing; plain records.
"""

from __future__ import annotations

import msgspec

from pipeline.errors import Problem

PROTOCOL_VERSION = 2


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A control message; its class name is its tag on the wire."""


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A located error, as `pipeline.errors.Problem`, on its way to the user."""

    file: str
    line: int
    path: str
    expected: str
    got: str
    way_out: str = ""

    @classmethod
    def of(cls, problem: Problem) -> Location:
        """The problem, ready to be sent."""
        return cls(**{name: getattr(problem, name) for name in cls.__struct_fields__})

    def problem(self) -> Problem:
        """The problem, as it was before it was sent."""
        return Problem(**msgspec.structs.asdict(self))
