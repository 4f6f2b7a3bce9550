"""`headrace study STUDY.yaml`: trains a matrix of runs and writes one page about what each of its settings does.

In:  a study file.
Out: FOLDER/study.html, FOLDER/results.jsonl (a line a run), FOLDER/study.json (machine, time, claims); the claims on
     the terminal.
Never fails because a claim does not hold: that is what the page is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from headrace.study_run import Progress as Report
    from trainer.study_claims import Judgement

STYLES = {"holds": "green", "does not hold": "red", "mixed": "yellow", "not tested": "dim"}


def study(
    file: Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page; studies/NAME if not given.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field, as in steps=100.")] = None,
) -> None:
    """Train a matrix of runs and write a page with pictures about what each setting does."""
    from headrace.study_run import claim_folder, run_study
    from pipeline.study_file import load_study

    console = Console()
    overrides = list(set_ or [])
    loaded = load_study(file, overrides)
    folder = out or Path("studies") / loaded.config.name
    claim_folder(folder)
    num_runs = loaded.config.num_cells * len(loaded.config.seeds)
    console.print(
        f"{num_runs} runs: {' x '.join(f'{len(settings)} {axis}' for axis, settings in loaded.config.axes.items())} "
        f"x {len(loaded.config.seeds)} seeds, {loaded.config.steps} steps each",
        soft_wrap=True,
        highlight=False,
    )
    with _progress(console, num_runs, loaded.config.steps) as report:
        outcome = run_study(loaded, overrides, folder, report)
    from headrace.study_page import write_page

    judgements = write_page(loaded, outcome, folder)
    _print(console, judgements)
    console.print(f"{num_runs} runs in {outcome.wall_s / 60:.1f} min", highlight=False)
    console.print(f"page: {folder / 'study.html'}", soft_wrap=True, highlight=False)


@contextmanager
def _progress(console: Console, num_runs: int, num_steps: int) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("steps", total=num_runs * num_steps)
        num_ended = 0

        def report(steps: int, ended: int) -> None:
            nonlocal num_ended
            num_ended += ended
            bar.update(task, advance=steps, description=f"{num_ended} of {num_runs} runs ended; steps")

        yield report


def _print(console: Console, judgements: tuple[Judgement, ...]) -> None:
    if not judgements:
        return
    table = Table(title="Claims", title_justify="left")
    table.add_column("claim", ratio=3)
    table.add_column("verdict")
    table.add_column("measured", ratio=4)
    for one in judgements:
        table.add_row(one.claim.says, f"[{STYLES[one.answer]}]{one.answer}[/]", one.finding)
    console.print(table)
