"""`headrace health`: what is wrong with a run's gradients, with evidence and a fix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def health(
    run: Annotated[Path | None, typer.Argument(help="The run's folder, such as runs/quickstart.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also resolved verdicts, and those of no weight.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="health.json as it stands.")] = False,
    detectors: Annotated[bool, typer.Option("--detectors", help="The table of detectors instead.")] = False,
) -> None:
    """Print the verdicts on a run so far; the exit code is 1 while a critical one is open."""
    from headrace.health_text import detector_lines, health_lines, is_critical_open, read_health
    from pipeline.errors import EXIT_FAILED

    if detectors:
        typer.echo("\n".join(detector_lines()))
        return
    if run is None:
        raise typer.BadParameter("name the run's folder, such as runs/quickstart", param_hint="RUN")
    content = read_health(run)
    if as_json:
        sys.stdout.write((run / "health.json").read_text())
    else:
        typer.echo("\n".join(health_lines(run, content, everything=everything)))
    if is_critical_open(content):
        raise typer.Exit(EXIT_FAILED)
