"""A worker process, as its pool sees it: how it begins, or why it can't.

In:  a pool's `WorkerConfig`.
Out: a process that works until its pool ends it.
Imports the worker only inside that process: a pool that loaded albumentations itself would start a second later and
weigh 100 MB more, for nothing.
"""

from __future__ import annotations

import sys

from pipeline.errors import EXIT_USER_INPUT, ConfigError
from pipeline.extras import WORKERS, importing_extras
from workers.worker_config import REFUSAL, WorkerConfig


def run_worker(config: WorkerConfig) -> None:
    """What a worker process runs; one whose libraries can't be imported leaves that as its refusal."""
    try:
        with importing_extras("a worker", WORKERS):
            from workers.worker import run
    except ConfigError as error:
        config.trace_path.write_text(f"{REFUSAL}{error}")
        sys.exit(EXIT_USER_INPUT)
    run(config)
