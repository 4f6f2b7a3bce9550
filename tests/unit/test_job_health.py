"""The job's `health` section: names are those of the detectors' table."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from pipeline.job import JobConfig
from pipeline.job_health import THRESHOLDS, HealthSection
from pipeline.suggestions import _paths
from trainer.health.detectors import DETECTORS
from trainer.health.fixes import FIXES


def test_the_names_are_those_of_the_table() -> None:
    assert {name: tuple(detector.thresholds) for name, detector in DETECTORS.items()} == THRESHOLDS


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"off": ["VANISH"]}, "a detector, such as VANISH_BWD"),
        ({"thresholds": {"CLIP.warn_rat": 0.7}}, "DETECTOR.threshold, such as CLIP.warn_rate"),
        ({"every_steps": 0}, "a number of steps from 1, or auto"),
        ({"every_steps": "often"}, "a number of steps from 1, or auto"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        HealthSection.model_validate(fields)


def test_a_setting_that_a_fix_names_is_one_that_a_job_has() -> None:
    """Or a user looks for it in vain. (`optimizer.state_dict()` is a call, not a setting.)"""
    texts = " ".join(text for kinds in FIXES.values() for text in kinds.values())
    named = set(re.findall(rf"\b(?:{'|'.join(JobConfig.model_fields)})\.\w+\b(?!\()", texts))

    assert "optimizer.eps" in named
    assert set() == named - set(_paths(JobConfig))
