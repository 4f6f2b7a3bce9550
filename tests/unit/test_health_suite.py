"""A smoke part of the calibration: healthy trainings raise no alarm, faults are named in time, printed fixes clear.

`headrace calibrate` trains all cases with several seeds; this is one seed, one thread, digits only. A faulty training
ends with its verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from trainer.batch import Batch
from trainer.health.fixes import FIXES
from trainer.health.records import Severity
from trainer.health.suite import Case, Material, Outcome, digits, gathered, one_thread, watch
from trainer.health.suite_cures import CURES, NO_CURE, OWN_CURES, Cure, cured, cures_of
from trainer.health.suite_faulty import QUICK_CURES, faulty
from trainer.health.suite_healthy import QUICK, healthy
from trainer.health.suite_spoils import NUM_BAD

FAULTS = [case for case in faulty() if case.data == "digits"]
_outcomes: dict[str, Outcome] = {}


@pytest.fixture(scope="module")
def material() -> Iterator[Material]:
    pytest.importorskip("sklearn")
    with one_thread():
        yield digits()


def named(name: str) -> Case:
    (case,) = [case for case in (*healthy(), *faulty()) if case.name == name]
    return case


def outcome_of(case: Case, material: Material) -> Outcome:
    """Trained once for all tests that ask."""
    if case.name not in _outcomes:
        _outcomes[case.name] = watch(case, 0, material, stops=True)
    return _outcomes[case.name]


@pytest.mark.parametrize("name", [case.name for case in healthy() if case.name in QUICK and case.data == "digits"])
def test_a_healthy_training_raises_no_alarm(name: str, material: Material) -> None:
    outcome = watch(named(name), 0, material)

    assert [] == [str(verdict) for verdict in outcome.alarms]
    assert outcome.has_learned, "or its silence says nothing"


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_a_fault_is_named_by_its_detector_in_time(case: Case, material: Material) -> None:
    outcome = outcome_of(case, material)

    assert outcome.detection is not None, [str(verdict) for verdict in outcome.verdicts]
    assert outcome.is_in_time, outcome.delay
    assert outcome.detection.severity >= Severity.WARN
    key = f"{outcome.detection.id}/{outcome.detection.kind}"
    assert cures_of(case, outcome.detection) or key in NO_CURE


@pytest.mark.parametrize(
    "name",
    [
        "head x30",
        "clip 1e-6",
        "detached layer",
        "optimizer state lost",
        "NaN in samples",
        "fp16 overflow",
        "mlp 3x64 relu he adamw",
    ],
)
def test_a_fault_is_named_in_time_where_one_step_in_twenty_is_measured(name: str, material: Material) -> None:
    """`auto` chooses such intervals for small models: what is said of steps must not wait for twenty times as many."""
    case = named(name)
    outcome = watch(case, 0, material, stops=True, light_every=20)

    assert bool(outcome.alarms) == bool(case.expected)
    assert outcome.is_in_time == bool(case.expected)


@pytest.mark.parametrize("name", QUICK_CURES)
def test_the_printed_fix_clears_the_fault(name: str, material: Material) -> None:
    case = named(name)
    verdict = outcome_of(case, material).detection
    assert verdict is not None

    for cure in cures_of(case, verdict):
        result = cured(case, verdict, cure, 0, material)
        assert result.is_clear, (cure.name, verdict.fix)
        assert result.others == ()
        assert result.has_learned


def test_a_fix_that_is_not_applied_clears_nothing(material: Material) -> None:
    """The control: a cure that changes nothing is told from one that does."""
    case = named("zero init")
    verdict = outcome_of(case, material).detection
    assert verdict is not None
    idle = Cure(name="nothing", apply=lambda case, verdict: replace(case, num_steps=10))

    assert not cured(case, verdict, idle, 0, material).is_clear


def test_a_fix_that_silences_the_fault_and_ruins_the_run_is_told_from_one_that_mends_it(material: Material) -> None:
    """Without a clip nothing is clipped too hard; at a rate of nearly zero nothing is learned either."""
    case = named("clip 1e-6")
    verdict = outcome_of(case, material).detection
    assert verdict is not None
    ruin = Cure(name="ruin", apply=lambda case, verdict: replace(case, clip={}, lr=1e-9, num_steps=150))
    result = cured(case, verdict, ruin, 0, material)

    assert result.is_clear
    assert result.others == ("UPDATE_RATIO/small",)
    assert not result.has_learned


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("inf in a weight", "3.weight"),
        ("weight not in optimizer", "3.weight"),
        ("detached layer", "first.weight"),
        ("dead relus by bias", "3"),
    ],
)
def test_a_verdict_points_at_the_place_of_the_fault(name: str, place: str, material: Material) -> None:
    detection = outcome_of(named(name), material).detection

    assert detection is not None
    assert place in detection.layers


def test_a_nan_is_traced_to_samples_that_have_one(material: Material) -> None:
    detection = outcome_of(named("NaN in samples"), material).detection

    assert detection is not None
    samples = detection.traces[0]["worst_samples"]
    assert samples
    assert all(int(sample["id"]) < NUM_BAD for sample in samples if sample["loss"] == "nan")
    assert samples[0]["loss"] == "nan"


def test_the_suite_is_as_large_as_promised() -> None:
    """14 healthy configurations on digits and on a stream, 300 steps or more; 20 faults; every name once."""
    names = [case.name for case in (*healthy(), *faulty())]

    assert len(set(names)) == len(names)
    assert {"digits", "stream"} == {case.data for case in healthy()}
    assert len(healthy()) >= 14
    assert min(case.num_steps for case in healthy()) >= 300
    assert len(faulty()) >= 20
    assert set(QUICK) | set(QUICK_CURES) <= set(names)
    assert set(OWN_CURES) <= set(names)


def test_every_cure_is_for_a_sentence_that_is_printed() -> None:
    kinds = {f"{name}/{kind}" for name, texts in FIXES.items() for kind in texts}

    assert set(CURES) | set(NO_CURE) <= kinds
    assert set(CURES) & set(NO_CURE) == set()


def batch(step: int, *labels: int) -> Batch:
    """Images filled with their labels."""
    values = torch.tensor(labels)
    return Batch(
        step=step,
        epoch=0,
        start=2 * step,
        stop=2 * step + 2,
        recipe="",
        digest="",
        images=values.float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4),
        labels=values,
        sample_ids=values,
    )


def test_gathered_batches_stand_in_the_order_of_the_stream() -> None:
    material = gathered(iter([batch(0, 1, 2), batch(1, 3, 4), batch(2, 5, 6)]), 2, 7)

    assert [1, 2, 3, 4] == material.labels_N.tolist()
    assert material.images_NCHW.shape == (4, 3, 4, 4)
    assert torch.equal(material.images_NCHW[:, 0, 0, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert material.is_stream
