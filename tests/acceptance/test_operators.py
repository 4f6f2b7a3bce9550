"""status, scale, swap and stop, on a training run with real processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_chain, load_job
from pipeline.errors import EXIT_PEER_UNREACHABLE, EXIT_STOPPED_RESUMABLE, EXIT_USER_INPUT
from tests.acceptance.test_kills import SLEEP_S, SLOW
from tests.home import Home, write_arrays
from tests.processes import DEADLINE_S, Finished, Headrace, lines_of, run_headrace, write_job

STRONG = "- Slow: {p: 1.0}\n- HorizontalFlip: {p: 0.5}\n- Normalize\n- ToTensorV2\n"
WEAK = "- Slow: {p: 1.0}\n- Normalize\n- ToTensorV2\n"


class Run:
    """A training run of days, at about thirty steps a second, and its operator."""

    def __init__(self, folder: Path, home: Home) -> None:
        self.folder, self.home = folder, home
        self.strong, self.weak = folder / "strong.yaml", folder / "weak.yaml"
        self.strong.write_text(STRONG)
        self.weak.write_text(WEAK)
        (folder / "slow.py").write_text(SLOW)
        write_arrays(folder)
        self.job = write_job(
            folder,
            name="small",
            sources={"photos": {"kind": "arrays", "path": "arrays.npz"}},
            train={"source": "photos", "chain": "strong.yaml", "batch_size": 32, "epochs": 100_000},
            plugins=["slow.py"],
            max_workers=4,
            model={"kind": "mlp", "width": 8, "depth": 1},
            device="cpu",
            torch_threads=1,
        )
        self.dir = folder / "run"
        arguments = ("train", self.job, "--run-dir", self.dir)
        environment = {**home.environment, "TEST_SLEEP_S": str(SLEEP_S)}
        self.trainer = Headrace(*arguments, folder=folder, environment=environment)
        (folder / "operator").mkdir()

    def operate(self, *arguments: str | Path) -> Finished:
        """A command with --run-dir, from another folder than the run's."""
        whole = (*arguments, "--run-dir", self.dir)
        return run_headrace(*whole, folder=self.folder / "operator", environment=self.home.environment)

    def status(self) -> dict[str, Any]:
        ended = self.operate("status", "--json")
        assert ended.code == 0, ended.err
        told: dict[str, Any] = json.loads(ended.out)
        return told

    def notes(self) -> list[str]:
        report = self.status()["streams"][0]["report"]
        return list(report["notes"]) if report else []

    def steps(self) -> list[dict[str, Any]]:
        return lines_of(self.dir / "metrics.jsonl")

    def wait_for_step(self, step: int) -> None:
        self.trainer.wait_until(lambda: len(self.steps()) > step, f"step {step}")

    def digest(self, chain: Path) -> str:
        return load_job(self.job).recipe_of(load_chain(chain)).digest

    def recipes(self, start: int, stop: int) -> set[str]:
        """Those of the steps start..stop-1."""
        self.wait_for_step(stop)
        return {line["recipe"] for line in self.steps()[start:stop]}


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> Iterator[Run]:
    home = Home()
    run = Run(tmp_path, home)
    try:
        with run.trainer:
            run.wait_for_step(0)
            yield run
            has_ended = not run.trainer.is_running
        if has_ended:  # and was not killed with its test, all at once
            home.assert_empty_soon()
    finally:
        home.remove()


def boundary(ended: Finished) -> int:
    """The step that a swap named."""
    assert ended.code == 0, ended.err
    found = re.search(r"takes over at step (\d+)", ended.out)
    assert found, ended.out
    return int(found[1])


@pytest.mark.long
def test_status_shows_the_run_and_scale_changes_its_workers(run: Run) -> None:
    """From 2 to 4 to 1, and no step is lost, repeated or made under another recipe."""
    # Given a run whose trainer has reported
    run.trainer.wait_until(lambda: bool(run.status()["streams"][0]["report"]), "the trainer's report")
    screen = run.operate("status")
    assert screen.code == 0
    for part in ("small", "samples/s", "waited for data", run.digest(run.strong), "strong.yaml", "worker-"):
        assert part in screen.out
    assert max(map(len, screen.out.splitlines())) <= 80
    # When it is scaled
    for num in (4, 1):
        ended = run.operate("scale", str(num))
        assert ended.code == 0, ended.err
        assert str(num) in ended.out
        # Then so many workers are there, and the run goes on
        run.trainer.wait_until(lambda num=num: len(run.status()["workers"]) == num, f"{num} workers")
        run.wait_for_step(len(run.steps()) + 20)
    told = [line for line in run.trainer.printed().splitlines() if line.startswith("workers: ")]
    assert told == ["workers: 4 now, 2 before", "workers: 1 now, 4 before"]
    too_many = run.operate("scale", "5")
    assert too_many.code == EXIT_USER_INPUT
    assert "1 to 4" in too_many.err
    steps = run.steps()
    assert [line["step"] for line in steps] == list(range(len(steps)))
    assert {line["recipe"] for line in steps} == {run.digest(run.strong)}


@pytest.mark.long
def test_swap_changes_the_chain_at_the_step_it_names_and_back(run: Run) -> None:
    """On disk, in status and in every batch; a chain that is wrong changes nothing."""
    strong, weak = run.digest(run.strong), run.digest(run.weak)
    # When the chain is swapped as soon as possible, and back at a step far enough away
    step = boundary(run.operate("swap", run.weak))
    back = len(run.steps()) + 200
    assert boundary(run.operate("swap", "--to", "previous", "--at", str(back))) == back
    # Then each batch has the recipe of its side
    assert run.recipes(0, step) == {strong}
    assert run.recipes(step, back) == {weak}
    assert run.recipes(back, back + 20) == {strong}
    changes = lines_of(run.dir / "timeline.jsonl")
    assert [change["from_step"] for change in changes] == [0, step, back]
    assert (run.dir / "chains" / f"{weak}.yaml").exists()
    # And who looks at the trainer's terminal knows it, too
    told = [line for line in run.trainer.printed().splitlines() if line.startswith("chain: ")]
    assert told == [
        f"chain: recipe {recipe} from {file} takes over at step {at}"
        for recipe, file, at in ((weak, run.weak, step), (strong, run.strong, back))
    ]
    # And a wrong chain is refused as `headrace check` refuses it, by whoever sees it first
    for text in ("- HorizontalFlop\n- Normalize\n", "- HorizontalFlip: 1\n", "- Resize: {height: 8, width: 8}\n"):
        (run.folder / "operator" / "bad.yaml").write_text(text)
        refused = run.operate("swap", "bad.yaml")
        assert refused.code == EXIT_USER_INPUT, refused.out
        assert "bad.yaml:1" in refused.err
        checked = run_headrace("check", "bad.yaml", folder=run.folder / "operator")
        if checked.code:  # a chain that is right, but delivers another shape, only the job can refuse
            assert checked.err.strip() in refused.err
    assert len(lines_of(run.dir / "timeline.jsonl")) == 3


@pytest.mark.long
def test_an_edit_of_the_chain_file_is_taken_up_and_the_last_of_many_wins(run: Run) -> None:
    """Also by rename, through half-written and missing files, and past a wrong one."""
    # When the file is edited twenty times in two seconds
    for number in range(20):
        partial = run.folder / "strong.yaml~"
        partial.write_text(STRONG.replace("0.5", f"0.{number + 10}"))
        if number % 3 == 0:
            run.strong.unlink()
        if number % 3 == 1:
            run.strong.write_text(STRONG[: number + 5])
        partial.rename(run.strong)
        time.sleep(0.1)
    # Then the last one takes effect
    last = run.digest(run.strong)
    run.trainer.wait_until(lambda: run.steps()[-1]["recipe"] == last, "the last edit")
    # And a wrong edit is told, and the present chain goes on
    run.strong.write_text("- HorizontalFlop\n")
    run.trainer.wait_until(
        lambda: "strong.yaml:1" in (run.dir / "journal.jsonl").read_text(), "the refusal in the journal"
    )
    run.trainer.wait_until(lambda: any("strong.yaml:1" in note for note in run.notes()), "the refusal in the status")
    assert "did you mean HorizontalFlip?" in " ".join(run.operate("status").out.split())
    now = len(run.steps())
    assert run.recipes(now, now + 20) == {last}


@pytest.mark.long
def test_stop_ends_a_run_resumably_and_its_status_is_read_from_its_files(run: Run) -> None:
    asked = run.operate("stop")
    assert asked.code == 0, asked.err
    ended = run.trainer.finish()
    assert ended.code == EXIT_STOPPED_RESUMABLE, ended.err
    num_steps = len(run.steps())
    screen = run.operate("status")
    assert screen.code == 0
    assert "not going on" in screen.out
    assert f"{num_steps} steps done" in screen.out
    assert f"checkpoints/step-{num_steps:08d}" in screen.out
    for command in (("swap", run.weak), ("scale", "2"), ("stop",)):
        late = run.operate(*command)
        assert late.code == EXIT_USER_INPUT
        assert "a run that has ended" in late.err


def test_a_service_that_is_not_there_is_told_with_a_way_out(tmp_path: Path) -> None:
    started_s = time.monotonic()
    ended = run_headrace("status", "--connect", f"ipc://{tmp_path}/nobody", folder=tmp_path)
    assert ended.code == EXIT_PEER_UNREACHABLE
    assert "no dispatcher answers" in ended.err
    assert "to go on" in ended.err
    assert time.monotonic() - started_s < DEADLINE_S
