"""Errors say whose fault it is, and each kind has one exit code.

In:  what went wrong, where, what was expected, what came, how to go on.
Out: exceptions whose text a user can act on; the `EXIT_` numbers are the one table of the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1  # the run failed, or is unhealthy
EXIT_USER_INPUT = 2  # what the user wrote is wrong
EXIT_PEER_UNREACHABLE = 3
EXIT_STOPPED_RESUMABLE = 4
EXIT_INTERRUPTED = 130  # Ctrl-C or SIGTERM ended it without a last checkpoint; 128 + SIGINT, as shells report it


class HeadraceError(Exception):
    """Every error this project raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing the user wrote wrongly: the place, both sides and the way out."""

    file: str
    """The file, as the user named it; "--set" or "command line" for arguments."""
    line: int
    """1-based line in the file; 0 where the place has no line."""
    path: str
    """The path inside the file, such as `chain[2].RandomCrop.size`."""
    expected: str
    got: str
    way_out: str = ""
    """What to do, such as `did you mean RandomCrop?`; empty when expected/got say it all."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        lines = [
            f"{place}: {self.path}" if self.path else place,
            f"  expected: {self.expected}",
            f"  got:      {self.got}",
        ]
        if self.way_out:
            lines.append(f"  to go on: {self.way_out}")
        return "\n".join(lines)


class ConfigError(HeadraceError):
    """The user's input is wrong; carries every problem found, not just the first."""

    exit_code = EXIT_USER_INPUT

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        assert self.problems
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SampleError(HeadraceError):
    """The data is wrong: these bytes can't be decoded or transformed, however often they are tried.

    A function of the sample's coordinates, so it may be replaced by another sample (law 1). A read that
    *fails* (OSError, MemoryError) is not, and is never a SampleError.
    """


class RunFailed(HeadraceError):
    """The run can't go on, by policy or because nothing can make progress; the text names the cause."""


class Stopped(HeadraceError):
    """The run was stopped on request and can be resumed; the text says where it stands and how to go on."""

    exit_code = EXIT_STOPPED_RESUMABLE


class PeerUnreachable(HeadraceError):
    """A service did not answer; the text names it and says how to start it."""

    exit_code = EXIT_PEER_UNREACHABLE


class RemoteProtocolError(HeadraceError):
    """A peer sent what the protocol does not allow; its message is dropped and counted."""

    exit_code = EXIT_PEER_UNREACHABLE


class LocalProtocolError(HeadraceError):
    """We were about to send what the protocol does not allow: a defect of ours."""
