"""A smoke part of the calibration: seeded faults are named by the right detector, healthy trainings raise no alarm.

`make calibrate` runs all cases with several seeds; this is one seed, as many steps as a detector may take, one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from trainer.health.records import Severity
from trainer.health.suite import Case, Tensors, digits, watch
from trainer.health.suite_cases import faulty, healthy

SMOKE = (
    "mlp 3x64 relu he adamw",
    "mlp 3x64 relu default adam",
    "mlp 20x64 relu he sgd 1e-3",
    "mlp 6x64 tanh xavier adamw",
    "cnn 3x8 relu he sgd .05 clip 1",
    "a user's own model",
)


@pytest.fixture(scope="module")
def data() -> Iterator[Tensors]:
    pytest.importorskip("sklearn")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield digits()
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("case", [case for case in healthy() if case.name in SMOKE], ids=lambda case: case.name)
def test_a_healthy_training_raises_no_alarm(case: Case, data: Tensors) -> None:
    outcome = watch(case, 0, data)

    assert [] == [str(verdict) for verdict in outcome.alarms]
    assert outcome.losses[-1] < 0.5 * outcome.losses[0], "it must have learned, or its silence says nothing"


@pytest.mark.parametrize("case", faulty(), ids=lambda case: case.name)
def test_a_fault_is_named_by_its_detector_in_time(case: Case, data: Tensors) -> None:
    outcome = watch(replace(case, num_steps=case.within + 2), 0, data)

    found = outcome.detection
    assert found is not None, [str(verdict) for verdict in outcome.verdicts]
    assert found.first_step <= case.within
    assert found.severity >= Severity.WARN
    assert found.fix


def test_every_smoke_case_exists() -> None:
    assert set(SMOKE) <= {case.name for case in healthy()}
