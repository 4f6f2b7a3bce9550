"""`headrace workers`: a pool of workers as a service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.stop_signals import StopSignals
    from workers.pool import PoolConfig

_MAXIMUM = "... and at or below this. Default: twice the machine's cores, 8 at least."


def workers(
    connect: Annotated[str, typer.Option(help="The dispatcher's address. Default: that of `headrace pipeline`.")] = "",
    num: Annotated[
        int | None,
        typer.Option("--num", "-n", min=1, help="Worker processes to begin with. Default: 2, within limits."),
    ] = None,
    minimum: Annotated[int, typer.Option("--min", min=1, help="`headrace scale` stays at or above this.")] = 1,
    maximum: Annotated[int, typer.Option("--max", min=0, show_default=False, help=_MAXIMUM)] = 0,
    auto: Annotated[bool, typer.Option(help="More while trainers wait for data, fewer while workers idle.")] = False,
    name: Annotated[str, typer.Option(help="What `headrace status` and `scale` call it.")] = "",
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
    from pipeline.stop_signals import StopSignals

    stop = StopSignals()
    from headrace.standing_service import announce, private_directory
    from pipeline.runtime_dir import default_endpoint
    from pipeline.sources import parse_source_argument
    from pipeline.transport import check_endpoint
    from workers.pool import PoolConfig
    from workers.pool_bounds import check_hang_s, pool_bounds, pool_name

    endpoint = connect or default_endpoint()
    check_endpoint(endpoint)
    sources = dict(parse_source_argument(text) for text in source or [])
    begin_with, least, most = pool_bounds(num, minimum, maximum)
    check_hang_s(hang_s)
    called = pool_name(name)
    with private_directory(runtime_dir, lifeline, "w") as directory:
        config = PoolConfig(
            name=called,
            connect=endpoint,
            num_workers=begin_with,
            min_workers=least,
            max_workers=most,
            automatic=auto,
            sources=sources,
            plugins=tuple(plugins or ()),
            base=base.absolute(),
            hang_s=hang_s,
            directory=directory,
        )
        _run(config, lifeline, stop, announce("workers", is_standing=lifeline is None))


def _run(config: PoolConfig, lifeline: int | None, stop: StopSignals, say: Callable[[str], None]) -> None:
    from workers.pool import run_pool

    mode = ", automatic" if config.automatic else ""
    size = f"{config.num_workers} ({config.min_workers} to {config.max_workers}{mode})"
    say(f"pool {config.name} of {size}, for the dispatcher at {config.connect}")
    if not config.sources:
        say("no --source NAME=DIR was given: these workers serve no job")
    run_pool(config, lifeline_fd=lifeline, stop=stop, tell=say)
    say("ended")
