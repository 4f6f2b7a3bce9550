"""`headrace train --try-fix`: both trainings side by side, and options that make the job the better one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from headrace.embedded import open_streams
from headrace.try_fix import recommended, require_try_alone
from pipeline.config import dump_job, load_job
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.run_folder import RunFolder
from tests.processes import run_headrace, write_job
from trainer.lint_trial import Trial, run_trial
from trainer.loop import train

CHAIN: list[Any] = ["HorizontalFlip", "Normalize", "ToTensorV2"]
DEEP_SIGMOID = {"kind": "mlp", "width": 32, "depth": 12, "activation": "sigmoid", "init": "xavier_normal"}


def job_of(folder: Path, arrays: Path, model: dict[str, Any], **fields: Any) -> Path:
    """Five steps an epoch, in one process."""
    return write_job(
        folder,
        name="tried",
        sources={"arrays": {"kind": "arrays", "path": str(arrays)}},
        train={"source": "arrays", "chain": CHAIN, "batch_size": 20, "epochs": 4},
        model=model,
        workers=0,
        device="cpu",
        torch_threads=1,
        **fields,
    )


def trial_of(job: Job, num_steps: int) -> Trial:
    with open_streams(job, 0) as streams:
        whole = streams.train
        return run_trial(
            job,
            streams.look(num_steps),
            spec=whole.spec,
            num_classes=len(whole.classes),
            num_planned_steps=whole.num_steps,
        )


@pytest.mark.long
def test_the_table_shows_both_and_the_command_it_ends_with_is_the_better_job(tmp_path: Path, arrays: Path) -> None:
    """Nothing is written, and the exit code is 0."""
    path = job_of(tmp_path, arrays, DEEP_SIGMOID)
    tried = run_headrace("train", path, "--try-fix", "--try-steps", "6", "--set", "seed=3", folder=tmp_path)
    assert tried.code == 0, tried.err
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not list(tmp_path.rglob("checkpoints"))
    for part in ("first 6 steps", "backward", "gradient norm", "CRITICAL VANISH_BWD", "fix:  ", "no longer finds"):
        assert part in tried.out
    (command,) = [line for line in tried.out.splitlines() if line.strip().startswith("headrace train")]
    _, _, job_file, *options = shlex.split(command)
    better = load_job(Path(job_file), [one for one in options if one != "--set"]).config
    assert (better.seed, better.model.activation.name, better.model.init.law) == (3, "relu", "auto")


def test_options_that_mean_nothing_together_are_refused() -> None:
    """A number of steps to try needs something to try; what is tried is not saved anywhere."""
    require_try_alone(True, {"--try-steps": True}, {"--resume": False})
    with pytest.raises(ConfigError, match=r"--try-steps(.|\n)*add --try-fix"):
        require_try_alone(False, {"--try-steps": True}, {"--resume": True})
    with pytest.raises(ConfigError, match=r"--run-dir(.|\n)*a training that is saved"):
        require_try_alone(True, {}, {"--resume": False, "--run-dir": True})


def test_a_trial_takes_the_steps_that_the_run_will_take(tmp_path: Path, arrays: Path) -> None:
    """The losses of A are those of `headrace train`, to the last bit."""
    job = load_job(job_of(tmp_path, arrays, {"kind": "cnn", "width": 4, "depth": 1}))
    tried = trial_of(job, 7)
    losses: list[float] = []
    with (
        RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder,
        open_streams(job, 0, folder) as streams,
    ):
        train(job, streams, folder, lambda progress: losses.append(progress.loss))
    assert [result.loss for result in tried.results] == losses[:7]


@pytest.mark.parametrize(
    ("model", "clip", "expected"),
    [
        (DEEP_SIGMOID, {}, ("model.activation=relu", "model.init=auto")),
        ({"kind": "mlp", "width": 64, "depth": 12, "init": {"law": "normal", "std": 1.0}}, {},
         ("model.init=auto", "clip.kind=auto")),
        ({"kind": "mlp", "width": 32, "depth": 2}, {}, ("model.init=auto",)),
        ({"kind": "mlp", "width": 32, "depth": 2, "init": "auto"}, {"kind": "norm", "threshold": 100.0}, ()),
    ],
)  # fmt: skip
def test_what_is_recommended_follows_from_what_was_seen(
    tmp_path: Path, arrays: Path, model: dict[str, Any], clip: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """Another activation only for sigmoids; clipping only where gradients explode; nothing where all is well."""
    job = load_job(job_of(tmp_path, arrays, model, clip=clip))
    assert recommended(job, trial_of(job, 6)) == expected
