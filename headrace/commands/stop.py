"""`headrace stop`: a run ends after its step and a checkpoint, and `headrace train --resume` goes on from there.

In:  a run folder, or a dispatcher's address and a stream's name.
Out: what the trainer answers. The run itself ends with exit code 4.
"""

from __future__ import annotations

import typer

from headrace.operating import Connect, RunDir, Stream, find_target


def stop(run_dir: RunDir = None, connect: Connect = None, stream: Stream = "") -> None:
    """Stop a running job so that it can be resumed."""
    from pipeline.operator import new_operation
    from pipeline.service_messages import AskStop

    target = find_target(run_dir, connect, stream)
    with target.operator() as operator:
        question = AskStop(operation=new_operation(), stream=target.stream)
        text = operator.done(question, lambda: typer.echo("waiting for the trainer", err=True))
    typer.echo(text)
