"""The command line: one subcommand a file of `headrace/commands/`.

In:  arguments.
Out: what the subcommand prints; errors as text on stderr, and an exit code of `pipeline.errors`.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from headrace._house import own_house

if TYPE_CHECKING:
    import typer

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_NO_DEFECT = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""What a disk or its owner refuses, and the text names: nobody needs a traceback for it."""


def main() -> None:
    """Run a subcommand; ends the process with its exit code."""
    _listen_for_signals()
    try:
        with own_house():
            _take_kernels_of_workers()
            _run()
    except KeyboardInterrupt:
        sys.exit(_exit_interrupted())
    except OSError as error:
        if error.errno not in _NO_DEFECT:
            raise
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(1)


def _take_kernels_of_workers() -> None:
    """Before any subcommand imports NumPy: what it makes in this process then has the bytes of workers' samples."""
    from headrace.worker_conditions import take_kernels_of_workers

    take_kernels_of_workers()


def _run() -> None:
    from pipeline.errors import HeadraceError

    try:
        logging.basicConfig(level=_log_level(), format="%(asctime)s %(name)s %(levelname)s %(message)s")
        _app()()
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _log_level() -> str:
    from pipeline.errors import ConfigError, Problem

    given = os.environ.get("HEADRACE_LOG") or "WARNING"
    if given.upper() not in _LOG_LEVELS:
        expected = f"one of {', '.join(_LOG_LEVELS)}"
        raise ConfigError(Problem(file="environment", line=0, path="HEADRACE_LOG", expected=expected, got=given))
    return given.upper()


def _exit_interrupted() -> int:
    with own_house():
        from pipeline.errors import EXIT_INTERRUPTED
    return EXIT_INTERRUPTED


def _app() -> typer.Typer:
    # Imported here, not above: a Ctrl-C in the half second that it takes must end as quietly as any other.
    import typer

    from headrace.commands.bench import bench
    from headrace.commands.calibrate import calibrate
    from headrace.commands.check import check
    from headrace.commands.demo_data import demo_data
    from headrace.commands.digest import digest
    from headrace.commands.health import health
    from headrace.commands.lr import lr
    from headrace.commands.pipeline import pipeline
    from headrace.commands.replay import replay
    from headrace.commands.report import report
    from headrace.commands.scale import scale
    from headrace.commands.status import status
    from headrace.commands.stop import stop
    from headrace.commands.study import study
    from headrace.commands.swap import swap
    from headrace.commands.train import train
    from headrace.commands.workers import workers

    app = typer.Typer(
        name="headrace",
        help="Feeds torch training jobs with augmented images: the same batches for any number of workers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("train")(train)
    app.command("status")(status)
    app.command("swap")(swap)
    app.command("scale")(scale)
    app.command("stop")(stop)
    app.command("health")(health)
    app.command("check")(check)
    app.command("digest")(digest)
    app.command("demo-data")(demo_data)
    app.command("replay")(replay)
    app.command("report")(report)
    app.command("lr")(lr)
    app.command("bench")(bench)
    app.command("study")(study)
    app.command("calibrate")(calibrate)
    app.command("pipeline")(pipeline)
    app.command("workers")(workers)
    return app


def _listen_for_signals() -> None:
    """SIGTERM and SIGALRM are as Ctrl-C; one that comes in a finalizer, where Python drops it, comes again.

    `headrace train` sets other handlers while it trains (headrace/signals.py); the standing services have theirs.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    report = sys.unraisablehook

    def interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            report(unraisable)

    sys.unraisablehook = interrupt_again


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
