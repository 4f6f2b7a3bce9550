"""Suggestions: who writes another library's word, or a key where it does not belong, is told ours and its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_job
from pipeline.errors import ConfigError, Problem
from pipeline.job import JobConfig
from pipeline.located import nearest
from pipeline.suggestions import OTHER_KEYS, OTHER_WORDS, meant_key
from tests.unit.test_config_check import GOOD_JOB

PLAIN = {
    "sources": {"digits": {"kind": "digits"}},
    "train": {"source": "digits", "chain": []},
}


def problems(tmp_path: Path, text: str) -> dict[str, Problem]:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_job(job)
    return {problem.path: problem for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("text", "path", "way_out"),
    [
        ("device: gpu", "device", "did you mean cuda?"),
        ("precision: 16", "precision", "did you mean fp16?"),
        ("model: {activation: Swish}", "model.activation.name", "did you mean silu?"),
        ("model: {init: he-normal}", "model.init.law", "did you mean kaiming_normal?"),
        ("model: {init: {law: he}}", "model.init.law", "did you mean kaiming_normal?"),
        ("model: {init: glorot_uniform}", "model.init.law", "did you mean xavier_uniform?"),
        ("model: {init: kaiming_norml}", "model.init.law", "did you mean kaiming_normal?"),
        ("lr: 0.1", "lr", "did you mean optimizer.lr?"),
        ("learning_rate: 0.1", "learning_rate", "did you mean optimizer.lr?"),
        ("optimizer: {learning_rate: 0.1}", "optimizer.learning_rate", "did you mean lr?"),
        ("epochs: 3", "epochs", "did you mean train.epochs?"),
        ("batch_size: 3", "batch_size", "did you mean train.batch_size or eval.batch_size?"),
        ("checkpoint: {lr: 3}", "checkpoint.lr", "did you mean optimizer.lr?"),
        ("num_workers: 3", "num_workers", "did you mean workers?"),
        ("seeed: 3", "seeed", "did you mean seed?"),
    ],
)
def test_what_was_meant_is_suggested(tmp_path: Path, text: str, path: str, way_out: str) -> None:
    problem = problems(tmp_path, f"{GOOD_JOB}{text}\n")[path]
    assert (problem.line, problem.way_out) == (3, way_out)


@pytest.mark.parametrize("text", ["- HorizontalFlip\n", "transform: {}\n__version__: 2.0.8\n"])
def test_a_chain_where_a_job_should_be_is_told_as_one(tmp_path: Path, text: str) -> None:
    ((path, problem),) = problems(tmp_path, text).items()
    assert (path, problem.way_out) == ("", "this is a chain file; a job names it under train.chain")
    assert problems(tmp_path, "5\n")[""].way_out == ""


def test_an_equal_beginning_weighs_more_than_an_equal_end() -> None:
    """difflib's ratio alone has GlassBlur first."""
    assert nearest("GaussBlurr", ["GlassBlur", "GaussianBlur"]) == "did you mean GaussianBlur?"


def test_a_section_that_is_no_mapping_is_told_in_yamls_words(tmp_path: Path) -> None:
    """pydantic says `an object`, as JSON does."""
    found = problems(tmp_path, "sources: 5\ntrain: digits\noptimizer: [1]\n")
    assert {problem.expected for problem in found.values()} == {"a mapping: `key: value`, each on a line below it"}


@pytest.mark.parametrize("indent", ["\t", " \t"])
def test_a_tab_that_indents_is_told_as_a_tab(tmp_path: Path, indent: str) -> None:
    (problem,) = problems(tmp_path, f"train:\n{indent}source: digits\n").values()
    assert (problem.line, problem.got, problem.way_out) == (2, "a tab", "tabs cannot indent YAML; use spaces")


@pytest.mark.parametrize("path", OTHER_WORDS)
def test_every_word_that_is_suggested_is_one_of_the_fields_and_the_other_is_not(path: str) -> None:
    """A table that drifts from the job would send users astray."""
    section, _, field = path.rpartition(".")

    def with_word(word: str) -> JobConfig:
        below = {field: word}
        for name in reversed(section.split(".") if section else []):
            below = {name: below}  # type: ignore[dict-item]
        return JobConfig.model_validate({**PLAIN, **below})

    for other, ours in OTHER_WORDS[path].items():
        with_word(ours)
        with pytest.raises(ValueError, match=field):
            with_word(other)


def test_every_key_that_is_suggested_is_one_of_the_jobs() -> None:
    for other in OTHER_KEYS:
        assert meant_key(other, [], JobConfig).startswith("did you mean")
