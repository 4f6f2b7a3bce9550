"""A worker process, as its pool sees it: how it begins.

In:  a pool's `WorkerConfig`.
Out: a process that works until its pool ends it.
Imports the worker only inside that process: a pool that loaded albumentations itself would start a second later and
weigh 100 MB more, for nothing.
"""

from __future__ import annotations

from workers.worker_config import WorkerConfig


def run_worker(config: WorkerConfig) -> None:
    """What a worker process runs."""
    from workers.worker import run

    run(config)
