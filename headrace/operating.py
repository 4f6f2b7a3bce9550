"""Which service a command of an operator speaks to: the run of a folder, or a dispatcher by its address.

In:  --run-dir or --connect, and maybe --stream.
Out: `Target`; a ConfigError when it is both, or when no run is going on in the folder.
Opens no socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError, PeerUnreachable, Problem
from pipeline.operator import Operator

RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The folder of a run that is going on.")]
Connect = Annotated[
    str | None, typer.Option("--connect", help="Or: a dispatcher's address. Default: that of `headrace pipeline`.")
]
Stream = Annotated[str, typer.Option("--stream", help="With --connect, where it serves several jobs: which one.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A dispatcher, and the stream of it that is meant."""

    endpoint: str
    stream: str = ""
    """"": the only one."""
    is_run: bool = False
    """The dispatcher is a run's own, which starts it again when it dies."""
    pid: int = 0
    """Of the run that was named by its folder."""

    def operator(self) -> Operator:
        """A socket to it."""
        return Operator(self.endpoint, is_run=self.is_run)


def _to_go_on(folder: Path) -> str:
    """What is left to do with a run that has ended."""
    from pipeline.going_on import resume_command
    from pipeline.run_end import read_run_end

    return "nothing: it has finished" if read_run_end(folder).how == "finished" else resume_command(folder)


def find_target(run_dir: Path | None, connect: str | None, stream: str = "") -> Target:
    """The dispatcher that was named in one of two ways, or this user's standing one."""
    from pipeline.run_lock import live_run
    from pipeline.runtime_dir import default_endpoint

    if run_dir is not None and connect is not None:
        raise wrong_arguments("--run-dir FOLDER, or --connect ADDRESS", "both")
    if run_dir is None:
        return Target(endpoint=connect or default_endpoint(), stream=stream)
    run = live_run(run_dir, _to_go_on)
    if not run.endpoint:
        raise PeerUnreachable(
            f"the run in {run_dir} (process {run.pid}) has no dispatcher yet\n"
            "  to go on: try again in a second, if it is just starting; with 0 workers a run never has one: "
            f"then `kill -TERM {run.pid}` stops it so that it can be resumed"
        )
    return Target(endpoint=run.endpoint, stream=stream or run.stream, is_run=True, pid=run.pid)


def wrong_arguments(expected: str, got: str, way_out: str = "") -> ConfigError:
    """A located error for what the command line itself got wrong."""
    return ConfigError(
        Problem(file="command line", line=0, path="", expected=expected, got=got, way_out=way_out or "see --help")
    )
