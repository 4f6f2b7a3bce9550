"""A command that makes samples runs as workers do: with the kernels that they have.

In:  the name of the command that runs.
Out: the same command again, in the environment of a worker, unless it is in that already.
"""

from __future__ import annotations

import os
import sys


def run_as_workers_do(command: str) -> None:
    """Starts this command again in the environment of a worker, unless it runs in that.

    NumPy chooses its kernels while it is imported, which has happened long before this is reached; with others than a
    worker's, some transforms make other bytes, and a sound batch would be called changed.
    """
    from workers.environment import worker_environment

    wanted = worker_environment()
    is_this_command = sys.argv[1:2] == [command]  # and not a test or a notebook that calls the function
    if is_this_command and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})
