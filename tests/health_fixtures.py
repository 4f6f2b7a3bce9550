"""What tests of gradient health start from; imported by name, so that other tests do not wait for torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trainer.health.judge import Judge
from trainer.health.records import DeepStats, StepStats, VerdictEvent


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: more threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[StepStats | DeepStats]:
    """What the judge was given."""
    kept: list[StepStats | DeepStats] = []
    original = Judge.see

    def see(self: Judge, stats: StepStats | DeepStats) -> list[VerdictEvent]:
        kept.append(stats)
        return original(self, stats)

    monkeypatch.setattr(Judge, "see", see)
    return kept
