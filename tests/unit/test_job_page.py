"""docs/job.md is what the sections say."""

from __future__ import annotations

from pathlib import Path

from pipeline import job_page
from pipeline.job import JobConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "job.md"


def test_the_page_is_up_to_date() -> None:
    """If this fails: python -m pipeline.job_page > docs/job.md"""
    assert PAGE.read_text() == job_page.page()


def test_every_field_of_every_section_is_on_it() -> None:
    schema = JobConfig.model_json_schema()
    sections = [schema, *(each for each in schema["$defs"].values() if "properties" in each)]
    text = PAGE.read_text()
    missing = [name for section in sections for name in section["properties"] if f"| `{name}` |" not in text]
    assert missing == []
    undescribed = [line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    known = ("kind", "train", "decode", "checkpoint", "model", "optimizer", "schedule", "clip", "health")
    assert [line for line in undescribed if line.split("`")[1] not in known] == []
