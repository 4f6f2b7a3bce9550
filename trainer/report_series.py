"""The steps of a run as curves: metrics.jsonl read as a stream, into a bounded number of bins.

In:  metrics.jsonl, of any length, of any number of attempts.
Out: `Extent`: which lines still count; `StepSeries`: least, mean and greatest of each quantity in each bin.
Never holds more than a few thousand lines, never hides a value: what is not finite is counted, and a bin's extremes
stay as they were.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.json_lines import iter_lines

MAX_BINS = 480
"""Two pixels of a wide page a bin; runs of fewer steps are drawn step by step."""
NUM_FINAL_STEPS = 20
"""Steps taken that the final loss is a mean over, as in the run's own summary."""
MAX_LISTED = 500
"""Skipped steps that are remembered one by one, for marks; all are counted."""
_CHUNK = 8192

_FIELDS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "loss": lambda line: number(line.get("loss")),
    "grad_norm": lambda line: number(line.get("grad_norm")),
    "clipped_norm": lambda line: number(line.get("clipped_norm")),
    "lr": lambda line: number(line.get("lr")),
    "clipped": lambda line: number(line.get("clipped")),
    "accuracy": lambda line: _accuracy(line),
}


def number(value: object) -> float:
    """A number of a run's files: NaN for what was not measured, infinity for whatever is not finite."""
    if value is None:
        return math.nan
    try:
        read = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return read if math.isfinite(read) else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The steps of a run, and which attempt's lines of them count: a later attempt did the steps from its first on
    once more, so what earlier ones wrote of those is not what the run became."""

    first_step: int
    last_step: int
    attempts: Mapping[int, int]
    """Attempt -> its first step that has a line."""
    ends: Mapping[int, float]
    """Attempt -> the first step that a later attempt did again; infinity for the last one."""

    def counts(self, attempt: int, step: int) -> bool:
        """True for the last line of a step."""
        return step < self.ends.get(attempt, math.inf)


def read_extent(path: Path) -> Extent | None:
    """One pass over the file; None if no step was recorded."""
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    for line in iter_lines(path):
        attempt, step = line["attempt"], line["step"]
        if attempt not in firsts:
            firsts[attempt] = step
        lasts[attempt] = step
    if not firsts:
        return None
    ends, end = {}, math.inf
    for attempt in sorted(firsts, reverse=True):
        ends[attempt] = end
        end = min(end, firsts[attempt])
    kept = [attempt for attempt in firsts if firsts[attempt] < ends[attempt]]
    last = max(int(min(lasts[attempt], ends[attempt] - 1)) for attempt in kept)
    return Extent(
        first_step=min(firsts[attempt] for attempt in kept),
        last_step=last,
        attempts={attempt: firsts[attempt] for attempt in sorted(firsts)},
        ends=ends,
    )


@dataclass(slots=True)
class Bins:
    """One quantity: of each bin the least, the mean and the greatest finite value, and how many were not finite."""

    num_bins: int
    least: np.ndarray = field(init=False)
    greatest: np.ndarray = field(init=False)
    num_nonfinite: np.ndarray = field(init=False)
    _total: np.ndarray = field(init=False)
    _count: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.least = np.full(self.num_bins, np.inf)
        self.greatest = np.full(self.num_bins, -np.inf)
        self.num_nonfinite = np.zeros(self.num_bins, dtype=np.int64)
        self._total = np.zeros(self.num_bins)
        self._count = np.zeros(self.num_bins, dtype=np.int64)

    @property
    def mean(self) -> np.ndarray:
        """NaN for a bin without a finite value."""
        mean = np.full(self.num_bins, np.nan)
        np.divide(self._total, self._count, out=mean, where=self._count > 0)
        return mean

    @property
    def is_empty(self) -> bool:
        """Nothing was measured, not even something that is not finite."""
        return not self._count.any() and not self.num_nonfinite.any()

    def add(self, bins_N: np.ndarray, values_N: np.ndarray) -> None:
        """NaN: not measured; infinity: measured, and not finite."""
        is_finite = np.isfinite(values_N)
        np.add.at(self.num_nonfinite, bins_N[np.isinf(values_N)], 1)
        bins_N, values_N = bins_N[is_finite], values_N[is_finite]
        np.minimum.at(self.least, bins_N, values_N)
        np.maximum.at(self.greatest, bins_N, values_N)
        np.add.at(self._total, bins_N, values_N)
        np.add.at(self._count, bins_N, 1)


@dataclass(slots=True, kw_only=True)
class StepSeries:
    """All steps of a run, in bins of equal numbers of steps."""

    extent: Extent
    steps_per_bin: int
    bins: dict[str, Bins]
    num_steps: int = 0
    """Lines that count; fewer than the steps done if lines were lost."""
    num_samples: int = 0
    num_skipped: int = 0
    skipped_steps: list[int] = field(default_factory=list)
    last_losses: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_FINAL_STEPS))
    last_line: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> np.ndarray:
        """The middle of each bin."""
        first, width = self.extent.first_step, self.steps_per_bin
        return first + np.arange(len(self.bins["loss"].least)) * width + (width - 1) / 2

    @property
    def final_loss(self) -> float:
        """NaN if no step was taken."""
        return sum(self.last_losses) / len(self.last_losses) if self.last_losses else math.nan

    @property
    def clipped_share(self) -> float:
        """Of the steps that say; NaN if none does."""
        bins = self.bins["clipped"]
        count = int(bins._count.sum())
        return float(bins._total.sum()) / count if count else math.nan


def read_series(path: Path, extent: Extent, max_bins: int = MAX_BINS) -> StepSeries:
    """A second pass over the file: each step's last line, in its bin."""
    span = extent.last_step - extent.first_step + 1
    width = -(-span // max_bins)
    num_bins = -(-span // width)
    series = StepSeries(extent=extent, steps_per_bin=width, bins={name: Bins(num_bins) for name in _FIELDS})
    steps: list[int] = []
    columns: dict[str, list[float]] = {name: [] for name in _FIELDS}
    for line in _counted(path, extent):
        _count(series, line)
        steps.append(line["step"])
        for name, read in _FIELDS.items():
            columns[name].append(read(line))
        if len(steps) == _CHUNK:
            _add(series, steps, columns)
    _add(series, steps, columns)
    return series


def _counted(path: Path, extent: Extent) -> Iterator[dict[str, Any]]:
    for line in iter_lines(path):
        # A run that goes on writes lines after its extent was read; they are for the next page.
        if line["step"] <= extent.last_step and extent.counts(line["attempt"], line["step"]):
            yield line


def _count(series: StepSeries, line: dict[str, Any]) -> None:
    series.num_steps += 1
    series.num_samples += int(line.get("num_samples") or 0)
    series.last_line = line
    if line.get("skipped"):
        series.num_skipped += 1
        if len(series.skipped_steps) < MAX_LISTED:
            series.skipped_steps.append(line["step"])
    else:
        loss = number(line.get("loss"))
        if math.isfinite(loss):
            series.last_losses.append(loss)


def _add(series: StepSeries, steps: list[int], columns: dict[str, list[float]]) -> None:
    bins_N = (np.array(steps, dtype=np.int64) - series.extent.first_step) // series.steps_per_bin
    for name, values in columns.items():
        series.bins[name].add(bins_N, np.array(values, dtype=np.float64))
        values.clear()
    steps.clear()


def _accuracy(line: Mapping[str, Any]) -> float:
    num_correct, num_samples = line.get("num_correct"), line.get("num_samples")
    if not isinstance(num_correct, int | float) or not num_samples:
        return math.nan
    return number(num_correct / num_samples)
