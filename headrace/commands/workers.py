"""`headrace workers`: a pool of workers as a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def workers(
    connect: Annotated[str, typer.Option(help="The dispatcher's address.")],
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Worker processes.")] = 2,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=DIR: where the samples of a source are on this machine. Repeatable.")
    ] = None,
    plugins: Annotated[
        list[str] | None, typer.Option(help="A module or file.py with transforms of yours. Repeatable.")
    ] = None,
    base: Annotated[Path, typer.Option(help="The folder that plug-in names are relative to.")] = Path(),
    hang_s: Annotated[float, typer.Option(help="Seconds without progress before a worker is killed.")] = 60.0,
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
    runtime_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Keep workers alive that make slices, until stopped."""
    from pipeline.lifeline import end_with

    if lifeline is not None:
        end_with(lifeline, runtime_dir)
    from pipeline.runtime_dir import RuntimeDir
    from pipeline.sources import parse_source_argument
    from workers.pool import PoolConfig, run_pool

    sources = dict(parse_source_argument(text) for text in source or [])
    held = RuntimeDir(runtime_dir) if runtime_dir else RuntimeDir.create()
    config = PoolConfig(
        connect=connect,
        num_workers=num,
        sources=sources,
        plugins=tuple(plugins or ()),
        base=base.absolute(),
        hang_s=hang_s,
        directory=held.path,
    )
    try:
        run_pool(config, lifeline_fd=lifeline)
    finally:
        held.remove()
