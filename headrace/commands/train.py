"""`headrace train`: a job from its file to a saved model.

In:  a job file, and options that override it.
Out: a run folder; on the terminal a progress bar (plain lines where there is none) and a summary.
Never trains by itself: `trainer.loop` does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pipeline.config import dump_job, load_job
from pipeline.errors import ConfigError, Problem
from pipeline.run_folder import RunFolder

if TYPE_CHECKING:
    from pipeline.config_job import Job
    from trainer.record import Progress, Summary

_LINE_EVERY_S = 5.0
"""Seconds between progress lines where there is no terminal. A log of a day then has 17,000 lines; chosen."""


def train(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME if not given.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; the job's number if not given.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field, as in optimizer.lr=0.01.")] = None,
) -> None:
    """Train a job's model on augmented batches, and save it."""
    loaded = load_job(job, set_ or [])
    num_workers = loaded.config.workers if workers is None else workers
    with RunFolder.create(run_dir or Path("runs") / loaded.config.name, dump_job(loaded.config)) as folder:
        try:
            summary = _train(loaded, num_workers, folder, Console())
        except ConfigError:
            # Refused before its first step: the corrected command can use the same folder.
            folder.discard_if_unused()
            raise
        except KeyboardInterrupt:
            folder.discard_if_unused()
            left = f"; its record until now: {folder.path}" if folder.path.exists() else " before its first step"
            print(f"headrace: stopped{left}", file=sys.stderr)
            raise
    print_summary(summary, Console())


def _train(job: Job, num_workers: int, folder: RunFolder, console: Console) -> Summary:
    # Imported here, so that no other command waits for torch (1.5 s) or needs it.
    try:
        from headrace.embedded import open_streams
        from trainer.loop import train as train_job
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise _torch_is_missing() from error

    folder.write_recipe(job.train)
    if job.eval is not None:
        folder.write_recipe(job.eval)
    with open_streams(job, num_workers, folder) as streams:
        if console.is_terminal:
            with _bar(console) as bar:
                summary = train_job(job, streams, folder, _bar_updater(bar, streams.train.num_steps))
        else:
            summary = train_job(job, streams, folder, _line_printer(console, time.monotonic))
        if streams.num_bad_samples:
            text = f"{streams.num_bad_samples} bad samples were replaced by others; journal.jsonl names them"
            console.print(text, soft_wrap=True, highlight=False)
    return summary


def _bar(console: Console) -> Bar:
    return Bar(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(), console=console
    )


def _bar_updater(bar: Bar, num_steps: int) -> Callable[[Progress], None]:
    task = bar.add_task("waiting for the first batch", total=num_steps)

    def update(progress: Progress) -> None:
        bar.update(task, completed=progress.num_steps_done, description=describe_progress(progress))

    return update


def _line_printer(console: Console, now_s: Callable[[], float]) -> Callable[[Progress], None]:
    """Prints the first step, then a line every few seconds, then the last step."""
    printed_s = -_LINE_EVERY_S + now_s()

    def update(progress: Progress) -> None:
        nonlocal printed_s
        is_last = progress.num_steps_done == progress.num_steps
        if is_last or now_s() - printed_s >= _LINE_EVERY_S:
            printed_s = now_s()
            steps = f"step {progress.num_steps_done}/{progress.num_steps}"
            console.print(f"{steps}  {describe_progress(progress)}", soft_wrap=True, highlight=False)

    return update


def describe_progress(progress: Progress) -> str:
    """The numbers of one step, in at most 80 columns."""
    parts = [
        f"loss {progress.loss:.3f}",
        f"{progress.samples_per_s:.0f} samples/s",
        f"waited {100 * progress.waited_fraction:.0f} %",
    ]
    if progress.maybe_evaluation is not None:
        parts.append(f"held-out accuracy {100 * progress.maybe_evaluation.accuracy:.1f} %")
    return "  ".join(parts)


def print_summary(summary: Summary, console: Console) -> None:
    """A table of what the run came to, and one line that loads its model."""
    table = Table(title="Run finished", show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("steps", f"{summary.num_steps} ({summary.num_samples} samples)")
    if summary.skipped_steps:
        table.add_row("skipped steps", f"{summary.skipped_steps} (loss or gradient not finite; see journal.jsonl)")
    table.add_row("speed", f"{summary.samples_per_s:.0f} samples/s")
    table.add_row("time waited for data", f"{summary.waited_s:.1f} s ({100 * summary.waited_fraction:.0f} %)")
    table.add_row("final loss", f"{summary.final_loss:.4f}")
    if summary.held_out_accuracy is not None:
        table.add_row("held-out accuracy", f"{100 * summary.held_out_accuracy:.1f} %")
        table.add_row("held-out loss", f"{summary.held_out_loss:.4f}")
    table.add_row("run folder", str(summary.run_folder))
    console.print(table)
    console.print("Load the model:", highlight=False)
    load = f'from headrace import load_model; model = load_model("{summary.checkpoint}")'
    console.print(f"  {load}", soft_wrap=True, highlight=False, markup=False)


def _torch_is_missing() -> ConfigError:
    return ConfigError(
        Problem(
            file="headrace train",
            line=0,
            path="",
            expected="torch, which trains the model",
            got="no module of that name",
            way_out="pip install 'headrace[trainer]'",
        )
    )
