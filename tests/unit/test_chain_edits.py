"""Edits of chain files become wishes once; and the timeline that a run begins with is on disk first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.chain_edits import ChainEdits
from headrace.run_timeline import begin_timeline
from pipeline.config import dump_job, load_chain, load_job
from pipeline.config_job import Job
from pipeline.errors import RunFailed
from pipeline.following import START
from pipeline.run_folder import RunFolder
from pipeline.run_history import read_changes
from pipeline.stream_start import StreamStart
from pipeline.swaps import swap_by_command
from pipeline.timeline import Timeline
from trainer.notes import Notes
from trainer.swapping import Wish

N = 100


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """strong.yaml, from epoch 2 on weak.yaml; evaluations under weak.yaml too."""
    for name, chain in (("strong", ["HorizontalFlip"]), ("weak", ["VerticalFlip"])):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(chain))
    schedule = [{"from_epoch": 0, "use": "strong.yaml"}, {"from_epoch": 2, "use": "weak.yaml"}]
    sections = {
        "sources": {"digits": {"kind": "digits"}},
        "train": {"source": "digits", "chain": schedule, "batch_size": 10, "epochs": 4},
        "eval": {"source": "digits", "chain": "weak.yaml"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(sections))
    return load_job(tmp_path / "job.yaml")


class Edited:
    """A job's edits, told one by one instead of by the watcher's thread."""

    def __init__(self, job: Job) -> None:
        self.folder = job.path.parent
        self.wishes: list[Wish] = []
        self.told: list[str] = []
        self.edits = ChainEdits(job, self.wishes.append, Notes(lambda action, **fields: self.told.append(action)))

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        self.edits._edited(path, text.encode())
        return path


def test_an_edit_is_wished_for_with_the_jobs_decode_settings_and_the_files_name(job: Job) -> None:
    """By the name that the timeline has for it."""
    edited = Edited(job)
    path = edited.write("strong.yaml", '["Transpose"]')
    (wish,) = edited.wishes
    assert wish.edited == job.train_file == str(path)
    assert wish.recipe == job.recipe_of(load_chain(path))
    assert wish.why == f"edit of {path}"


def test_two_edits_are_two_wishes_and_another_layout_of_the_same_text_is_none(job: Job) -> None:
    """Comments and blanks shape no bytes; going back is an edit."""
    edited = Edited(job)
    edited.write("strong.yaml", "# the same\n- HorizontalFlip\n")
    assert edited.wishes == []
    edited.write("strong.yaml", '["Transpose"]')
    edited.write("strong.yaml", "- HorizontalFlip")
    assert len({wish.operation for wish in edited.wishes}) == 2


def test_what_cant_be_read_is_refused_in_journal_notes_and_log(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """Everywhere that a user looks."""
    edited = Edited(job)
    path = edited.write("strong.yaml", '[{"HorizontalFlip": {"p": 0.5}')
    assert edited.wishes == []
    assert edited.told == ["swap_refused"]
    for text in (edited.edits._notes.latest()[-1], caplog.text):
        assert f"{path}:1" in text
        assert "expected: YAML" in text


def test_an_edit_is_what_was_seen_to_stand_whatever_the_file_holds_a_moment_later(job: Job) -> None:
    """An editor that saves the same text once more leaves half of it for a moment: that is neither read nor lost."""
    edited = Edited(job)
    path = edited.folder / "strong.yaml"
    for half in ('["Transpose"', '["Trans', ""):
        path.write_text(half)
        edited.edits._edited(path, b'["Transpose"]')
    (wish,) = edited.wishes
    assert wish.recipe is not None
    assert [node.name for node in wish.recipe.chain.nodes] == ["Transpose"]
    assert (wish.recipe.chain.file, edited.told) == (str(path), [])


def test_evaluations_keep_their_chain_and_that_is_told(job: Job) -> None:
    """The same file may also be a train chain, which changes."""
    edited = Edited(job)
    edited.write("weak.yaml", '["Transpose"]')
    assert edited.told == ["edit_waits"]
    assert [wish.edited for wish in edited.wishes] == [str(edited.folder / "weak.yaml")]


def begin(job: Job, folder: RunFolder | None, start: StreamStart | None = None, position: int = 0) -> Any:
    begun = begin_timeline(job, N, start or StreamStart(), position, folder)
    assert {entry.recipe for entry in begun.entries} <= begun.recipes.keys()
    return begun.entries


def test_a_new_runs_timeline_and_its_recipes_are_on_disk_before_it_begins(job: Job, tmp_path: Path) -> None:
    """The schedule included."""
    with RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder:
        entries = begin(job, folder)
        (change,) = read_changes(folder.path)
        assert (change.why, change.entries) == (START, entries)
        assert [(entry.step, entry.start) for entry in entries] == [(0, 0), (20, 2 * N)]
        written = {path.stem for path in (folder.path / "chains").iterdir()}
        assert {entry.recipe for entry in entries} <= written


def at_step_7(job: Job, entries: Any) -> StreamStart:
    recipes = {recipe.digest: recipe for recipe in (job.train, job.later[0].recipe)}
    return StreamStart(entries=entries, recipes=recipes, head_step=3, free_from_step=7)


def test_a_resumed_run_writes_what_has_changed_in_its_job_once_its_chains_were_tried(job: Job, tmp_path: Path) -> None:
    """One line, at the first batch that was never delivered, before anything else is written; none if nothing has."""
    with RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder:
        entries = begin(job, folder)
        start = at_step_7(job, entries)
        assert begin(job, folder, start) == entries
        other = load_job(job.path, ["train.chain=[Transpose]", "train.batch_size=5"])
        begun = begin_timeline(other, N, start, 0, folder)
        assert [(entry.step, entry.recipe) for entry in begun.entries] == [
            (0, job.train.digest),
            (7, other.train.digest),
        ]
        assert (begun.is_settled, begun.is_written, len(read_changes(folder.path))) == (False, False, 1)
        begun.write()
        assert (begun.is_settled, begun.is_written, len(read_changes(folder.path))) == (True, True, 2)
        timeline = Timeline(begun.entries, num_samples=N, last_batch="drop", end_position=4 * N)
        change = swap_by_command(timeline, 9, job.train.digest, "strong.yaml", "headrace swap")
        assert change is not None
        begun.record(job.train, change)
        assert [change.from_step for change in read_changes(folder.path)] == [0, 7, 9]
        assert (folder.path / "chains" / f"{other.train.digest}.yaml").exists()


def test_edits_of_the_time_when_the_run_was_down_are_wishes_and_write_nothing(job: Job, tmp_path: Path) -> None:
    """A chain that is refused must leave the run as it was; the batches go on under what the files held before."""
    with RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder:
        entries = begin(job, folder)
        (tmp_path / "weak.yaml").write_text('["Transpose"]')
        edited = load_job(job.path)
        begun = begin_timeline(edited, N, at_step_7(job, entries), 0, folder)
        assert (begun.entries, begun.edits) == (entries, {edited.later[0].file: edited.later[0].recipe})
        begun.write()
        assert len(read_changes(folder.path)) == 1
        # Where what they held before is refused, it may never have been tried; then the files decide.
        begun = begin_timeline(edited, N, at_step_7(job, entries), 0, folder, with_edits=True)
        assert [(entry.step, entry.recipe) for entry in begun.entries] == [
            (0, job.train.digest),
            (7, job.train.digest),
            (20, edited.later[0].recipe.digest),
        ]
        assert begun.edits == {}


def test_a_resumed_run_wishes_for_what_was_edited_while_it_was_down(job: Job, tmp_path: Path) -> None:
    """Once; what can't be read is refused as in a running job, and another edit of the file is heard of."""
    path = tmp_path / "strong.yaml"
    path.write_text("- [")
    kept = job.train.chain
    edited = Edited(load_job(job.path, kept=lambda config, file: kept if file == str(path) else None))
    edited.edits.catch_up({job.later[0].file: job.train})
    (wish,) = edited.wishes
    assert (wish.recipe, wish.why) == (job.train, f"edit of {job.later[0].file} while the run was down")
    assert edited.told == ["swap_refused"]
    told = edited.edits._notes.latest()[-1]
    assert f"edit of {path} while the run was down: refused; the present chain goes on\n{path}:1" in told
    edited.write("strong.yaml", '["HorizontalFlip"]')  # as it was
    edited.write("strong.yaml", '["Transpose"]')
    assert [wish.why for wish in edited.wishes[1:]] == [f"edit of {path}"]


def test_without_a_folder_a_given_timeline_is_followed_as_it_is(job: Job, tmp_path: Path) -> None:
    """As a repetition of a past run needs it; and a stream may begin anywhere, with the chain of that place."""
    entries = begin(job, None)
    (tmp_path / "strong.yaml").write_text('["Transpose"]')
    recipes = {recipe.digest: recipe for recipe in (job.train, job.later[0].recipe)}
    assert begin(load_job(job.path), None, StreamStart(entries=entries, recipes=recipes)) == entries
    (entry,) = begin(job, None, position=2 * N + 30)
    assert (entry.start, entry.step, entry.recipe) == (2 * N + 30, 0, job.later[0].recipe.digest)


@pytest.mark.parametrize("failing", ["append_event", "_timeline.append"])
def test_a_change_counts_exactly_when_its_line_is_on_disk(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A journal that can't be written afterwards must not make a written boundary void."""

    def full(*_: Any, **__: Any) -> None:
        raise RunFailed("the disk is full")

    with RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder:
        begun = begin_timeline(job, N, StreamStart(), 0, folder)
        timeline = Timeline(begun.entries, num_samples=N, last_batch="drop", end_position=4 * N)
        recipe = job.recipe_of(load_chain(tmp_path / "weak.yaml"))
        change = swap_by_command(timeline, 5, recipe.digest, "weak.yaml", "headrace swap")
        assert change is not None
        target, _, name = f"folder.{failing}".rpartition(".")
        with monkeypatch.context() as patch:
            patch.setattr(folder if target == "folder" else folder._timeline, name, full)
            if failing == "append_event":
                begun.record(recipe, change)
            else:
                with pytest.raises(RunFailed, match="the disk is full"):
                    begun.record(recipe, change)
        is_written = failing == "append_event"
        assert [change.from_step for change in read_changes(folder.path)] == ([0, 5] if is_written else [0])
        assert [entry.step for entry in folder.timeline] == ([0, 5, 20] if is_written else [0, 20])
