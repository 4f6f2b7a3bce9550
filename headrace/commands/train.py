"""`headrace train`: a job from its file to a saved model.

In:  a job file, and options that override it; or the folder of a run to go on with.
Out: a run folder; on the terminal a progress bar (plain lines where there is none) and a summary.
Never trains by itself: `trainer.loop` does.
"""

from __future__ import annotations

import shlex
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
from rich.text import Text

from headrace.beginning import Beginning, begin_new, begin_resumed, begin_with_timeline
from headrace.signals import OPERATOR, StopOnSignals, stopping_on_signals
from headrace.try_fix import DEFAULT_STEPS, require_try_alone
from headrace.try_fix import try_fix as try_fix_
from pipeline.bad_count import replaced_text
from pipeline.config import load_job
from pipeline.errors import (
    EXIT_INTERRUPTED,
    EXIT_PEER_UNREACHABLE,
    EXIT_STOPPED_RESUMABLE,
    EXIT_USER_INPUT,
    ConfigError,
    HeadraceError,
    Problem,
    RunFailed,
    Stopped,
)
from pipeline.extras import TRAINER, WORKERS, require_extras
from pipeline.factory import factory_place
from pipeline.going_on import going_on_with, note_asked_for
from pipeline.job import JobConfig, initial_workers
from pipeline.run_end import note_failure, note_finished, note_stop
from pipeline.run_folder import RunFolder
from pipeline.run_history import kept_chain
from trainer.stopping import StopNow, StopRequest

if TYPE_CHECKING:
    from pipeline.config_job import Job
    from trainer.record import Progress, Summary

_LINE_EVERY_S = 5.0
"""Seconds between progress lines where there is no terminal. A log of a day then has 17,000 lines; chosen."""


def train(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest good checkpoint.")] = False,
    from_step: Annotated[
        int | None, typer.Option("--from", min=0, metavar="STEP", help="Go back to the checkpoint of this step.")
    ] = None,
    branch: Annotated[bool, typer.Option("--branch", help="With --from: keep what came later in branch-K/.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume though the job has other training settings now.")
    ] = False,
    workers: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Worker processes; the job's number if not given.")
    ] = None,
    connect: Annotated[
        str | None, typer.Option(metavar="E", help="A standing dispatcher's endpoint; private services if not given.")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new run with the swaps of an earlier one's timeline.jsonl.")
    ] = None,
    try_fix: Annotated[
        bool, typer.Option("--try-fix", help="Save nothing: the first steps, as they are and with what is recommended.")
    ] = False,
    try_steps: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="With --try-fix: how many steps; 30 if not given.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field, as in optimizer.lr=0.01.")] = None,
) -> None:
    """Train a job's model on augmented batches, and save it."""
    require_extras("headrace train", *([TRAINER] if connect else [WORKERS, TRAINER]))
    overrides = [*(set_ or []), *_workers_override(workers)]
    saving = {"--run-dir": run_dir, "--resume": resume, "--from": from_step is not None, "--branch": branch}
    saving |= {"--accept-changes": accept_changes, "--timeline": timeline}
    require_try_alone(try_fix, needing={"--try-steps": try_steps is not None}, without=saving)
    if try_fix:
        try_fix_(job, overrides, num_steps=try_steps or DEFAULT_STEPS, connect=connect, console=Console())
        return
    _require_sense(resume, from_step, branch=branch, accept_changes=accept_changes, timeline=timeline)

    def folder_of(config: JobConfig) -> Path:
        return run_dir or Path("runs") / config.name

    loaded = load_job(job, overrides, (lambda config, file: kept_chain(folder_of(config), file)) if resume else None)
    path = folder_of(loaded.config)
    console, stop = Console(), StopRequest()
    with stopping_on_signals(stop, loaded.config.checkpoint.grace_s) as signals:
        if resume:
            begun = begin_resumed(loaded, path, from_step=from_step, is_branch=branch, accept_changes=accept_changes)
        else:
            begun = begin_with_timeline(loaded, path, timeline) if timeline else begin_new(loaded, path)
        go_on = going_on_with(job, path, set_ or [], connect)
        note_asked_for(begun.folder, job, set_ or [], connect)
        summary = _train_in_folder(begun.job, begun, connect, stop, signals, go_on, console)
    if summary is None:
        return
    if summary.stopped_by:
        raise Stopped(
            f"stopped by {summary.stopped_by} after step {summary.num_steps} of {summary.planned_steps}, "
            f"with {summary.checkpoint}\n  to go on: {go_on}"
        )
    print_summary(summary, console, factory_place(begun.job))


def _train_in_folder(
    job: Job,
    begun: Beginning,
    connect: str | None,
    stop: StopRequest,
    signals: StopOnSignals,
    go_on: str,
    console: Console,
) -> Summary | None:
    """None if the run was finished before."""
    with begun.folder as folder:
        for note in begun.notes:
            console.print(note, soft_wrap=True, highlight=False, markup=False)
        for warning in begun.warnings:
            print(f"headrace: warning: {warning}", file=sys.stderr)
        if begun.is_finished:
            console.print(f"it is finished already; to go on, raise train.epochs (now {job.config.train.epochs})")
            note_finished(folder, begun.start.head_step)  # this attempt's word, too
            return None

        def leave() -> int:
            code, text = _end_interrupted(folder, stop, _num_steps_done(begun), go_on)
            print(f"headrace: {text}", file=sys.stderr, flush=True)
            return code

        try:
            with signals.leaving_at_once(leave):
                _import_torch()
            summary = _train(job, begun, connect, stop, signals, console)
            if job.config.health.report and not summary.stopped_by:
                _write_report(folder.path, job.path.absolute().parent, console)
            return summary
        except KeyboardInterrupt as error:
            if signals.is_over and not stop.is_requested:
                print(f"headrace: interrupted after the run's end: {folder.path} has all of it", file=sys.stderr)
                raise
            code, text = _end_interrupted(folder, stop, _num_steps_done(begun), go_on)
            if code == EXIT_STOPPED_RESUMABLE and (isinstance(error, StopNow) or not stop.has_begun):
                raise Stopped(text) from None
            if code == EXIT_STOPPED_RESUMABLE:  # a second signal, in the middle of a step
                text = f"stopped; its record until now: {folder.path}\n  to go on: {go_on}"
            print(f"headrace: {text}", file=sys.stderr)
            raise
        except BaseException as error:
            if isinstance(error, HeadraceError) and error.exit_code in (EXIT_USER_INPUT, EXIT_PEER_UNREACHABLE):
                # If before its first step, the same or the corrected command can use the same folder.
                folder.discard_if_unused()
            note_failure(folder, error, _num_steps_done(begun))
            raise


def _end_interrupted(folder: RunFolder, stop: StopRequest, num_steps_done: int, go_on: str) -> tuple[int, str]:
    """Removes the folder of a run without a step, or journals why it ended; exit code, and what to tell."""
    if stop.why != OPERATOR:  # who was promised a run to go on with finds one, also before its first step
        folder.discard_if_unused()
    if not folder.path.exists():
        return EXIT_INTERRUPTED, "stopped before its first step"
    note_stop(folder, stop.why, num_steps_done)
    return EXIT_STOPPED_RESUMABLE, f"stopped by {stop.why} before its next step\n  to go on: {go_on}"


def _import_torch() -> None:
    """Here, so that wrong input is told without waiting for it (1.5 s and more)."""
    import trainer.loop  # noqa: F401


def _num_steps_done(begun: Beginning) -> int:
    return begun.folder.num_steps_done or begun.start.head_step


def _train(
    job: Job, begun: Beginning, connect: str | None, stop: StopRequest, signals: StopOnSignals, console: Console
) -> Summary:
    from headrace.embedded import open_streams
    from trainer.loop import train as train_job

    num_workers, automatic = initial_workers(job.config)
    folder = begun.folder

    def tell(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    with open_streams(
        job,
        num_workers,
        folder,
        connect=connect,
        start=begun.start,
        automatic=automatic,
        on_stop=signals.ask,
        tell=tell,
    ) as streams:
        if console.is_terminal:
            with _bar(console) as bar:
                update = _bar_updater(bar, begun.start.head_step, streams.train.num_steps)
                summary = train_job(job, streams, folder, update, begun.resumed, stop, tell)
        else:
            update = _line_printer(console, time.monotonic)
            summary = train_job(job, streams, folder, update, begun.resumed, stop, tell)
        signals.is_done()
        if bad := streams.bad_samples.num:
            text = f"bad samples: {replaced_text(bad, streams.bad_samples.num_met)}; journal.jsonl names them"
            console.print(text, soft_wrap=True, highlight=False)
    return summary


def _write_report(folder: Path, base: Path, console: Console) -> None:
    """The trained model is safe already: a report that fails is told, and no more."""
    from headrace.report_process import make_report

    again = f"headrace report {shlex.quote(str(folder))} tries again"
    try:
        text = f"report: {make_report(folder, base)}"
    except RunFailed as error:
        text = f"no report.html ({error}); {again}"
    except KeyboardInterrupt:
        text = f"no report.html (interrupted); {again}"
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _require_sense(
    resume: bool, from_step: int | None, *, branch: bool, accept_changes: bool, timeline: Path | None
) -> None:
    """Refuses options that mean nothing together."""
    wrong = [
        (branch and from_step is None, "--branch", "--from STEP beside it"),
        (from_step is not None and not resume, "--from", "--resume beside it"),
        (accept_changes and not resume, "--accept-changes", "--resume beside it"),
        (timeline is not None and resume, "--timeline", "a new run, without --resume"),
    ]
    problems = [
        Problem(
            file="command line",
            line=0,
            path=option,
            expected=expected,
            got="none" if "beside" in expected else "--resume",
            way_out=f"add {expected.removesuffix(' beside it')}" if "beside" in expected else "leave one of them out",
        )
        for is_wrong, option, expected in wrong
        if is_wrong
    ]
    if problems:
        raise ConfigError(problems)


def _workers_override(workers: str | None) -> list[str]:
    if workers is None:
        return []
    if workers != "auto" and not workers.isdecimal():
        expected = "a number of worker processes from 0, or auto"
        raise ConfigError(Problem(file="command line", line=0, path="--workers", expected=expected, got=workers))
    return [f"workers={workers}"]


def _bar(console: Console) -> Bar:
    return Bar(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(), console=console
    )


def _bar_updater(bar: Bar, first_step: int, num_steps: int) -> Callable[[Progress], None]:
    task = bar.add_task("waiting for the first batch", total=num_steps, completed=first_step)

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


def print_summary(summary: Summary, console: Console, factory: str = "") -> None:
    """A table of what the run came to, and one line that loads its model, made by the user's own `factory` if any."""
    table = Table(title="Run finished", show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("steps", f"{summary.num_steps} ({summary.num_samples} samples)")
    if summary.skipped_steps:
        table.add_row("skipped steps", f"{summary.skipped_steps} (loss or gradient not finite; see journal.jsonl)")
    if summary.first_step:
        table.add_row("of these, now", f"{summary.num_steps - summary.first_step}, from step {summary.first_step} on")
    table.add_row("speed", f"{summary.samples_per_s:.0f} samples/s")
    table.add_row("time waited for data", f"{summary.waited_s:.1f} s ({100 * summary.waited_fraction:.0f} %)")
    if summary.num_checkpoints:
        table.add_row("checkpoints", f"{summary.num_checkpoints}, which held training up for {summary.stall_s:.2f} s")
    table.add_row("final loss", f"{summary.final_loss:.4f}")
    if summary.held_out_accuracy is not None:
        table.add_row("held-out accuracy", f"{100 * summary.held_out_accuracy:.1f} %")
        table.add_row("held-out loss", f"{summary.held_out_loss:.4f}")
    if summary.gradients:
        table.add_row("gradients", Text(summary.gradients))  # names of layers are no markup
    table.add_row("run folder", str(summary.run_folder))
    console.print(table)
    if summary.num_open_verdicts:
        console.print("What is wrong with its gradients, and what mends it:", highlight=False)
        health = shlex.join(["headrace", "health", str(summary.run_folder)])
        console.print(f"  {health}", soft_wrap=True, highlight=False, markup=False)
    console.print("Load the model:", highlight=False)
    own = f', factory="{factory}"' if factory else ""
    load = f'from headrace import load_model; model = load_model("{summary.checkpoint}"{own})'
    console.print(f"  {load}", soft_wrap=True, highlight=False, markup=False)
