"""`headrace swap`: another chain for a job that is running.

In:  a chain file (or `--to previous`), maybe the step from which it is to hold.
Out: the boundary that the trainer chose; a bad chain is refused with its file and line, and the old one goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from headrace.operating import Connect, RunDir, Stream, find_target, wrong_arguments
from pipeline.errors import ConfigError
from pipeline.recipe import Chain


def swap(
    chain: Annotated[Path | None, typer.Argument(help="The chain file.", metavar="CHAIN.yaml")] = None,
    run_dir: RunDir = None,
    connect: Connect = None,
    stream: Stream = "",
    at: Annotated[int | None, typer.Option(min=0, help="The first step that uses it; as soon as possible.")] = None,
    to: Annotated[str | None, typer.Option(help="`previous`: the chain that made the batches before.")] = None,
) -> None:
    """Change the augmentation of a running job, from one batch on."""
    from pipeline.operator import ChainRefused, new_operation
    from pipeline.service_messages import AskSwap

    if to not in (None, "previous"):
        raise wrong_arguments("--to previous", f"--to {to}", "name a chain file to go to any other")
    if (chain is None) == (to is None):
        raise wrong_arguments("CHAIN.yaml, or --to previous", "neither" if chain is None else "both")
    wanted = _load(chain) if chain is not None else None
    target = find_target(run_dir, connect, stream)
    question = AskSwap(operation=new_operation(), stream=target.stream, chain=wanted, at_step=at)
    with target.operator() as operator:
        try:
            text = operator.done(question, _say_that_it_takes_long)
        except ChainRefused as error:
            typer.echo(error.text, err=True)
            raise _as_named(error, wanted, chain) from error
    typer.echo(text)


def _load(path: Path) -> Chain:
    """The chain, with its file named as the job names it: in another folder that runs, and edits of the file count."""
    from pipeline.config import load_chain
    from pipeline.config_paths import chain_path

    return msgspec.structs.replace(load_chain(path), file=chain_path(str(path), Path.cwd()))


def _as_named(error: ConfigError, wanted: Chain | None, path: Path | None) -> ConfigError:
    """The problems with the file as it was named here, so that they are those of `headrace check`."""
    if wanted is None or path is None:
        return error
    return ConfigError(
        replace(problem, file=str(path)) if problem.file == wanted.file else problem for problem in error.problems
    )


def _say_that_it_takes_long() -> None:
    typer.echo("waiting: the chain is tried on a worker before it is used", err=True)
