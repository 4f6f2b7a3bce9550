"""`headrace status`: one screen of what is going on.

In:  a run folder, or a dispatcher's address.
Out: the job, its rate and what limits it, its timeline, pools and workers; of a run that is not going on, what its
files say. `--json` has the same in full, for scripts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from headrace.operating import Connect, RunDir, Stream, Target, find_target
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.service_messages import Status


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
    with maybe_target.operator() as operator:
        seen = operator.status()
    verdicts = read_verdicts(run_dir or _folder_of(seen, maybe_target.stream))
    if json:
        _print_json({**msgspec.to_builtins(seen), "is_running": True, "verdicts": verdicts})
    else:
        _print_lines(screen(seen, maybe_target.stream, verdicts))


def _target_or_none(run_dir: Path | None, connect: str | None, stream: str) -> Target | None:
    """None for the folder of a run that is not going on."""
    try:
        return find_target(run_dir, connect, stream)
    except ConfigError:
        if run_dir is None or connect is not None or not (run_dir / "job.yaml").exists():
            raise
        return None


def _folder_of(seen: Status, stream: str) -> Path:
    """The folder of the one job that is shown in detail, which may be another machine's and then holds no verdicts."""
    from headrace.status_screen import is_meant

    folders = [each.report.run_folder for each in seen.streams if each.report and is_meant(each, stream)]
    return Path(folders[0]) if len(folders) == 1 and folders[0] else Path("/nonexistent")


def _print_json(content: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")


def _print_lines(lines: list[Text]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(line)
