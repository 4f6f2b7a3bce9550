"""Going back: what came after a checkpoint stands in a branch, and nothing is lost."""

import functools
import itertools
import os
import shutil

import pytest

from pipeline.branch import has_later_records, move_later
from pipeline.checkpoint_folder import checkpoint_steps
from pipeline.json_lines import read_lines
from pipeline.resume import choose_checkpoint, require_one_timeline
from pipeline.run_folder import RunFolder
from tests.unit.test_run_history import change, entry

FILES = ("timeline", "quarantine", "journal", "metrics")


@pytest.fixture
def run(tmp_path):
    """Checkpoints after 4, 8 and 12 steps, a swap asked for before the second and after it."""
    path = tmp_path / "run"
    with RunFolder.create(path, "job\n") as folder:
        folder.append_timeline(change(entry(0)))
        for step in range(14):
            if step == 7:
                folder.append_timeline(change(entry(9, "bb"), why="swap"))
            if step == 10:
                folder.append_timeline(change(entry(11, "cc"), why="swap"))
                folder.append_quarantine({"stream": "train", "position": 44, "lost_attempt": 0})
            if step in (4, 8, 12):
                mark = folder.mark()
                state = {
                    "step": step,
                    "timeline": [
                        {"start": each.start, "step": each.step, "recipe": each.recipe, "batch_size": 4}
                        for each in mark.timeline
                    ],
                    "timeline_lines": mark.timeline_lines,
                    "quarantine_lines": mark.quarantine_lines,
                    "journal_lines": mark.journal_lines,
                }
                folder.write_checkpoint(step, {}, state)
                folder.append_event("checkpointed", step=step)
            recipe = "cc" if step >= 11 else "bb" if step >= 9 else "aa"
            folder.append_metrics({"step": step, "epoch": 0, "recipe": recipe, "digest": f"{step:02d}"})
    return path


def all_lines(path):
    return {name: read_lines(path / f"{name}.jsonl") for name in FILES}


def test_the_later_lines_and_checkpoints_move_and_the_earlier_ones_stay(run):
    """A swap that was asked for before the checkpoint stays, though it takes effect after it."""
    before = all_lines(run)
    at_8 = choose_checkpoint(run, 8)
    with RunFolder.resume(run) as folder:
        branches = []
        folder.rewrite(lambda path: branches.append(move_later(path, 8, at_8.state)))
        assert folder.timeline == (entry(0), entry(9, "bb"))
    kept, moved = all_lines(run), all_lines(branches[0])
    for name in ("quarantine", "journal", "metrics"):
        assert kept[name] + moved[name] == before[name]
    assert [line["step"] for line in moved["metrics"]] == list(range(8, 14))
    assert moved["timeline"] == before["timeline"], "whole, as --timeline needs it"
    assert (len(kept["quarantine"]), len(moved["quarantine"])) == (0, 1)
    assert checkpoint_steps(run / "checkpoints") == [4, 8]
    assert checkpoint_steps(run / "branch-1/checkpoints") == [12]
    resumed = choose_checkpoint(run)
    assert (resumed.step, resumed.free_from_step) == (8, 8)
    assert require_one_timeline(run, resumed) == (entry(0), entry(9, "bb"))


def snapshot(path):
    """Every file's content but the journal, which tells of each resume."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in ("run.lock", "journal.jsonl")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


class Killed(BaseException):
    """What SIGKILL is to a test in one process: nothing of ours runs after it."""


def test_a_kill_at_any_moment_of_going_back_leaves_all_of_it_done_or_nothing(run, tmp_path, monkeypatch):
    """Once the next attempt has looked at the folder: a mixture would go on under swaps that were given up."""
    state = choose_checkpoint(run, 8).state
    before = snapshot(run)
    shutil.copytree(run, tmp_path / "calm")
    with RunFolder.resume(tmp_path / "calm") as folder:
        folder.rewrite(lambda path: move_later(path, 8, state) and None)
    after = snapshot(tmp_path / "calm")
    assert after != before
    outcomes, told = [], []
    for num_done in range(1000):
        path = tmp_path / f"killed-{num_done}"
        shutil.copytree(run, path)
        left = itertools.count(num_done, -1)

        def counted(real, *args, left=left, **options):
            if next(left) == 0:
                raise Killed
            return real(*args, **options)

        with monkeypatch.context() as patch:
            for name in ("mkdir", "rename", "unlink", "rmdir", "fsync"):
                patch.setattr(os, name, functools.partial(counted, getattr(os, name)))
            try:
                move_later(path, 8, state)
            except Killed:
                is_killed = True
            else:
                is_killed = False
        with RunFolder.resume(path) as folder:
            assert not list(path.rglob(".*"))
        outcomes.append(snapshot(path) == after)
        assert outcomes[-1] or snapshot(path) == before, num_done
        assert all("going back to step 8 was cut short" in each for each in folder.tidied)
        told.append(len(folder.tidied))
        if not is_killed:
            break
    assert outcomes == sorted(outcomes)
    assert told[outcomes.index(True)] == 1
    assert 10 < outcomes.index(True) < len(outcomes) - 5, "it was killed before its decision and after it"


def test_a_second_branch_stands_beside_the_first(run):
    for step in (12, 4, 0):
        with RunFolder.resume(run) as folder:
            state = choose_checkpoint(run, step).state
            folder.rewrite(lambda path, step=step, state=state: move_later(path, step, state) and None)
    assert [len(read_lines(run / f"branch-{number}/metrics.jsonl")) for number in (1, 2, 3)] == [2, 8, 4]
    assert checkpoint_steps(run / "branch-3/checkpoints") == [4]
    assert read_lines(run / "metrics.jsonl") == []
    assert len(read_lines(run / "timeline.jsonl")) == 1


def test_only_what_went_on_after_a_checkpoint_has_later_records(run):
    for step in (4, 8, 12):
        assert has_later_records(run, step, choose_checkpoint(run, step).state)
    with RunFolder.resume(run) as folder:
        folder.rewrite(lambda path: move_later(path, 12, choose_checkpoint(run, 12).state) and None)
    assert not has_later_records(run, 12, choose_checkpoint(run, 12).state)
