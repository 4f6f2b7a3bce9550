"""The command line: one subcommand a file of `headrace/commands/`.

In:  arguments.
Out: what the subcommand prints; errors as text on stderr, and an exit code of `pipeline.errors`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

from headrace._house import own_house

with own_house():
    import typer

    from headrace.commands.check import check
    from headrace.commands.demo_data import demo_data
    from headrace.commands.digest import digest
    from headrace.commands.pipeline import pipeline
    from headrace.commands.train import train
    from headrace.commands.workers import workers
    from pipeline.errors import HeadraceError

app = typer.Typer(
    name="headrace",
    help="Feeds torch training jobs with augmented images: the same batches for any number of workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("check")(check)
app.command("digest")(digest)
app.command("demo-data")(demo_data)
app.command("pipeline")(pipeline)
app.command("workers")(workers)


def main() -> None:
    """Run a subcommand; ends the process with its exit code."""
    logging.basicConfig(
        level=os.environ.get("HEADRACE_LOG", "WARNING").upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with own_house():
            app()
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
