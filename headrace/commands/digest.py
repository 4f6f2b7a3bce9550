"""`headrace digest`: one line a batch, to compare streams with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def digest(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    batches: Annotated[int, typer.Option(min=1, help="How many batches.")] = 10,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; the job's number if not given.")] = None,
    slice_size: Annotated[int | None, typer.Option("--slice", min=1, help="Samples in a unit of work.")] = None,
    from_position: Annotated[int, typer.Option(min=0, help="Start at this position of the stream.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field, as in seed=3.")] = None,
) -> None:
    """Print position, epoch, recipe and digest of each batch; the same for any number of workers."""
    from pipeline.extras import TRAINER, WORKERS, require_extras

    require_extras("headrace digest", WORKERS, TRAINER)
    from headrace.embedded import open_streams
    from pipeline.config import load_job
    from pipeline.job import initial_workers

    overrides = [*(set_ or []), *([f"slice_size={slice_size}"] if slice_size else [])]
    loaded = load_job(job, overrides)
    num_workers = initial_workers(loaded.config)[0] if workers is None else workers
    with open_streams(loaded, num_workers, start_position=from_position) as streams:
        for _ in range(batches):
            raw = streams.train.next_raw()
            if raw is None:
                break
            typer.echo(f"{raw.range.start} {streams.epoch(raw.range.start)} {raw.range.recipe} {raw.digest}")
