"""`headrace lr`: the command on a small job, in this process and as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from headrace.commands.lr import lr
from pipeline.errors import ConfigError, RunFailed
from tests.processes import run_headrace, write_job

POOR_RATE = 1e-6
FINISH = [{"Normalize": {"mean": [0.5], "std": [0.5], "max_pixel_value": 16.0}}, "ToTensorV2"]
SMALL = ("--range-steps", "60", "--steps", "30", "--folds", "2")


def digits_job(folder: Path, **fields: object) -> Path:
    sources = {part: {"kind": "digits", "split": {"part": part}} for part in ("train", "held_out")}
    train = {"source": "train", "chain": [{"Affine": {"rotate": [-10, 10]}}, *FINISH], "batch_size": 32, "epochs": 1}
    return write_job(
        folder,
        name="digits",
        sources=sources,
        train=train,
        eval={"source": "held_out", "chain": FINISH},
        model={"kind": "mlp", "width": 32, "depth": 1},
        optimizer={"kind": "adamw", "lr": POOR_RATE},
        schedule={"kind": "cosine"},
        device="cpu",
        torch_threads=1,
        **fields,
    )


def in_this_process(*arguments: object) -> str:
    """What the command prints; torch is here already, which saves its seconds."""
    app = typer.Typer()
    app.command()(lr)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False).output


@pytest.mark.long
def test_it_recommends_a_rate_that_learns_and_says_the_same_with_other_workers(tmp_path):
    """The job's own rate learns nothing in 30 steps. Its one epoch is shorter than the search, which goes on all the
    same; nothing but the picture and the numbers is left behind."""
    job = digits_job(tmp_path)
    picture, numbers = tmp_path / "here.png", tmp_path / "numbers.json"
    printed = in_this_process(job, *SMALL, "--workers", 0, "--out", picture, "--json", numbers)
    found = json.loads(numbers.read_text())
    by_rate = {candidate["lr"]: candidate for candidate in found["candidates"]}
    chosen, own = by_rate[found["recommended_lr"]], by_rate[POOR_RATE]
    assert min(chosen["accuracies"]) > max(own["accuracies"]) + 0.3
    assert chosen["mean_loss"] < 0.5 * own["mean_loss"]
    assert re.search(rf"--set optimizer.lr={found['recommended_lr']:g}\s*$", printed)
    assert " ".join(found["reason"].split()) in " ".join(printed.split())
    assert "left out:   the job's schedule (cosine)" in printed
    # A path is as long as it is, and is not broken.
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    assert picture.read_bytes().startswith(b"\x89PNG")

    again = run_headrace("lr", job, *SMALL, "--workers", "1", folder=tmp_path)
    assert (again.code, again.err) == (0, "")
    assert again.out.replace("lr-digits.png", "x") == printed.replace(str(picture), "x")
    own_files = {"command.out", "command.err", "cache", "job.yaml"}
    assert {path.name for path in tmp_path.iterdir()} - own_files == {"here.png", "numbers.json", "lr-digits.png"}


def test_rates_that_all_diverge_are_shown_as_such_and_fail(tmp_path):
    """What nobody can train with is not recommended; the picture and the numbers show it all the same."""
    numbers, changes = tmp_path / "numbers.json", ("optimizer.kind=sgd", "model.activation=leaky_relu")
    with pytest.raises(RunFailed, match="every candidate diverged\n  to go on: give smaller rates") as failed:
        in_this_process(
            *(digits_job(tmp_path), "--workers", 0, "--range-steps", 20, "--steps", 20, "--candidates", "1e6,1e5"),
            *(part for change in changes for part in ("--set", change)),
            *("--json", numbers, "--out", tmp_path / "lr.png"),
        )
    assert failed.value.exit_code == 1
    found = json.loads(numbers.read_text())
    assert [(one["lr"], one["losses"], one["num_diverged"]) for one in found["candidates"]] == [
        (1e5, [None] * 3, 3),
        (1e6, [None] * 3, 3),
    ]
    assert found["recommended_lr"] is None
    assert (tmp_path / "lr.png").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--folds", 1), r"--folds\n  expected: at least 2.*\n  got:      1"),
        (("--lr-min", 1, "--lr-max", 0.1), r"--lr-min, --lr-max\n  expected: 0 < .*\n  got:      1 and 0.1"),
        (("--candidates", "1e-3,fast"), r"--candidates\n  expected: rates above 0 .*\n  got:      'fast'\n  to go on"),
        (("--candidates", "1e-3,-1"), r"got:      '-1'"),
        (("--out", "no/such/folder.png"), r"folder.png\n  expected: a folder that exists"),
        (("--folds", 1500, "--steps", 1, "--workers", 0), r"--folds\n  expected: folds of at least 10 samples"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "",
)
def test_wrong_options_are_refused_with_a_way_out(tmp_path, arguments, problem):
    """All but the last before anything is started."""
    with pytest.raises(ConfigError, match=problem) as refused:
        in_this_process(digits_job(tmp_path), *arguments)
    assert refused.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "job.yaml"]
