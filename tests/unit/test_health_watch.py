"""The watch of a whole run, on streams held in memory: what its files and checkpoints say of its gradients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.checkpoint_folder import checkpoint_name, checkpoint_steps, read_state
from pipeline.config import dump_job
from pipeline.config_job import Job
from pipeline.json_lines import read_lines
from pipeline.resume import choose_checkpoint
from pipeline.run_folder import RunFolder
from tests.health_fixtures import one_thread
from tests.memory_streams import MemoryStreams, make_job, run
from tests.unit.test_exporters import a_verdict
from trainer import loop
from trainer import watch as watch_module
from trainer.checkpoint_writer import CheckpointWriter
from trainer.health.monitor import GradientHealth
from trainer.health.overhead import Pace
from trainer.health.records import Life, Severity
from trainer.loop import train
from trainer.record import Progress
from trainer.stopping import StopRequest
from trainer.watch import open_watch
from trainer.watch_text import end_text, line_text

__all__ = ["one_thread"]


def a_job(folder: Path, *, health: dict[str, Any] | None = None, **fields: Any) -> Job:
    plain = {"model": {"kind": "mlp", "width": 8, "depth": 1}, "torch_threads": 1, "has_eval": False}
    return make_job(folder, **{**plain, "health": {"lint": False, **(health or {})}, **fields})


def health_of(run_dir: Path) -> dict[str, Any]:
    health: dict[str, Any] = json.loads((run_dir / "health.json").read_text())
    return health


class Closes:
    """An exporter that remembers that it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def test_what_fails_between_the_exporters_opening_and_the_first_step_closes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 9: a full disk at the first event would leave a port and its thread."""
    exporter = Closes()
    monkeypatch.setattr(loop, "open_exporters", lambda *args: [exporter])

    def full(self: RunFolder, action: str, **fields: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "append_event", full)
    with pytest.raises(OSError, match="No space left"):
        run(a_job(tmp_path), MemoryStreams(), tmp_path / "run")

    assert exporter.is_closed


def test_a_run_that_goes_on_knows_its_step_before_its_first_one(tmp_path: Path) -> None:
    """health.json is written at the end too, and of an attempt without a step it would say step 0."""
    job, model = a_job(tmp_path), nn.Linear(2, 2)
    run(job, MemoryStreams(), tmp_path / "run")
    state = torch.load(tmp_path / "run/checkpoints/step-00000040/train.pt", weights_only=True)["states"]["watch"]
    with RunFolder.resume(tmp_path / "run") as folder:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = open_watch(job.config, folder, model, optimizer, num_classes=3, tell=lambda text: None)
        watch.load_state_dict(state, is_exact=True)
        watch.end()

    assert 40 == health_of(tmp_path / "run")["step"]


def healthy_steps(run_dir: Path) -> dict[int, bool]:
    """Step of each checkpoint -> what its state.json says."""
    checkpoints = run_dir / "checkpoints"
    return {step: read_state(checkpoints / checkpoint_name(step))["healthy"] for step in checkpoint_steps(checkpoints)}


@pytest.mark.parametrize("off", [[], ["NONFINITE"]])
def test_no_checkpoint_is_healthy_amid_bad_steps_whatever_is_said_of_them(tmp_path: Path, off: list[str]) -> None:
    """A detector that is off says nothing; what a checkpoint is worth doesn't depend on that."""
    checkpoint = {"every_steps": 10, "keep": 9}
    run(a_job(tmp_path, health={"off": off}, checkpoint=checkpoint), MemoryStreams(poisoned_step=12), tmp_path / "run")

    assert healthy_steps(tmp_path / "run") == {10: True, 20: False, 30: False, 40: False}
    assert health_of(tmp_path / "run")["is_nonfinite_pending"]
    assert bool(health_of(tmp_path / "run")["verdicts"]) == (not off)


def test_no_checkpoint_is_healthy_while_a_critical_verdict_is_open(tmp_path: Path) -> None:
    """Sigmoids that deep learn nothing: whoever goes back to such a checkpoint has gained nothing."""
    model = {"kind": "mlp", "width": 8, "depth": 12, "activation": "sigmoid", "init": "xavier_normal"}
    checkpoint = {"every_steps": 10, "keep": 1}
    run(a_job(tmp_path, model=model, checkpoint=checkpoint), MemoryStreams(), tmp_path / "run")

    open_ones = [one["id"] for one in health_of(tmp_path / "run")["verdicts"] if one["resolved_at"] is None]
    assert "VANISH_BWD" in open_ones
    assert healthy_steps(tmp_path / "run") == {40: False}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_bad_steps_are_pending_where_nothing_watches_and_across_resumes(
    tmp_path: Path, before: bool, after: bool
) -> None:
    """Health may be turned off or on in between: what a checkpoint is worth doesn't depend on that either."""
    path, checkpoint = tmp_path / "run", {"every_steps": 10, "keep": 9}
    stop = StopRequest()
    job = a_job(tmp_path, health={"enabled": before}, checkpoint=checkpoint)

    def stop_at_20(progress: Progress) -> None:
        if progress.num_steps_done == 20:
            stop.request("test")

    with RunFolder.create(path, dump_job(job.config)) as folder:
        train(job, MemoryStreams(num_epochs=7, poisoned_step=12), folder, stop_at_20, stop=stop)
    job = a_job(tmp_path, health={"enabled": after}, checkpoint=checkpoint)
    with RunFolder.resume(path) as folder:
        train(job, MemoryStreams(num_epochs=7, first_step=20), folder, lambda progress: None, choose_checkpoint(path))

    assert healthy_steps(path) == {10: True, **dict.fromkeys((20, 30, 40, 50, 60), False), 70: True}


@pytest.mark.parametrize("cause", ["", "accepted changes", "environment"])
def test_resume_speaks_unless_the_job_and_the_environment_are_as_they_were(
    tmp_path: Path, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step size a hundred times larger is accepted on request, and what comes of it is told."""
    path, stop = tmp_path / "run", StopRequest()
    job = a_job(tmp_path)

    def stop_at_30(progress: Progress) -> None:
        if progress.num_steps_done == 30:
            stop.request("test")

    with RunFolder.create(path, dump_job(job.config)) as folder:
        train(job, MemoryStreams(), folder, stop_at_30, stop=stop)
    if cause == "environment":
        monkeypatch.setattr(loop, "differing_environment", lambda state: ["torch: then 1, now 2"])
    job = a_job(tmp_path, optimizer={"kind": "adamw", "lr": 100.0})
    resumed = replace(choose_checkpoint(path), is_as_it_was=cause != "accepted changes")
    with RunFolder.resume(path) as folder:
        train(job, MemoryStreams(num_epochs=6, first_step=30), folder, lambda progress: None, resumed)

    told = {verdict["id"] for verdict in health_of(path)["verdicts"]}
    assert ("RESUME" in told) == bool(cause)


def test_telling_is_a_part_of_what_watching_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only ever advances while something is told: all of that is in the account."""
    clock = [0.0]
    monkeypatch.setattr(watch_module.time, "perf_counter", lambda: clock[0])
    original = RunFolder.write_health

    def slow(self: RunFolder, health: dict[str, Any]) -> None:
        clock[0] += 1.0
        original(self, health)

    monkeypatch.setattr(RunFolder, "write_health", slow)
    told: list[float] = []
    monkeypatch.setattr(GradientHealth, "told", lambda self, seconds: told.append(seconds))
    run(a_job(tmp_path, checkpoint={"every_steps": 10}), MemoryStreams(poisoned_step=12), tmp_path / "run")

    assert clock[0] - 1.0 == sum(told) > 0.0, "all but the last one, after which nothing is counted any more"


def test_what_telling_took_is_in_the_summary_and_the_line() -> None:
    pace = Pace()
    pace.total_told_s = 0.5
    pace.ended(step_s=10.0, own_s=0.0, is_deep=False, is_light=True, is_plain=True)
    overhead = pace.overhead()

    assert "5.00% for telling" in str(overhead)
    assert line_text(1, (), (), (), None, overhead).endswith("watching costs 5.0 %")


def test_the_end_of_a_run_is_told_with_its_worst_open_verdict() -> None:
    """Of equals the first one, which is nearest to the cause."""
    warned, worst, later = a_verdict(1), *(a_verdict(number, severity=Severity.CRITICAL) for number in (2, 3))
    behind, slight = a_verdict(4, life=Life.RESOLVED), a_verdict(5, severity=Severity.INFO)

    assert "CRITICAL DEAD (open, step 3..5) in 0, and 2 more" == end_text((behind, later, warned, worst, slight))
    assert "WARN DEAD (open, step 3..5) in 0" == end_text((warned, slight))
    assert "healthy" == end_text((behind, slight))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": {"kind": "mlp", "width": 32, "depth": 12, "activation": "sigmoid"}}, "CRITICAL VANISH_BWD ("),
        ({}, "healthy"),
        ({"health": {"enabled": False}}, ""),
    ],
)
def test_the_summary_of_a_run_says_how_its_gradients_are(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    """Who reads nothing but the last screen should not take a hopeless run for a good one."""
    summary = run(a_job(tmp_path, **fields), MemoryStreams(num_epochs=2), tmp_path / "run")

    assert told == summary.gradients[: len(told)]
    assert bool(summary.num_open_verdicts) == told.startswith("CRITICAL")


def test_the_last_healthy_checkpoint_stays_until_there_is_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are kept, and both are of a run gone wrong: without the older one there would be no way back."""
    path, checkpoint = tmp_path / "run", {"every_steps": 10, "keep": 2}
    streams = MemoryStreams(num_epochs=12, poisoned_step=22)
    kept: list[dict[int, bool]] = []
    job = a_job(tmp_path, checkpoint=checkpoint)

    def note(progress: Progress) -> None:
        if progress.num_steps_done % 10 == 9:
            kept.append(healthy_steps(path))

    save = CheckpointWriter.save

    def save_at_once(self: CheckpointWriter, *arguments: Any) -> None:
        save(self, *arguments)
        self.wait()

    monkeypatch.setattr(CheckpointWriter, "save", save_at_once)
    run(job, streams, path, note)

    assert {20: True, 50: False, 60: False} == kept[6]
    assert {70: False, 80: True} == kept[8], "fifty finite steps later"
    assert {110: True, 120: True} == healthy_steps(path)


def test_what_the_watch_said_of_a_checkpoints_last_step_is_within_its_mark(tmp_path: Path) -> None:
    """Going back to the checkpoint keeps the journal up to there: its own verdict would be lost, and not said again."""
    path = tmp_path / "run"
    run(a_job(tmp_path, checkpoint={"every_steps": 10}), MemoryStreams(poisoned_step=19), path)
    num_lines = read_state(path / "checkpoints" / checkpoint_name(20))["journal_lines"]

    actions = [line["action"] for line in read_lines(path / "journal.jsonl")[:num_lines]]
    assert "verdict" in actions
