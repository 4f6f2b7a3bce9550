"""What the commands `pipeline` and `workers` share, whether they stand alone or belong to a job.

In:  whether there is a job; its runtime directory.
Out: lines for the user on stderr; a directory for small files, gone at the right moment.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.lifeline import is_cut
from pipeline.runtime_dir import RuntimeDir


def announce(command: str, *, is_standing: bool) -> Callable[[str], None]:
    """A function that says a line on stderr; a standing service also says what joins, dies, comes and goes."""
    if is_standing and "HEADRACE_LOG" not in os.environ:
        logging.getLogger("headrace").setLevel(logging.INFO)

    def say(text: str) -> None:
        print(f"headrace {command}: {text}", file=sys.stderr, flush=True)

    return say


@contextmanager
def private_directory(runtime_dir: Path | None, lifeline_fd: int | None, name: str = "") -> Iterator[Path]:
    """A directory of this service's own; `name`, short, sets it apart from others in a job's directory.

    A job's directory outlives a service that ends before its job: the others' sockets stand in it.
    """
    held = RuntimeDir(runtime_dir) if runtime_dir else RuntimeDir.create()
    own = held.path / name if name else held.path
    try:
        if name:
            shutil.rmtree(own, ignore_errors=True)  # what an earlier one left that was killed
            own.mkdir(mode=0o700)
        yield own
    finally:
        if runtime_dir is None or is_cut(lifeline_fd):
            held.remove()
        else:
            if name:
                shutil.rmtree(own, ignore_errors=True)
            held.release()
