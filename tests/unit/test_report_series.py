"""What a page's curves and maps are read from: bounded in size, honest about extremes, and of the last attempt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.json_lines import encode_line
from trainer.report_layers import BACKWARD, UPDATE, LayerHistory, read_layers
from trainer.report_series import Extent, StepSeries, read_extent, read_series

NUM_STEPS = 1000


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(encode_line(record) for record in records))
    return path


def step_line(step: int, loss: float | str, *, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    return {"attempt": attempt, "step": step, "loss": loss, "num_samples": 4, **fields}


def series_of(path: Path, max_bins: int) -> StepSeries:
    extent = read_extent(path)
    assert extent is not None
    return read_series(path, extent, max_bins)


@pytest.mark.parametrize("max_bins", [1, 7, 64, 480, 5000])
def test_a_bin_has_the_extremes_and_the_mean_of_its_steps(max_bins: int, tmp_path: Path) -> None:
    """Each step is in exactly one bin, and there are never more bins than asked for."""
    losses = np.random.default_rng(0).standard_normal(NUM_STEPS)
    path = write(tmp_path / "metrics.jsonl", [step_line(step, loss) for step, loss in enumerate(losses.tolist())])

    series = series_of(path, max_bins)

    bins, width = series.bins["loss"], series.steps_per_bin
    parts = [losses[at : at + width] for at in range(0, NUM_STEPS, width)]
    assert len(parts) == len(bins.least) <= max_bins
    assert [part.min() for part in parts] == bins.least.tolist()
    assert [part.max() for part in parts] == bins.greatest.tolist()
    np.testing.assert_allclose([part.mean() for part in parts], bins.mean, atol=1e-12)
    assert NUM_STEPS == series.num_steps
    assert 4 * NUM_STEPS == series.num_samples
    np.testing.assert_allclose(losses[-20:].mean(), series.final_loss)


def test_what_is_not_finite_is_counted_and_moves_no_curve(tmp_path: Path) -> None:
    """NaN and infinity are told apart from what was never measured."""
    losses: list[Any] = [1.0, "nan", 3.0, "inf", None, "-inf"]
    lines = [step_line(step, loss, skipped=isinstance(loss, str)) for step, loss in enumerate(losses)]

    series = series_of(write(tmp_path / "metrics.jsonl", lines), 1)

    bins = series.bins["loss"]
    assert (1.0, 2.0, 3.0, 3) == (bins.least[0], bins.mean[0], bins.greatest[0], bins.num_nonfinite[0])
    assert [1, 3, 5] == series.skipped_steps
    assert 2.0 == series.final_loss


def test_of_a_step_done_again_only_the_last_attempt_counts(tmp_path: Path) -> None:
    """The first attempt got to step 7, the second went on from 5 and died at 6, the third went on from 3."""
    attempts = {1: range(8), 2: range(5, 7), 3: range(3, 6)}
    lines = [step_line(step, float(attempt), attempt=attempt) for attempt, steps in attempts.items() for step in steps]

    series = series_of(write(tmp_path / "metrics.jsonl", lines), 100)

    assert [1.0, 1.0, 1.0, 3.0, 3.0, 3.0] == series.bins["loss"].mean.tolist()
    assert (0, 5) == (series.extent.first_step, series.extent.last_step)
    assert {1: 0, 2: 5, 3: 3} == series.extent.attempts


def test_a_file_without_lines_has_no_extent(tmp_path: Path) -> None:
    assert None is read_extent(tmp_path / "metrics.jsonl")


def test_a_run_that_goes_on_is_read_up_to_where_it_was(tmp_path: Path) -> None:
    """Between the two passes over the file, lines come."""
    path = write(tmp_path / "metrics.jsonl", [step_line(step, 1.0) for step in range(5)])
    extent = read_extent(path)
    assert extent is not None
    write(path, [step_line(step, 1.0) for step in range(9)])

    assert 5 == read_series(path, extent).num_steps


def layer_line(step: int, delta_rms: list[Any], **fields: Any) -> dict[str, Any]:
    names = [f"layer{number}" for number in range(len(delta_rms))]
    ones = [1.0] * len(names)
    columns = {"name": names, "delta_rms": delta_rms, "sample_std": ones, "update_norm": ones, "weight_norm": ones}
    return {"attempt": 1, "step": step, "was_skipped": False, "layers": columns, **fields}


def layers_of(path: Path, last_step: int, max_columns: int = 400) -> LayerHistory:
    extent = Extent(first_step=0, last_step=last_step, attempts={1: 0}, ends={1: math.inf})
    layers = read_layers(path, extent, max_columns)
    assert layers is not None
    return layers


def test_a_map_holds_each_sample_until_the_next(tmp_path: Path) -> None:
    path = write(tmp_path / "layers.jsonl", [layer_line(0, [1e-2, 1e-3]), layer_line(4, [1e-4, 1e-5])])

    log10_LT = layers_of(path, 5).maps[BACKWARD].log10_LT

    np.testing.assert_allclose([[-2, -2, -2, -2, -4, -4], [-3, -3, -3, -3, -5, -5]], log10_LT)


def test_a_map_has_a_bounded_number_of_columns(tmp_path: Path) -> None:
    """A column has the mean of the decades of its samples, so one outlier can't hide the others."""
    lines = [layer_line(step, [10.0 ** -(step % 2)]) for step in range(NUM_STEPS)]

    log10_LT = layers_of(write(tmp_path / "layers.jsonl", lines), NUM_STEPS - 1, 10).maps[BACKWARD].log10_LT

    np.testing.assert_allclose([[-0.5] * 10], log10_LT)


def test_dead_infinite_and_missing_are_three_things(tmp_path: Path) -> None:
    path = write(tmp_path / "layers.jsonl", [layer_line(0, [0.0, "inf", None, 1.0])])

    shown = layers_of(path, 0).maps[BACKWARD]

    assert [True, False, False, False] == shown.is_zero_LT[:, 0].tolist()
    assert [False, True, False, False] == shown.is_nonfinite_LT[:, 0].tolist()
    assert [True, True, True, False] == np.isnan(shown.log10_LT[:, 0]).tolist()


def test_profiles_are_of_the_first_middle_and_last_sampled_step(tmp_path: Path) -> None:
    """A skipped step has no update, so it stands only where there is no other."""
    lines = [layer_line(step, [1.0]) for step in (0, 1, 40, 60, 90)]
    lines += [layer_line(step, [1.0], was_skipped=True) for step in (50, 99)]

    layers = layers_of(write(tmp_path / "layers.jsonl", sorted(lines, key=lambda line: line["step"])), 99)

    assert [0, 40, 90] == [sample.step for sample in layers.profiles]
    assert 7 == layers.num_samples


def test_a_weight_of_zero_has_no_update_ratio(tmp_path: Path) -> None:
    line = layer_line(0, [1.0, 1.0])
    line["layers"]["weight_norm"] = [2.0, 0.0]

    layers = layers_of(write(tmp_path / "layers.jsonl", [line]), 0)

    np.testing.assert_equal([0.5, math.nan], layers.first.quantity(UPDATE))
