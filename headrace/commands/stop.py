"""`headrace stop`: a run ends after its step and a checkpoint, and `headrace train --resume` goes on from there.

In:  a run folder, or a dispatcher's address and a stream's name.
Out: what the trainer answers. The run itself ends with exit code 4.
"""

from __future__ import annotations

import typer

from headrace.operating import Connect, RunDir, Stream, find_target
from pipeline.errors import PeerUnreachable


def stop(run_dir: RunDir = None, connect: Connect = None, stream: Stream = "") -> None:
    """Stop a running job so that it can be resumed."""
    from pipeline.operator import new_operation
    from pipeline.service_messages import AskStop

    target = find_target(run_dir, connect, stream)
    with target.operator() as operator:
        question = AskStop(operation=new_operation(), stream=target.stream)
        try:
            text = operator.done(question, lambda: typer.echo("waiting for the trainer", err=True))
        except PeerUnreachable as error:
            if not target.pid:
                raise
            way_out = f"without a dispatcher: `kill -TERM {target.pid}` stops the run so that it can be resumed"
            raise PeerUnreachable(f"{error}\n  {way_out}") from error
    typer.echo(text)
