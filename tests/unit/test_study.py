"""Study files: what they say, and errors at their lines."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.study_file import Study, load_study
from pipeline.study_formula import FormulaError, formula_value

TUTORIAL = Path(__file__).resolve().parents[2] / "configs/studies/tutorial.yaml"
JOB = """\
sources: {digits: {kind: digits}}
train: {source: digits, chain: [Normalize, ToTensorV2]}
eval: {source: digits, chain: [Normalize, ToTensorV2]}
model: {kind: mlp}
"""
STUDY = """\
job: job.yaml
axes:
  init:
    bad: {set: {model.init: {law: normal, std: 0.01}}}
    odd: {weights_std: sqrt(6) / (fan_in + fan_out)}
    he: {label: He, set: {model.init: kaiming_normal}}
  batch:
    small: {}
    large: {set: {train.batch_size: 128, optimizer.lr: 0.1}}
claims:
  - says: He cures.
    kind: cures_vanishing
    axis: init
    before: bad
    after: [he]
    where: {batch: [small]}
"""


def written(folder: Path, study: str = STUDY) -> Path:
    (folder / "job.yaml").write_text(JOB)
    (folder / "study.yaml").write_text(study)
    return folder / "study.yaml"


def load(folder: Path, study: str = STUDY, *overrides: str) -> Study:
    return load_study(written(folder, study), overrides)


def problems(folder: Path, study: str, *overrides: str) -> list[tuple[int, str, str, str]]:
    with pytest.raises(ConfigError) as raised:
        load(folder, study, *overrides)
    return [(one.line, one.path, one.expected, one.got) for one in raised.value.problems]


def test_a_cell_takes_one_setting_of_each_axis(tmp_path: Path) -> None:
    config = load(tmp_path).config
    cells = list(config.cells())
    assert 6 == len(cells) == config.num_cells == len({tuple(cell.items()) for cell in cells})
    assert cells[1] == {"init": "bad", "batch": "large"}
    assert config.changes(cells[1]) == {
        "model.init": {"law": "normal", "std": 0.01},
        "train.batch_size": 128,
        "optimizer.lr": 0.1,
    }


def test_only_what_batches_depend_on_separates_streams(tmp_path: Path) -> None:
    """The learning rate and the law are the model's business: such runs share their batches."""
    config = load(tmp_path).config
    assert config.stream_changes({"init": "he", "batch": "small"}) == {}
    assert config.stream_changes({"init": "bad", "batch": "large"}) == {"train.batch_size": 128}


def test_a_cells_job_is_the_base_job_with_its_changes(tmp_path: Path) -> None:
    study = load(tmp_path)
    job = study.job({"init": "bad", "batch": "large"}, 7, {"train.epochs": 5}).config
    assert (job.seed, job.train.batch_size, job.train.epochs, job.optimizer.lr) == (7, 128, 5, 0.1)
    assert (job.model.init.law, job.model.init.std) == ("normal", 0.01)
    assert study.config.weights_std({"init": "odd", "batch": "small"}) == "sqrt(6) / (fan_in + fan_out)"
    assert study.config.weights_std({"init": "he", "batch": "small"}) == ""


def test_a_setting_that_the_job_refuses_is_refused_at_its_line(tmp_path: Path) -> None:
    found = problems(tmp_path, STUDY.replace("law: normal, std: 0.01", "law: normall"))
    assert [(4, "axes.init.bad.set: model.init.law")] == [(line, path) for line, path, *_ in found]
    found = problems(tmp_path, STUDY.replace("optimizer.lr", "optimiser.lr"))
    assert [(9, "axes.batch.large.set: optimiser")] == [(line, path) for line, path, *_ in found]


@pytest.mark.parametrize(
    ("old", "new", "line", "path"),
    [
        ("before: bad", "before: worse", 14, "claims[0].before"),
        ("after: [he]", "after: [hee]", 15, "claims[0].after"),
        ("axis: init", "axis: unit", 13, "claims[0].axis"),
        ("{batch: [small]}", "{batch: [tiny]}", 16, "claims[0].where"),
        ("{batch: [small]}", "{init: [he]}", 16, "claims[0].where"),
        ("kind: cures_vanishing", "kind: cures_all", 12, "claims[0].kind"),
        ("fan_in + fan_out", "fan_in + fan", 5, "axes.init.odd.weights_std"),
        ("label: He", "lable: He", 6, "axes.init.he.lable"),
        ("job: job.yaml", "job: job.yaml\nsteps: 2", 2, "steps"),
        ("job: job.yaml", "job: job.yaml\nseeds: []", 2, "seeds"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, old: str, new: str, line: int, path: str) -> None:
    assert old in STUDY
    assert [(line, path)] == [(at, name) for at, name, *_ in problems(tmp_path, STUDY.replace(old, new))]


def test_overrides_change_the_study(tmp_path: Path) -> None:
    config = load(tmp_path, STUDY, "steps=12", "seeds=[4]", "axes.batch={small: {}}", "claims=[]").config
    assert (config.steps, config.seeds, config.num_cells, config.measured_steps) == (12, (4,), 3, (0, 6, 11))
    assert [("stepz", "a known key")] == [(path, say) for _, path, say, _ in problems(tmp_path, STUDY, "stepz=3")]
    assert "PATH=VALUE" in problems(tmp_path, STUDY, "steps")[0][2]


def test_a_job_in_place_of_a_study_is_one_problem(tmp_path: Path) -> None:
    assert [("a study (a map with `job` and `axes`)", "a job")] == [one[2:] for one in problems(tmp_path, JOB)]


def test_a_job_without_held_out_images_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "job.yaml").write_text("".join(line for line in JOB.splitlines(True) if not line.startswith("eval")))
    with pytest.raises(ConfigError, match=r"study.yaml:1: job\n  expected: a job with an `eval` section"):
        load_study(path)


def test_the_tutorials_study_has_the_whole_matrix() -> None:
    """{zero, N(0,.01), N(0,1), wrong Xavier, Xavier, He} x four activations x three clippings x augmentation."""
    config = load_study(TUTORIAL).config
    assert {"zero", "normal_001", "normal_1", "xavier_wrong", "xavier", "he"} <= set(config.axes["init"])
    assert {"sigmoid", "relu", "leaky_relu", "tanh"} == set(config.axes["activation"])
    assert {"none", "value", "norm"} == set(config.axes["clip"])
    assert {"without", "with"} == set(config.axes["augmentation"])
    assert 3 == len(config.seeds)


def test_a_formula_gives_what_it_says() -> None:
    value = formula_value("sqrt(6) / (fan_in + fan_out)", fan_in=64, fan_out=32)
    assert value == pytest.approx(math.sqrt(6) / 96)
    assert formula_value("2 * 3 - 1.5", fan_in=1, fan_out=1) == 4.5


@pytest.mark.parametrize(
    "formula",
    [
        "", "fan", "-1", "0", "1 / 0", "1 / (fan_in - fan_in)", "__import__('os')", "sqrt(2, 3)", "sqrt(x=2)",
        "sqrt(-1)", "fan_in**9",
        "fan_in.real", "[1][0]", "True", "1e999", "(" * 100, "1 if 1 else 2", "lambda: 1", "1" * 300,
    ],
)  # fmt: skip
def test_a_formula_holds_nothing_else(formula: str) -> None:
    with pytest.raises(FormulaError):
        formula_value(formula, fan_in=64, fan_out=64)


@given(st.text(max_size=40))
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    with contextlib.suppress(FormulaError):
        assert 0.0 < formula_value(text, fan_in=64, fan_out=64) < math.inf
