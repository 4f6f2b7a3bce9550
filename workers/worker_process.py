"""A worker process, as its pool sees it: what it must know, and how it begins.

In:  a pool's `WorkerConfig`.
Out: a process that works until its pool ends it.
Imports the worker only inside that process: a pool that loaded albumentations itself would start a second later and
weigh 100 MB more, for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.job import SourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """All a worker process needs to know."""

    name: str
    connect: str
    sources: Mapping[str, SourceConfig]
    plugins: tuple[str, ...]
    base: Path
    """The folder that plug-in names are relative to."""
    progress_path: Path
    trace_path: Path
    """Where the Python frames of a crash or hang are written."""


def run_worker(config: WorkerConfig) -> None:
    """What a worker process runs."""
    from workers.worker import run

    run(config)
