"""`headrace status`: one screen of what is going on.

In:  a run folder, or a dispatcher's address.
Out: the job, its rate and what limits it, its timeline, pools and workers; of a run that is not going on, or whose
dispatcher does not answer, what its files say. `--json` has the same in full, for scripts.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from headrace.operating import Connect, RunDir, Stream, Target, find_target
from pipeline.errors import ConfigError, PeerUnreachable


def status(
    run_dir: RunDir = None,
    connect: Connect = None,
    stream: Stream = "",
    json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what a job or a service does now."""
    from headrace.run_summary import read_run, read_verdicts, summary_lines
    from headrace.status_screen import screen

    maybe_target = _target_or_none(run_dir, connect, stream)
    if maybe_target is None:
        assert run_dir is not None
        run = read_run(run_dir)
        _print_json(run) if json else _print_lines(summary_lines(run))
        return
    try:
        # As of a standing one: what the run's files say may come sooner than its dispatcher comes back.
        with replace(maybe_target, is_run=False).operator() as operator:
            seen = operator.status()
    except PeerUnreachable:
        if run_dir is None:
            raise
        run = msgspec.structs.replace(read_run(run_dir), is_running=True, ended=None)
        _print_json(run) if json else _print_lines([*summary_lines(run), *waiting_lines(run_dir, maybe_target)])
        return
    # Of a folder that was named here: none is opened by what a peer says of it.
    verdicts = read_verdicts(run_dir) if run_dir is not None else ()
    if json:
        _print_json({**msgspec.to_builtins(seen), "is_running": True, "verdicts": verdicts})
    else:
        _print_lines(screen(seen, maybe_target.stream, verdicts))


def waiting_lines(run_dir: Path, target: Target) -> list[Text]:
    """What a run has said of its services last, and how to end it without them."""
    from headrace.status_screen import brief, rows
    from pipeline.json_lines import iter_lines

    troubles = [
        line for line in iter_lines(run_dir / "journal.jsonl") if line["action"] in ("stall", "service_trouble")
    ]
    return rows(
        [
            ("dispatcher", f"no answer from {target.endpoint}"),
            *(("last note", brief(str(line.get("note", "")), 400)) for line in troubles[-1:]),
            ("to stop it", f"kill -TERM {target.pid}: it can be resumed then"),
        ]
    )


def _target_or_none(run_dir: Path | None, connect: str | None, stream: str) -> Target | None:
    """None for the folder of a run that is not going on."""
    try:
        return find_target(run_dir, connect, stream)
    except ConfigError:
        if run_dir is None or connect is not None or not (run_dir / "job.yaml").exists():
            raise
        return None


def _print_json(content: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")


def _print_lines(lines: list[Text]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(line)
