"""`headrace calibrate`: how well gradient health tells healthy trainings from faulty ones, measured."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    job: Annotated[
        Path, typer.Argument(help="A job file, for its train stream.", metavar="[JOB.yaml]", show_default=True)
    ] = Path("configs/jobs/calibrate.yaml"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from 0.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Trainings at a time, one thread each.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, a few healthy trainings, a few fixes.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The tables as Markdown, for a README.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write a record of every training to this file.")] = None,
) -> None:
    """Train healthy and faulty models; print detection rate, delay, false alarms. Exit 1 if one falls short."""
    import msgspec

    from headrace.calibration import Record
    from headrace.calibration_run import calibrate as run_suite
    from headrace.calibration_tables import shortfalls, tables
    from pipeline.config import load_job
    from pipeline.errors import RunFailed

    load_job(job)  # an error in it is told now, not by a process
    records: list[Record] = []
    with closing(run_suite(job, range(1 if quick else seeds), num_processes=processes, is_quick=quick)) as parts:
        for done, found in parts:
            records = sorted([*records, *found], key=lambda record: record.seed)
            short = [f"  {one}" for one in shortfalls(found)]
            # A long run that is stopped has said and kept what it knew.
            typer.echo("\n".join([f"{done}: {len(found)} trainings", *short]), err=True)
            if json is not None:
                json.write_bytes(msgspec.json.format(msgspec.json.encode(records)))
    for table in tables(records):
        typer.echo((table.as_markdown() if markdown else table.as_text()) + "\n")
    short = shortfalls(records)
    if short:
        raise RunFailed("calibration fell short:\n" + "\n".join(f"  {one}" for one in short))
