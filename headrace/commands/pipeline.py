"""`headrace pipeline`: the dispatcher as a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pipeline(
    listen: Annotated[str, typer.Option(help="Where to listen, as in ipc:///run/user/1000/headrace.sock.")],
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
    runtime_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Match slices to workers until stopped."""
    from pipeline.lifeline import end_with

    if lifeline is not None:
        end_with(lifeline, runtime_dir)
    from pipeline.runtime_dir import RuntimeDir
    from pipeline.serve import serve

    held = RuntimeDir(runtime_dir) if runtime_dir else None
    try:
        serve(listen, lifeline_fd=lifeline)
    finally:
        if held:
            held.remove()
