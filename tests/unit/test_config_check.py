"""`headrace check`: every error of every file, and an exit code a script can use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from headrace.commands.check import check
from pipeline.config import load_chain, load_job
from pipeline.errors import ConfigError, Problem
from tests.sizes import cases

app = typer.Typer()
app.command()(check)

GOOD_JOB = (
    "sources: {digits: {kind: digits}}\ntrain: {source: digits, chain: [HorizontalFlip, Normalize, ToTensorV2]}\n"
)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_good_files_are_named_with_their_kind_and_digest(tmp_path: Path) -> None:
    job, chain = tmp_path / "job.yaml", tmp_path / "chain.yaml"
    job.write_text(GOOD_JOB)
    chain.write_text("[HorizontalFlip, Normalize, ToTensorV2]")
    code, printed, wrong = run(job, chain)
    digest = load_job(job).train.digest
    assert (code, wrong) == (0, "")
    assert printed.splitlines() == [
        f"ok {job} (job, recipe {digest}, digits: 1797 samples, 10 classes)",
        f"ok {chain} (chain, recipe {digest})",
    ]


def test_every_error_of_every_file_is_printed_and_the_exit_code_is_2(tmp_path: Path) -> None:
    """Also those of a chain inside a job whose fields are wrong."""
    job, chain, good = tmp_path / "job.yaml", tmp_path / "chain.yaml", tmp_path / "good.yaml"
    job.write_text(GOOD_JOB.replace("HorizontalFlip", "HorizontalFlop") + "seeed: 1\nworkers: -1\n")
    chain.write_text("- Blur: {p: 2}\n- Blurr\n")
    good.write_text(GOOD_JOB)
    code, printed, wrong = run(job, chain, tmp_path / "god.yaml", good)
    assert code == 2
    assert printed.splitlines() == [line for line in printed.splitlines() if line.startswith(f"ok {good}")]
    for place in (f"{job}:2: train.chain[0].HorizontalFlop", f"{job}:3: seeed", f"{job}:4: workers"):
        assert place in wrong
    for place in (f"{chain}:1: chain[0].Blur.p", f"{chain}:2: chain[1].Blurr", "did you mean good.yaml?"):
        assert place in wrong


STUDY = """\
job: job.yaml
axes:
  init: {he: {set: {model.init: kaiming_normal}}, zero: {set: {model.init: zeros}}}
  chain:
    plain: {}
    inline: {set: {train.chain: [HorizontalFlip, Normalize, ToTensorV2]}}
    named: {set: {train.chain: weak.yaml}}
"""


def test_a_study_is_checked_with_its_job_and_all_its_settings(tmp_path: Path) -> None:
    """Also what only a compiled chain shows; each mistake at its own line, in whichever file it is."""
    study, job, weak = tmp_path / "study.yaml", tmp_path / "job.yaml", tmp_path / "weak.yaml"
    job.write_text(GOOD_JOB + "eval: {source: digits, chain: [Normalize, ToTensorV2]}\nmodel: {kind: mlp}\n")
    weak.write_text("[Transpose, Normalize, ToTensorV2]")
    study.write_text(STUDY)
    assert run(study) == (0, f"ok {study} (study, 18 runs of 6 cells, 0 claims)\n", "")

    study.write_text(STUDY.replace("zeros", "zeroes").replace("HorizontalFlip", "HorizontalFlop"))
    weak.write_text("- Blur: {p: 2}\n")
    code, printed, wrong = run(study)
    assert (code, printed) == (2, "")
    for place in (
        f"{study}:3: axes.init.zero.set: model.init",
        f"{study}:6: axes.chain.inline.set: train.chain[0].HorizontalFlop",
        f"{weak}:1: axes.chain.named.set: chain[0].Blur.p",
    ):
        assert place in wrong
    job.write_text(job.read_text().replace("chain: [HorizontalFlip", "chain: [Flop", 1))
    assert f"{job}:2: train.chain[0].Flop" in run(study)[2]
    study.write_text(STUDY.replace("axes:", "axess:"))
    assert f"{study}:2: axess" in run(study)[2]


def refused(tmp_path: Path, text: str, *arguments: str) -> str:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    code, printed, wrong = run(job, *arguments)
    assert (code, printed) == (2, "")
    return wrong


def run_ok(tmp_path: Path, text: str) -> str:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    code, printed, wrong = run(job)
    assert (code, wrong) == (0, "")
    return printed


def test_what_training_refuses_without_having_made_a_batch_is_refused(tmp_path: Path) -> None:
    """Each at its line; nobody should wait for workers to be told."""
    (tmp_path / "mine.py").write_text("def make(input_shape, num_classes):\n    return None\nWIDTH = 3\n")
    wrong = refused(tmp_path, GOOD_JOB.replace("source: digits", "source: digits,\n  batch_size: 2000"))
    assert "job.yaml:3: train.batch_size\n  expected: at most 1797" in wrong
    wrong = refused(tmp_path, GOOD_JOB.replace(", ToTensorV2", "") + "schedule: {kind: plateau}\n")
    assert (
        "job.yaml:2: train.chain\n  expected: a chain whose batches are float32 NCHW\n  got:      float32 NHWC" in wrong
    )
    assert "job.yaml:3: schedule.kind" in wrong
    for factory, got in (
        ("mine.py:makee", "did you mean make?"),
        ("mined.py:make", "did you mean mine.py?"),
        ("no_such_module:make", "no module named 'no_such_module'"),
        ("mine.py:WIDTH", "int"),
    ):
        wrong = refused(tmp_path, GOOD_JOB + f"model:\n  kind: factory\n  factory: {factory}\n")
        assert "job.yaml:5: model.factory" in wrong
        assert got in wrong


def test_options_are_held_against_the_factorys_own(tmp_path: Path) -> None:
    """What it has is listed, and not what was misspelt."""
    (tmp_path / "mine.py").write_text("def make(input_shape, num_classes, *, hidden, depth=2): ...\n")
    model = "model:\n  kind: factory\n  factory: mine.py:make\n  options: {hiden: 3}\n"
    wrong = refused(tmp_path, GOOD_JOB + model)
    assert "job.yaml:6: model.options.hiden\n  expected: an option of" in wrong
    assert "mine.py:make, which has hidden, depth\n  got:      'hiden'\n  to go on: did you mean hidden?" in wrong
    assert "job.yaml:6: model.options.hidden\n  expected: `hidden`, for which" in wrong
    (tmp_path / "any.py").write_text("def make(input_shape, **options): ...\n")
    assert "ok" in run_ok(tmp_path, GOOD_JOB + model.replace("mine.py", "any.py"))


def test_one_class_and_images_that_stay_integers_are_refused_unless_for_a_loop_of_ones_own(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 6, 6, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(4, np.int64))
    sources = "sources:\n  one: {kind: arrays, path: images.npy, labels: labels.npy}\n"
    text = sources + "train: {source: one, batch_size: 2, chain: [Blur, ToTensorV2]}\n"
    wrong = refused(tmp_path, text)
    assert "job.yaml:2: sources.one\n  expected: at least two classes" in wrong
    assert (
        "job.yaml:3: train.chain\n  expected: a chain whose batches are float32 NCHW\n  got:      uint8 NCHW" in wrong
    )
    assert run(tmp_path / "job.yaml", "--own-loop")[0] == 0
    assert "train.batch_size" in refused(tmp_path, text.replace("batch_size: 2", "batch_size: 5"), "--own-loop")


def test_data_that_is_not_here_is_an_error_beside_all_others(tmp_path: Path) -> None:
    text = "sources: {gone: {kind: folder, path: gone}}\ntrain: {source: gone, chain: [Blur]}\n"
    wrong = refused(tmp_path, text + "model: {kind: factory, factory: gone.py:make}\n")
    for place in ("job.yaml:1: sources.gone", "job.yaml:2: train.chain", "job.yaml:3: model.factory"):
        assert place in wrong


def test_every_chain_of_a_schedule_is_checked(tmp_path: Path) -> None:
    """What epoch 8 uses is refused now, not after eight epochs."""
    job, weak = tmp_path / "job.yaml", tmp_path / "weak.yaml"
    schedule = "[{from_epoch: 0, use: [Normalize, ToTensorV2]}, {from_epoch: 1, use: weak.yaml}]"
    job.write_text(GOOD_JOB.replace("[HorizontalFlip, Normalize, ToTensorV2]", f"{schedule}, epochs: 2"))
    weak.write_text("[Transpose, Normalize, ToTensorV2]")
    code, printed, _ = run(job)
    loaded = load_job(job)
    assert code == 0
    assert f"recipe {loaded.train.digest}, from epoch 1 {loaded.later[0].recipe.digest}," in printed
    weak.write_text("- Transpos\n")
    code, _, wrong = run(job)
    assert code == 2
    assert f"{weak}:1: chain[0].Transpos" in wrong


def test_plugins_are_named_in_the_job_or_on_the_command_line(tmp_path: Path) -> None:
    plugin = tmp_path / "mine_for_check.py"
    plugin.write_text("import albumentations\n\nclass Mine(albumentations.HorizontalFlip):\n    pass\n")
    job, chain = tmp_path / "job.yaml", tmp_path / "chain.yaml"
    job.write_text(GOOD_JOB.replace("HorizontalFlip", "Mine") + "plugins: [mine_for_check.py]\n")
    chain.write_text("- Mine\n")
    assert run(chain)[0] == 2
    assert run(job, chain, "--plugins", plugin)[0] == 0


@settings(max_examples=cases(300), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
       | st.text("-:[]{}&*!|>'\"%@`#,?. \n\tab1", max_size=40).map(str.encode))  # fmt: skip
def test_any_bytes_are_a_chain_or_a_located_refusal(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(content)
    problems: list[Problem] = []
    for load in (load_chain, load_job):
        try:
            load(file)
        except ConfigError as error:
            problems.extend(error.problems)
    assert all(problem.line >= 1 and problem.file == str(file) for problem in problems)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_chain(tmp_path)
