"""`headrace train --try-fix` on the terminal: all of it, once, readable at 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from headrace.try_fix import print_findings, print_trials
from trainer.health.records import Severity
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
    settings="init truncated_normal, activation leaky_relu, clip norm at 0.315",
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
