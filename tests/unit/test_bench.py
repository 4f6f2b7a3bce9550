"""The benchmark counts what it says, and puts each result on its own side of its target."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from headrace.bench_contenders import CONTENDERS, Measured
from headrace.bench_count import count
from headrace.bench_report import Row, cpu_costs, rates, rows
from headrace.bench_usage import Memory
from pipeline.recipe import Chain, ChainNode, Recipe
from pipeline.sources.protocol import RawSample


class Arrivals:
    """A clock that is moved by arrivals: batch i arrives at arrivals_s[i] and holds sizes[i] samples."""

    def __init__(self, arrivals_s: list[float], sizes: list[int]) -> None:
        self._arrivals = zip(arrivals_s, sizes, strict=True)
        self.now_s = 0.0

    def __iter__(self) -> Iterator[int]:
        for arrival_s, size in self._arrivals:
            self.now_s = arrival_s
            yield size

    def read_cpu(self) -> dict[str, float]:
        return {"workers": 2 * self.now_s, "trainer": 0.5 * self.now_s}


def counted(arrivals: Arrivals, *, ignore_s: float, count_s: float) -> tuple[int, float, dict[str, float]]:
    window = count(
        iter(arrivals), ignore_s=ignore_s, count_s=count_s, clock=lambda: arrivals.now_s, read_cpu=arrivals.read_cpu
    )
    return window.num_samples, window.wall_s, window.cpu_s


def test_a_window_opens_and_closes_with_an_arrival() -> None:
    """Counted from one arrival to another, a steady stream has its own rate, whatever the window's length."""
    every_second = Arrivals([float(i) for i in range(1, 20)], [10] * 19)
    assert (30, 3.0, {"workers": 6.0, "trainer": 1.5}) == counted(every_second, ignore_s=2.5, count_s=2.5)


def test_full_buffers_are_not_counted() -> None:
    """Eight batches that were made while another contender was measured arrive at once, at the beginning."""
    drained_first = Arrivals([0.0] * 8 + [1.0, 2.0, 3.0, 4.0], [64] * 8 + [64] * 4)
    assert 64.0 == counted(drained_first, ignore_s=1.0, count_s=3.0)[0] / 3.0


def measured(samples_per_s: float, **changes: object) -> Measured:
    values: dict[str, object] = {
        "samples_per_s": samples_per_s,
        "wall_s": 8.0,
        "cpu_s_per_1000": {"workers": 2.0},
        "cpu_share": {"dispatcher": 0.01},
        "worker_memory": [Memory(rss=90 << 20, pss=50 << 20, uss=30 << 20), Memory(rss=100 << 20, pss=1, uss=1)],
    }
    return Measured(**{**values, **changes})  # type: ignore[arg-type]


def one_round(ours: float, others: float) -> dict[str, Measured]:
    return {name: measured(ours if name == "headrace" else others) for name in CONTENDERS}


def row_of(found: list[Row], name: str) -> Row:
    (row,) = [row for row in found if row.name == name]
    return row


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that gets slower between rounds slows both; the ratio of the medians would be 1.5 here."""
    found = rows([one_round(200, 100), one_round(20, 10), one_round(150, 75)], reseed_us=8.0)
    for other in ("raw limit", "DataLoader"):
        row = row_of(found, f"pipeline / {other}")
        assert (2.0, 2.0, 2.0) == (row.value, row.low, row.high)


@pytest.mark.parametrize(("ours", "is_met"), [(93.0, True), (92.9, False)])
def test_a_ratio_meets_its_target_from_above(ours: float, is_met: bool) -> None:
    assert is_met == row_of(rows([one_round(ours, 100)], reseed_us=8.0), "pipeline / raw limit").is_met


@pytest.mark.parametrize(("reseed_us", "is_met"), [(11.9, True), (12.0, False)])
def test_a_cost_meets_its_target_from_below(reseed_us: float, is_met: bool) -> None:
    assert is_met == row_of(rows([one_round(1, 1)], reseed_us=reseed_us), "reseeding a sample").is_met


def test_memory_is_that_of_the_largest_worker() -> None:
    assert 104.8576 == row_of(rows([one_round(1, 1)], reseed_us=8.0), "largest worker's RSS").value


def test_rates_and_costs_are_medians_over_the_rounds() -> None:
    rounds = [one_round(rate, 100) for rate in (30, 10, 20)]
    assert (20, 10, 30) == rates(rounds)["headrace"]
    assert {"workers": 2.0} == cpu_costs(rounds)["headrace"]


class OneImage:
    """A source of one stored image."""

    classes = ("only",)
    fingerprint = "0" * 64

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> RawSample:
        return RawSample(self._encoded, 5)

    def describe(self, index: int) -> str:
        return "only"


@pytest.fixture
def photograph() -> bytes:
    import cv2

    ramp_HWC = np.arange(40 * 50 * 3, dtype=np.uint16).astype(np.uint8).reshape(40, 50, 3)
    return bytes(cv2.imencode(".png", ramp_HWC)[1])


def test_the_raw_limit_makes_the_tensors_that_the_pipeline_delivers(photograph: bytes) -> None:
    """A limit that left work out, or did other work, would be none. The chain has no random transform."""
    import torch

    from trainer.finish import Finisher
    from workers.chain import compile_chain
    from workers.chain_plain import PlainSamples
    from workers.decode import decode

    crop = ChainNode(name="CenterCrop", params={"height": 32, "width": 24})
    recipe = Recipe(
        chain=Chain(file="chain.yaml", nodes=(crop, ChainNode(name="Normalize"), ChainNode(name="ToTensorV2")))
    )
    plain_CHW, label = PlainSamples(recipe, OneImage(photograph))[0]
    compiled = compile_chain(recipe)
    wire_HWC = compiled.apply(decode(photograph, recipe.decode), 0, 0, 0)
    ours_CHW = Finisher(compiled.finish, torch.device("cpu"))(torch.from_numpy(wire_HWC)[None])[0]
    assert 5 == label
    assert (3, 32, 24) == tuple(plain_CHW.shape)
    assert torch.allclose(plain_CHW, ours_CHW, atol=1e-5)
