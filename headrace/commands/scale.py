"""`headrace scale`: more or fewer workers, while they work.

In:  a number of workers, or `auto`.
Out: what the pool will have; which jobs gain nothing by more workers.
No batch changes: a worker that is removed finishes what it holds.
"""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.operating import Connect, RunDir, find_target, wrong_arguments


def scale(
    num: Annotated[str, typer.Argument(help="How many workers; or `auto`: as the trainers need.", metavar="N|auto")],
    run_dir: RunDir = None,
    connect: Connect = None,
    pool: Annotated[str, typer.Option(help="Which pool, where there are several.")] = "",
) -> None:
    """Set the number of workers of a pool."""
    from headrace.status_screen import LIMITS
    from pipeline.operator import new_operation
    from pipeline.service_messages import AskScale

    is_number = num.isascii() and num.isdigit() and 0 < int(num[:9]) and len(num) < 9
    if num != "auto" and not is_number:
        raise wrong_arguments("a number of workers from 1, or auto", num)
    target = find_target(run_dir, connect)
    question = AskScale(
        operation=new_operation(), pool=pool, num_workers=int(num) if is_number else 0, automatic=not is_number
    )
    with target.operator() as operator:
        text = operator.done(question, lambda: typer.echo("waiting for the pool", err=True))
        typer.echo(text)
        jobs = operator.status().streams
    for job in jobs:
        if job.report is not None and job.report.limit == "window":
            typer.echo(f"{job.stream} is limited by {LIMITS['window']}")
