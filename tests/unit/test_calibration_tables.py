"""Calibration's tables: what falls short is said, and numbers are those of the records."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.calibration import CureRecord, Record
from headrace.calibration_tables import detectors_table, false_alarms_line, faults_table, shortfalls, tables


def healthy(seed: int = 0, **changes: Any) -> Record:
    fields: dict[str, Any] = {"name": "mlp", "data": "digits", "num_steps": 500, "expected": (), "within": 300}
    return Record(seed=seed, **{**fields, "alarms": (), "news": (), "has_learned": True, **changes})


def faulty(seed: int = 0, **changes: Any) -> Record:
    fields = {"name": "clip 1e-6", "expected": ("CLIP",), "within": 60, "named_by": "CLIP/aggressive", "delay": 49}
    return healthy(seed, **{**fields, **changes})


def cure(*, is_clear: bool, others: tuple[str, ...] = (), has_learned: bool = True) -> CureRecord:
    return CureRecord(name="threshold", is_clear=is_clear, others=others, has_learned=has_learned)


def test_nothing_falls_short_where_all_holds() -> None:
    assert shortfalls([healthy(), faulty(cures=(cure(is_clear=True),))]) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (healthy(alarms=("EXPLODE/spike",)), "healthy, but EXPLODE/spike"),
        (healthy(has_learned=False), "did not learn"),
        (faulty(named_by="", delay=None), "none of CLIP spoke in 500 steps"),
        (faulty(delay=61), "after 61 steps, allowed 60"),
        (faulty(cures=(cure(is_clear=False),)), "CLIP/aggressive: `threshold` did not clear it"),
        (faulty(cures=(cure(is_clear=True, others=("LOSS0",)),)), "`threshold` left LOSS0 open"),
        (faulty(cures=(cure(is_clear=True, has_learned=False),)), "`threshold` left it unable to learn"),
    ],
    ids=["false alarm", "no training", "missed", "late", "fix", "fix with another alarm", "fix that ruins"],
)
def test_what_falls_short_is_said_with_its_case_and_seed(record: Record, said: str) -> None:
    (line,) = shortfalls([record])

    assert said in line
    assert f"{record.name} (digits, seed 0)" in line


def test_a_fault_has_one_row_over_its_seeds() -> None:
    seeds = [
        faulty(0, cures=(cure(is_clear=True),)),
        faulty(1, delay=55, cures=(cure(is_clear=False),)),
        faulty(2, delay=70, cures=(cure(is_clear=True, others=("LOSS0",), has_learned=False),)),
        faulty(3, named_by="", delay=None),
    ]

    (row,) = faults_table(seeds).rows

    mended = "threshold 1/3 (did not clear it x1; left LOSS0 open x1; left it unable to learn x1)"
    assert row == ("clip 1e-6", "CLIP/aggressive", "2/4", "55 / 70", "60", mended)


def test_a_fault_without_a_claimed_cure_says_why() -> None:
    table = faults_table([faulty(named_by="NONFINITE", no_cure="names samples")])

    assert table.rows[0][-1] == "none claimed"
    assert table.notes == ("NONFINITE: no cure claimed, it names samples",)


def test_silence_is_given_the_bound_that_it_proves() -> None:
    """Nothing in 1,000 steps is fewer than 3 per 1,000 with 95 % confidence; an alarm is a rate of its own."""
    quiet = false_alarms_line([healthy(0), healthy(1)])

    assert "1 healthy trainings x 2 seeds, 1,000 steps: 0 false alarms, 0 per 1,000" in quiet
    assert "fewer than 3)" in quiet
    assert "1 false alarms, 1 per 1,000 steps." in false_alarms_line([healthy(0), healthy(1, alarms=("CLIP",))])


def test_a_detector_is_rated_by_the_faults_that_it_alone_may_name() -> None:
    shared = faulty(name="shared", expected=("CLIP", "EXPLODE"), delay=3, named_by="EXPLODE/growth")

    rows = {row[0]: row[1:] for row in detectors_table([healthy(), faulty(), shared]).rows}

    assert rows["CLIP"] == ("1/1 (100%)", "1", "49 / 49", "0")
    assert rows["EXPLODE"] == ("-", "1", "3 / 3", "0")


def test_text_and_markdown_have_the_same_cells() -> None:
    records = [healthy(), faulty(cures=(cure(is_clear=True),))]
    for table in tables(records):
        for row in table.rows:
            assert f"| {' | '.join(row)} |" in table.as_markdown()
            assert any(all(cell in line for cell in row) for line in table.as_text().splitlines())
