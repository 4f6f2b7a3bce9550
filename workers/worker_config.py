"""What a worker process must know: plain values, made by its pool.

In and out: nothing; imported by both sides, so it loads neither albumentations nor OpenCV.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.job import SourceConfig

REFUSAL = "refusal: "


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """All a worker process needs to know."""

    name: str
    pool: str
    connect: str
    sources: Mapping[str, SourceConfig]
    plugins: tuple[str, ...]
    base: Path
    """The folder that plug-in names are relative to."""
    progress_path: Path
    trace_path: Path
    """Where the Python frames of a crash or hang are written, or, after `REFUSAL`, why the worker could not begin."""
