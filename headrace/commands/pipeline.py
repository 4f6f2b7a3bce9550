"""`headrace pipeline`: the dispatcher as a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pipeline(
    listen: Annotated[
        str, typer.Option(help="Where to listen. Default: a socket in a private directory of this user.")
    ] = "",
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
    runtime_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Match slices to workers until stopped."""
    from pipeline.lifeline import end_with

    if lifeline is not None:
        end_with(lifeline, runtime_dir)
    from pipeline.stop_signals import StopSignals

    # A job's own dispatcher ends with its job; signals are for one that stands alone.
    stop = StopSignals() if lifeline is None else None
    from headrace.standing_service import announce, private_directory
    from pipeline.runtime_dir import default_endpoint
    from pipeline.serve import serve
    from pipeline.transport import check_endpoint, remove_socket_file

    endpoint = listen or default_endpoint()
    check_endpoint(endpoint)
    say = announce("pipeline", is_standing=lifeline is None)
    with private_directory(runtime_dir, lifeline):
        say(f"dispatcher for {endpoint}; workers and jobs reach it with --connect {endpoint}")
        try:
            serve(endpoint, lifeline_fd=stop.fd if stop else lifeline)
        finally:
            remove_socket_file(endpoint)
        say("ended")
