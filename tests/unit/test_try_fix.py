"""`headrace train --try-fix` on the terminal: all of it, once, readable at 80 columns."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from headrace.try_fix import conclusion, is_to_take, print_findings, print_trials, recommended
from tests.memory_streams import make_job
from trainer.health.records import Life, Severity, Verdict
from trainer.lint_report import LintFinding, LintReport, Slopes
from trainer.lint_trial import Trial
from trainer.step import StepResult

STEP = StepResult(
    loss=2.4, grad_norm=123.456, clipped_norm=1.0, was_clipped=True, clips=(), maybe_fault=None, loss_scale=1.0,
    lr=0.1, num_samples=8, num_correct=1,
)  # fmt: skip
FINDING = LintFinding(
    id="VANISH_BWD",
    kind="",
    severity=Severity.CRITICAL,
    layers=("1", "3", "5"),
    evidence={"backward slope": -0.637, "layers": 13},
    thresholds={},
    fix="replace Sigmoid by ReLU or GELU, whose derivative is not at most 0.25, and draw weights by kaiming_normal",
    is_predicted=True,
    is_measured=True,
)
SICK = Trial(
    lint=LintReport(
        predicted=Slopes(forward=-0.63, backward=-0.62),
        measured=Slopes(forward=-0.64, backward=-0.64),
        guess=2.303,
        findings=(FINDING,),
        overrides=("model.init=auto",),
    ),
    settings="init truncated_normal, activation leaky_relu, lr 0.003, clip norm at 0.315",
    results=(STEP, replace(STEP, grad_norm=0.00123456)),
    first=Slopes(forward=-0.64, backward=-0.65),
    last=Slopes(forward=-0.66, backward=-0.67),
    update_ratio=0.00246,
    verdicts=(),
)


def printed(width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_trials([SICK, SICK], console)
    print_findings(SICK, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_table_fits_80_columns_with_a_line_a_quantity() -> None:
    """Names and values are whole; only settings have a line each."""
    lines = printed()
    assert max(len(line.rstrip()) for line in lines) <= 80
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [
        ["settings", *["init truncated_normal"] * 2],
        ["", *["activation leaky_relu"] * 2],
        ["", *["lr 0.003"] * 2],
        ["", *["clip norm at 0.315"] * 2],
        ["forward", *["-0.64, -0.66 (-0.63)"] * 2],
        ["backward", *["-0.65, -0.67 (-0.62)"] * 2],
        ["loss", *["2.4, 2.4"] * 2],
        ["gradient norm", *["123, 0.00123; 123"] * 2],
        ["clipped, skipped", *["2, 0"] * 2],
        ["update", *["0.00246"] * 2],
        ["lint", *["CRITICAL VANISH_BWD"] * 2],
        ["verdicts", *["none"] * 2],
    ] == rows


def test_what_lint_found_is_told_once_beside_the_table() -> None:
    """Where, evidence and fix; the numbers and settings that the table has are not told again."""
    text = " ".join(" ".join(printed()).split())
    for part in ("in 1, 3, 5: foretold", "evidence: backward slope -0.637, layers 13", FINDING.fix, "a guess has 2.3"):
        assert 1 == text.count(part), part
    assert "lint: before the first step" not in text
    assert "as settings" not in text


def trial(*losses: float, findings: tuple[LintFinding, ...] = ()) -> Trial:
    """Five steps of the last loss, which is what is compared."""
    results = tuple(replace(STEP, loss=loss) for loss in (losses[0], *losses[-1:] * 5))
    return replace(SICK, results=results, lint=replace(SICK.lint, findings=findings))


def test_losses_fall_or_rise_or_are_not_finite() -> None:
    told = conclusion(trial(2.4, 1.2), trial(2.0, 2.412))[0]
    assert "In these steps A's loss fell by 1.2 to 1.2, and B's loss rose by 0.412 to 2.41." == told
    assert "B's loss did not stay finite" in conclusion(trial(2.4, 1.2), trial(2.0, math.nan))[0]


@pytest.mark.parametrize(
    ("present", "other", "is_taken"),
    [
        (trial(2.4, 1.2), trial(2.4, 1.1), True),
        (trial(2.4, 1.2), trial(2.4, 1.17), False),
        (trial(2.4, 1.2), trial(2.4, 1.3), False),
        (trial(2.4, 1.2, findings=(FINDING,)), trial(2.4, 1.3), False),
        (trial(2.4, 1.2), trial(2.4, math.nan), False),
        (trial(2.4, math.nan), trial(2.4, 1.2), True),
        (trial(2.4, math.nan), trial(2.4, math.inf), False),
        (trial(40.0, 2.31), trial(2.3, 2.32), False),
        (trial(2.58, 2.303, findings=(FINDING,)), trial(2.3, 2.32), True),
        (trial(2.58, 2.303, findings=(FINDING,)), trial(2.3, 2.32, findings=(FINDING,)), False),
        (trial(2.58, 2.303, findings=(FINDING,)), trial(2.3, 40.0), False),
    ],
)
def test_b_is_taken_where_it_ends_lower_or_a_is_a_guess_that_it_mends(
    present: Trial, other: Trial, is_taken: bool
) -> None:
    """A deep net of sigmoids falls to ln C and stays there; its better twin begins there."""
    assert is_taken == is_to_take(present, other)
    text = " ".join(conclusion(present, other))
    assert is_taken == ("B is no better than A" not in text)
    assert ("No better than a guess (a loss of 2.3) by then: A" in text) == (present.last_loss > 2.2)


TOO_LARGE = Verdict(
    number=1, id="UPDATE_RATIO", kind="large", severity=Severity.CRITICAL, life=Life.OPEN, layers=("a",), first_step=4,
    last_step=9, resolved_at=None, num_hits=6, evidence={"update/weight": 0.2, "lr": 0.05}, thresholds={}, fix="",
    confidence=1.0,
)  # fmt: skip


def test_steps_that_are_too_large_are_mended_too_unless_the_weights_become_others(tmp_path: Path) -> None:
    """By the job's rate, not by that of a warm-up's step; of other weights, B's own steps will tell."""
    job = make_job(tmp_path, optimizer={"kind": "sgd", "lr": 0.5}, model={"kind": "mlp", "init": "auto"})
    present = replace(trial(2.4, 2.0), verdicts=(TOO_LARGE,))

    plain = recommended(job, replace(present, lint=replace(present.lint, overrides=())))
    assert "optimizer.lr=0.0025" in plain
    assert not any("optimizer.lr" in one for one in recommended(job, present))


def test_a_loss_that_is_lost_asks_for_a_tenth_of_the_rate_and_for_no_threshold_of_its_norms(tmp_path: Path) -> None:
    """By then nine in ten norms are astronomical."""
    job = make_job(tmp_path, optimizer={"kind": "sgd", "lr": 2.0}, model={"kind": "mlp", "init": "auto"})
    lost = trial(2.4, math.nan)
    lost = replace(lost, results=tuple(replace(one, grad_norm=7e30) for one in lost.results))
    assert ("optimizer.lr=0.2",) == recommended(job, replace(lost, lint=LintReport()))[:1]

    job = make_job(tmp_path, model={"kind": "mlp", "init": "auto"}, clip={"kind": "none"})
    exploding = replace(lost, lint=LintReport(), verdicts=(replace(TOO_LARGE, id="EXPLODE", kind="growth"),))
    assert recommended(job, exploding)[1:] == ("clip.kind=auto",)
