"""A run's page made by a process of its own, for whoever has just trained.

In:  a run's folder.
Out: its report.html.
A process of its own: its samples must be made as workers make them (NumPy has chosen other kernels in a trainer), what
it needs of memory is given back, and if it dies, the training's end is not touched.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from headrace._house import house_command, house_environment
from pipeline.errors import RunFailed

TIMEOUT_S = 900.0
"""Of a page that takes seconds, and a minute or two for a run of a million steps; chosen, not measured."""


def make_report(folder: Path, base: Path = Path()) -> Path:
    """The folder's report.html is there, of the run as it is now; RunFailed with the reason if it can't be made."""
    command = house_command("headrace", "report", str(folder), "--base", str(base))
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=house_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{folder}: its page was not made within {TIMEOUT_S:g} s") from error
    except OSError as error:
        raise RunFailed(f"{folder}: its page was not made: {error}") from error
    if ended.returncode:
        told = ended.stderr.strip() or f"it ended with code {ended.returncode}"
        raise RunFailed(f"{folder}: its page was not made\n{told}")
    return folder / "report.html"
