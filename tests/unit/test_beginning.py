"""How a run begins: what can be refused is refused before its folder changes, and what is allowed is recorded."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.beginning import Beginning, begin_new, begin_resumed, begin_with_timeline
from headrace.run_timeline import begin_timeline
from pipeline.config import load_job
from pipeline.config_job import Job
from pipeline.errors import ConfigError, RunFailed
from pipeline.plan import timeline_of
from pipeline.run_folder import RunFolder
from pipeline.run_history import read_changes
from pipeline.swaps import swap_by_command
from pipeline.timeline import Timeline
from pipeline.user_code import source_digest

N = 20


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """20 samples in batches of 8 that run over the ends of two epochs; strong.yaml, weak.yaml at hand for a swap."""
    np.savez(tmp_path / "arrays.npz", images=np.zeros((N, 4, 4, 3), np.uint8), labels=np.arange(N) % 2)
    for name, chain in (("strong", ["HorizontalFlip"]), ("weak", ["VerticalFlip"])):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(chain))
    job: dict[str, Any] = {
        "sources": {"arrays": {"kind": "arrays", "path": "arrays.npz"}},
        "train": {"source": "arrays", "chain": "strong.yaml", "batch_size": 8, "epochs": 2, "last_batch": "wrap"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    return tmp_path / "job.yaml"


def timeline(job: Job, begun: Beginning) -> Timeline:
    """The timeline is on disk, as before the first batch."""
    made = begin_timeline(job, N, begun.start, 0, begun.folder)
    made.write()
    return timeline_of(job, "train", N, made.entries)


def trained(job: Job, begun: Beginning, stop: int) -> None:
    """Steps up to `stop`, a swap to weak.yaml from step 3 on, and checkpoints after steps 2 and 4."""
    folder = begun.folder
    made = timeline(job, begun)
    for step in range(begun.start.head_step, stop):
        if step == 3:
            recipe = load_job(job.path, ["train.chain=weak.yaml"]).train
            folder.write_recipe(recipe)
            change = swap_by_command(made, 3, recipe.digest, "weak.yaml", "headrace swap")
            assert change is not None
            folder.append_timeline(change)
            made = made.changed(change)
        if step in (2, 4):
            checkpoint(folder, step, made)
        batch = made.batch(step)
        epoch = batch.start // N
        folder.append_metrics({"step": step, "epoch": epoch, "recipe": batch.recipe, "digest": f"{batch[1:3]}"})
    folder.close()


def checkpoint(folder: RunFolder, step: int, made: Timeline) -> None:
    mark = folder.mark()
    state = {
        "step": step,
        "epoch": made.batch(step - 1).start // N,
        "timeline": [{name: getattr(entry, name) for name in entry.__struct_fields__} for entry in mark.timeline],
        "timeline_lines": mark.timeline_lines,
        "quarantine_lines": mark.quarantine_lines,
        "journal_lines": mark.journal_lines,
        "source_fingerprints": {},
        "classes": ["0", "1"],
    }
    folder.write_checkpoint(step, {}, state)


def resume(job: Job, run: Path, from_step: int | None = None) -> Beginning:
    return begin_resumed(job, run, from_step=from_step, is_branch=from_step is not None, accept_changes=False)


def content(run: Path) -> dict[str, bytes]:
    files = [file for file in run.rglob("*") if file.is_file() and file.name != "run.lock"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.fixture
def run(job_file: Path, tmp_path: Path) -> Path:
    """A run that has done all its five steps; the last batch was short."""
    job = load_job(job_file)
    trained(job, begin_new(job, tmp_path / "run"), 5)
    return tmp_path / "run"


@pytest.mark.parametrize("reason", ["decode.max_pixels=9", "a chain is lost", "no quarantine"])
def test_a_refused_going_back_has_moved_nothing(reason: str, job_file: Path, run: Path) -> None:
    job = load_job(job_file, [reason] if "=" in reason else [])
    if reason == "a chain is lost":  # the one of the swap, which the job can't give back
        (run / "chains" / f"{load_job(job_file, ['train.chain=weak.yaml']).train.digest}.yaml").unlink()
    if reason == "no quarantine":
        path = run / "checkpoints/step-00000002"
        with RunFolder.resume(run) as folder:
            folder.append_quarantine({"stream": "train", "position": 1, "lost_attempt": 0})
            shutil.rmtree(path)
            checkpoint(folder, 2, Timeline(folder.timeline, num_samples=N, last_batch="wrap", end_position=2 * N))
        (run / "quarantine.jsonl").write_bytes(b"")
    before = content(run)
    with pytest.raises((ConfigError, RunFailed)):
        resume(job, run, 4 if reason == "a chain is lost" else 2)
    after = content(run)
    assert {name: text for name, text in after.items() if name in before} == before
    assert after.keys() - before.keys() <= {f"chains/{job.train.digest}.yaml"}, "no more than a chain that was missing"


@pytest.mark.parametrize("name", ["timeline.jsonl", "quarantine.jsonl"])
@pytest.mark.parametrize("damage", ["a flipped bit", "no newline", "a line is missing"])
def test_a_resume_that_a_damaged_end_refuses_has_changed_nothing(
    damage: str, name: str, job_file: Path, run: Path
) -> None:
    """Each time it is tried: what is left of the line may be what a person needs."""
    with RunFolder.resume(run) as folder:
        folder.append_quarantine({"stream": "train", "position": 1, "lost_attempt": 0})
    whole = (run / name).read_bytes()
    flipped = whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:]
    without = b"".join(whole.splitlines(keepends=True)[:-1])
    (run / name).write_bytes({"a flipped bit": flipped, "no newline": whole[:-1], "a line is missing": without}[damage])
    (run / "checkpoints/.partial-step-00000005").mkdir()
    before = content(run)
    for _ in range(2):
        expected = rf"{name}:\d: line \d is damaged" if damage == "a flipped bit" else rf"{name}: .*\n.*\d lines\n"
        with pytest.raises(RunFailed, match=expected):
            resume(load_job(job_file), run)
        after = content(run)
        assert (after[name], after["timeline.jsonl"]) == (before[name], before["timeline.jsonl"])
        if damage == "a flipped bit":
            assert after == before
            assert (run / "checkpoints/.partial-step-00000005").exists()


def test_going_back_with_batches_that_can_not_be_filled_has_moved_nothing(job_file: Path, tmp_path: Path) -> None:
    job, run = load_job(job_file, ["train.last_batch=drop"]), tmp_path / "run"
    trained(job, begin_new(job, run), 4)
    before = content(run)
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        resume(load_job(job_file, ["train.last_batch=drop", "train.batch_size=99"]), run, 2)
    assert content(run) == before


def test_going_back_gives_up_the_swaps_after_it_and_keeps_a_whole_timeline_in_the_branch(
    job_file: Path, run: Path, tmp_path: Path
) -> None:
    """Which gives another run those swaps: its chains stand in the run's own folder."""
    job = load_job(job_file)
    begun = resume(job, run, 2)
    assert [entry.step for entry in begun.start.entries] == [0]
    assert (begun.start.head_step, begun.start.free_from_step) == (2, 2)
    begun.folder.close()
    again = begin_with_timeline(job, tmp_path / "again", run / "branch-1/timeline.jsonl")
    assert [entry.step for entry in again.start.entries] == [0, 3]
    again.folder.close()


def test_the_timeline_that_is_named_is_the_one_that_is_read(job_file: Path, run: Path, tmp_path: Path) -> None:
    """A copy under another name beside it; a copy elsewhere has no chains, and is refused."""
    job = load_job(job_file)
    first, _ = (run / "timeline.jsonl").read_bytes().splitlines(keepends=True)
    (run / "before-the-swap.jsonl").write_bytes(first)
    begun = begin_with_timeline(job, tmp_path / "again", run / "before-the-swap.jsonl")
    assert [entry.step for entry in begun.start.entries] == [0]
    begun.folder.close()
    (tmp_path / "far/away").mkdir(parents=True)
    shutil.copy(run / "timeline.jsonl", tmp_path / "far/away")
    with pytest.raises(ConfigError, match=r"timeline\.jsonl: --timeline\n.*chains/ has.*\n  got:      no chains/"):
        begin_with_timeline(job, tmp_path / "third", tmp_path / "far/away/timeline.jsonl")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("is_given", [True, False])
def test_a_run_killed_while_it_was_created_resumes_as_it_was_asked_for_or_begins_anew(
    is_given: bool, job_file: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--timeline` above all: its swaps are the run, and the job's own chains would train without a word."""
    job, new, kills = load_job(job_file), tmp_path / "new", list[Path]()

    def begin(path: Path) -> Beginning:
        return begin_with_timeline(job, path, run / "timeline.jsonl") if is_given else begin_new(job, path)

    def kill(real: Callable[..., Any], *arguments: Any) -> Any:
        kills.append(tmp_path / f"killed-{len(kills)}")
        shutil.copytree(new, kills[-1])
        return real(*arguments)

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "rename"):
            patch.setattr(os, name, functools.partial(kill, getattr(os, name)))
        asked = begin(new)
    expected = timeline(job, asked).entries
    asked.folder.close()
    kills.append(new)
    resumable = [path for path in kills if (path / "job.yaml").exists()]
    assert 1 < len(resumable) < len(kills)
    for path in kills:
        if path in resumable:
            begun = resume(job, path)
        else:
            with pytest.raises(ConfigError, match=r"a folder without job\.yaml\n.* start a new one"):
                resume(job, path)
            begun = begin(path)
        assert timeline(job, begun).entries == expected, path
        begun.folder.close()


@pytest.mark.parametrize("left", ["a step", "a checkpoint", "an older job"])
def test_a_run_whose_job_was_lost_is_not_begun_anew(left: str, job_file: Path, run: Path) -> None:
    """It is what somebody has trained for days."""
    (run / "job.yaml").unlink()
    if left != "a step":
        for file in run.glob("*.jsonl"):
            file.write_bytes(b"")
    if left != "a checkpoint":
        shutil.rmtree(run / "checkpoints")
    if left == "an older job":
        (run / "job-1.yaml").write_text("job")
    before = content(run)
    with pytest.raises(ConfigError, match="the folder of an earlier run"):
        begin_new(load_job(job_file), run)
    assert content(run) == before


def test_an_incomplete_checkpoint_is_passed_over_with_a_warning_that_names_it(job_file: Path, run: Path) -> None:
    (run / "checkpoints/.partial-step-00000005").mkdir()
    begun = resume(load_job(job_file), run)
    begun.folder.close()
    (warning,) = begun.warnings
    assert "step-00000005 was incomplete and was passed over" in warning


def test_an_edit_of_the_chain_that_evaluations_use_waits_for_the_next_run(job_file: Path, tmp_path: Path) -> None:
    """As in a running job; also where it is a train chain's file too, and may be refused as that."""
    overrides, run = ["eval={source: arrays, chain: strong.yaml}"], tmp_path / "run"
    job = load_job(job_file, overrides)
    trained(job, begin_new(job, run), 3)
    for chain in ('["Transpose"]', '["HorizontalFlop"]'):
        (tmp_path / "strong.yaml").write_text(chain)
        for _ in range(2):  # job.yaml goes on naming the chain in use
            edited = load_job(job_file, overrides)
            begun = resume(edited, run)
            begun.folder.close()
            assert begun.job.eval is not None
            assert (begun.job.eval.digest, begun.job.train) == (job.train.digest, edited.train)
            assert f"edit of {job.eval_file}: evaluations of a run compare under one chain only" in begun.notes[-1]
    begun = resume(load_job(job_file, ["eval={source: arrays, chain: weak.yaml}"]), run)  # another one is no edit
    begun.folder.close()
    assert begun.job.eval is not None
    assert [node.name for node in begun.job.eval.chain.nodes] == ["VerticalFlip"]


def test_more_epochs_leave_the_short_last_batch_as_it_was_trained_on(job_file: Path, run: Path) -> None:
    """Law 2 and 5: it is made again alike from an earlier checkpoint, and the next begins where it stopped."""
    job = load_job(job_file, ["train.epochs=4"])
    for _ in range(2):  # as if it were killed before its first step, and resumed again
        begun = resume(job, run)
        made = timeline(job, begun)
        begun.folder.close()
        assert [made.batch(step)[1:3] for step in (3, 4, 5, 6)] == [(24, 32), (32, 40), (40, 48), (48, 56)]
    # With batches of 8 the two epochs end whole; with three of 20 they do not.
    assert len(read_changes(run)) == 2


def test_more_epochs_after_a_batch_that_the_end_cut_short(job_file: Path, tmp_path: Path) -> None:
    job, run = load_job(job_file, ["train.epochs=1"]), tmp_path / "short"
    trained(job, begin_new(job, run), 3)
    more = load_job(job_file, ["train.epochs=2"])
    for _ in range(2):  # as if it were killed before its first step, and resumed again
        begun = resume(more, run)
        made = timeline(more, begun)
        begun.folder.close()
        assert [made.batch(step)[1:3] for step in range(made.num_steps)] == [
            (0, 8),
            (8, 16),
            (16, 20),
            (20, 28),
            (28, 36),
            (36, 40),
        ]
        assert begun.resumed is not None
        assert begun.resumed.recorded[2].digest == "(16, 20)"
    assert [change.from_step for change in read_changes(run)] == [0, 3]


def test_fewer_epochs_than_a_trained_batch_reaches_into_are_refused(job_file: Path, tmp_path: Path) -> None:
    job, run = load_job(job_file), tmp_path / "long"
    trained(job, begin_new(job, run), 3)  # 16..24 reaches into epoch 1
    with pytest.raises(ConfigError, match=r"train\.epochs\n  expected: more than 1: a batch .* reaches into epoch 1"):
        resume(load_job(job_file, ["train.epochs=1"]), run)
    assert [change.from_step for change in read_changes(run)] == [0]


def test_going_back_compares_the_factory_with_that_of_the_checkpoint_and_going_on_with_the_newest(
    job_file: Path, tmp_path: Path
) -> None:
    """The model's source was edited after step 4, and that was accepted."""
    net = tmp_path / "net.py"
    net.write_text("make = 1\n")
    job, run = load_job(job_file, ["model={kind: factory, factory: net.py:make}"]), tmp_path / "run"
    begun = begin_new(job, run)
    begun.folder.append_event("training_started", factory_sha256=source_digest("net.py", tmp_path))
    trained(job, begun, 5)
    begun = resume(job, run)
    begun.folder.append_event("training_started", factory_sha256="b" * 64)
    trained(job, begun, 5)
    with pytest.raises(ConfigError, match=rf"source of .*net\.py:make\n  expected: 'sha256 {'b' * 64}'"):
        resume(job, run)
    begun = resume(job, run, 2)
    begun.folder.close()
    assert (run / "branch-1").is_dir()


@pytest.mark.parametrize(("change", "is_as_it_was"), [("optimizer.lr=0.5", False), ("train.epochs=3", True)])
def test_a_resume_under_accepted_changes_is_not_called_exact(
    change: str, is_as_it_was: bool, job_file: Path, run: Path
) -> None:
    job = load_job(job_file, [change])
    begun = begin_resumed(job, run, from_step=None, is_branch=False, accept_changes=True)
    begun.folder.close()

    assert begun.resumed is not None
    assert begun.resumed.is_as_it_was == is_as_it_was
