"""The layers of a run over time: layers.jsonl read as a stream, into profiles and maps of a bounded size.

In:  layers.jsonl; which of its lines count.
Out: `LayerHistory`: the whole layers at the first, middle and last sampled step; per layer and column of time the mean
     of log10 of three quantities.
Holds one line and the maps, however many lines there are.

Shapes: L layers, T columns of time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.json_lines import iter_lines
from trainer.report_series import Extent, number

MAX_COLUMNS = 400
"""Of a map; a column has the mean of the samples in it."""

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
QUANTITIES = (FORWARD, BACKWARD, UPDATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSample:
    """Every layer in one sampled step, in the order of the forward pass."""

    step: int
    was_skipped: bool
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    """As in the file: name -> one value a layer."""

    def values(self, name: str) -> list[float]:
        """One number a layer; NaN where nothing was measured, infinity where it was not finite."""
        column = self.columns.get(name, ())
        return [number(value) for value in column] if len(column) == len(self.names) else [math.nan] * len(self.names)

    def quantity(self, name: str) -> list[float]:
        """One of `QUANTITIES` for each layer."""
        if name == FORWARD:
            return self.values("sample_std")
        if name == BACKWARD:
            # A sample's norm, which is what VANISH_BWD judges: in a healthy net it stays where image sizes change.
            pairs = zip(self.values("delta_rms"), self.values("num_units"), strict=True)
            return [rms * math.sqrt(units) if units >= 1.0 else rms for rms, units in pairs]
        pairs = zip(self.values("update_norm"), self.values("weight_norm"), strict=True)
        return [update / weight if weight > 0.0 and math.isfinite(weight) else math.nan for update, weight in pairs]


@dataclass(slots=True)
class Map:
    """One quantity over layers and time; each sample holds until the next one."""

    log10_LT: np.ndarray
    """Mean of log10 of the values above zero; NaN where there is none."""
    is_nonfinite_LT: np.ndarray
    is_zero_LT: np.ndarray
    """All values are exactly zero: dead, or frozen."""


@dataclass(slots=True, kw_only=True)
class LayerHistory:
    """What layers.jsonl holds, in a size that a page can have."""

    names: tuple[str, ...]
    num_samples: int
    first: LayerSample
    middle: LayerSample
    last: LayerSample
    maps: dict[str, Map]
    start_step: int
    """Left edge of the maps."""
    stop_step: int
    """Right edge."""

    @property
    def profiles(self) -> tuple[LayerSample, ...]:
        """First, middle and last; fewer where they are the same."""
        found = {sample.step: sample for sample in (self.first, self.middle, self.last)}
        return tuple(found[step] for step in sorted(found))


@dataclass(slots=True)
class _Sums:
    total_LT: np.ndarray
    count_LT: np.ndarray
    num_nonfinite_LT: np.ndarray
    num_zero_LT: np.ndarray

    @classmethod
    def of_shape(cls, num_layers: int, num_columns: int) -> _Sums:
        shape = (num_layers, num_columns)
        counts = (np.zeros(shape, dtype=np.int32) for _ in range(3))
        return cls(np.zeros(shape), *counts)

    def add(self, column: int, values_L: np.ndarray) -> None:
        is_above = np.isfinite(values_L) & (values_L > 0.0)
        self.total_LT[is_above, column] += np.log10(values_L[is_above])
        self.count_LT[:, column] += is_above
        self.num_nonfinite_LT[:, column] += np.isinf(values_L)
        self.num_zero_LT[:, column] += values_L == 0.0

    def as_map(self, holder_T: np.ndarray) -> Map:
        shape, count_LT = self.total_LT.shape, self.count_LT
        log10_LT = np.divide(self.total_LT, count_LT, out=np.full(shape, np.nan), where=count_LT > 0)
        is_zero_LT = (self.num_zero_LT > 0) & (count_LT == 0)
        return Map(log10_LT[:, holder_T], (self.num_nonfinite_LT > 0)[:, holder_T], is_zero_LT[:, holder_T])


@dataclass(slots=True)
class _Reading:
    """The state of one pass."""

    extent: Extent
    num_columns: int
    names: tuple[str, ...] = ()
    num_samples: int = 0
    picked: dict[str, LayerSample] = field(default_factory=dict)
    sums: dict[str, _Sums] = field(default_factory=dict)
    has_sample_T: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def add(self, sample: LayerSample) -> None:
        if not self.num_samples:
            self.names = sample.names
            self.sums = {name: _Sums.of_shape(len(self.names), self.num_columns) for name in QUANTITIES}
            self.has_sample_T = np.zeros(self.num_columns, dtype=bool)
        if sample.names != self.names:
            return  # a model of another shape: its layers have no place in this map
        self.num_samples += 1
        self._pick(sample)
        span = self.extent.last_step - self.extent.first_step + 1
        column = (sample.step - self.extent.first_step) * self.num_columns // span
        self.has_sample_T[column] = True
        for name in QUANTITIES:
            self.sums[name].add(column, np.array(sample.quantity(name), dtype=np.float64))

    def _pick(self, sample: LayerSample) -> None:
        middle = (self.extent.first_step + self.extent.last_step) / 2
        # A skipped step has no update, so its profile tells less; it stands only where there is no other.
        if "first" not in self.picked or (self.picked["first"].was_skipped and not sample.was_skipped):
            self.picked["first"] = sample
        if "last" not in self.picked or not sample.was_skipped or self.picked["last"].was_skipped:
            self.picked["last"] = sample
        known = self.picked.get("middle")
        if known is None or (sample.was_skipped, abs(sample.step - middle)) < (
            known.was_skipped,
            abs(known.step - middle),
        ):
            self.picked["middle"] = sample


def read_layers(path: Path, extent: Extent, max_columns: int = MAX_COLUMNS) -> LayerHistory | None:
    """One pass over the file; None if no step was sampled."""
    span = extent.last_step - extent.first_step + 1
    reading = _Reading(extent, min(span, max_columns))
    for sample in _samples(path, extent):
        reading.add(sample)
    if not reading.num_samples:
        return None
    holder_T = _holders(reading.has_sample_T)
    return LayerHistory(
        names=reading.names,
        num_samples=reading.num_samples,
        first=reading.picked["first"],
        middle=reading.picked["middle"],
        last=reading.picked["last"],
        maps={name: sums.as_map(holder_T) for name, sums in reading.sums.items()},
        start_step=extent.first_step,
        stop_step=extent.last_step + 1,
    )


def _holders(has_sample_T: np.ndarray) -> np.ndarray:
    """For each column, the column whose sample holds there: its own, the one before, or the first."""
    columns_T = np.where(has_sample_T, np.arange(len(has_sample_T)), -1)
    holder_T: np.ndarray = np.maximum.accumulate(columns_T)
    holder_T[holder_T < 0] = int(np.argmax(has_sample_T))
    return holder_T


def _samples(path: Path, extent: Extent) -> Iterator[LayerSample]:
    for line in iter_lines(path):
        step = line["step"]
        if extent.first_step <= step <= extent.last_step and extent.counts(line["attempt"], step):
            columns = line["layers"]
            if columns.get("name"):
                yield LayerSample(
                    step=step,
                    was_skipped=bool(line.get("was_skipped")),
                    names=tuple(columns["name"]),
                    columns=columns,
                )
