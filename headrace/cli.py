"""The command line: one subcommand a file of `headrace/commands/`.

In:  arguments.
Out: what the subcommand prints; errors as text on stderr, and an exit code of `pipeline.errors`.
"""

from __future__ import annotations

import errno
import importlib
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
_COMMANDS = (
    *("train", "status", "swap", "scale", "stop", "health", "check", "digest", "demo-data"),
    *("replay", "report", "lr", "bench", "study", "calibrate", "pipeline", "workers"),
)
"""Each is the function of the same name in its file of headrace/commands/."""
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
    """The command that was asked for, or all of them for whoever asks what there is: importing them takes a second."""
    # Imported here, not above: a Ctrl-C in the half second that it takes must end as quietly as any other.
    import typer

    app = typer.Typer(
        name="headrace",
        help="Feeds torch training jobs with augmented images: the same batches for any number of workers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_only_subcommands)
    asked_for = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in [asked_for] if asked_for in _COMMANDS else _COMMANDS:
        function = name.replace("-", "_")
        app.command(name)(getattr(importlib.import_module(f"headrace.commands.{function}"), function))
    return app


def _only_subcommands() -> None:
    """Without it, typer would take the name of a lone subcommand for that command's argument."""


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
