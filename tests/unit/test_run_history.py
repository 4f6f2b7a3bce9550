"""What a run's folder says of its past, and how its damage is told."""

import json
import shutil

import msgspec
import pytest

from pipeline.config import dump_job, load_job, parse_chain
from pipeline.errors import ConfigError, RunFailed
from pipeline.json_lines import encode_line, read_lines
from pipeline.quarantine import attempts_at, entry_of
from pipeline.resume import choose_checkpoint, require_one_timeline, require_whole_quarantine
from pipeline.run_folder import RunFolder, live_run
from pipeline.run_history import (
    has_had_checkpoints,
    job_text,
    kept_chain,
    load_recipe,
    load_run_job,
    num_unrecorded_steps,
    read_changes,
    read_metrics,
    read_quarantine,
    read_timeline,
)
from pipeline.timeline import TimelineChange, TimelineEntry

JOB = """
sources: {digits: {kind: digits}}
plugins: [mine.py]
train:
  source: digits
  epochs: 3
  chain: [{from_epoch: 0, use: strong.yaml}, {from_epoch: 1, use: [Blur]}, {from_epoch: 2, use: weak.yaml}]
eval: {source: digits, chain: eval.yaml}
"""


@pytest.fixture
def job_file(tmp_path):
    (tmp_path / "mine.py").write_text("ONE = 1\n")
    for name, chain in (("strong", ["Affine"]), ("weak", ["HorizontalFlip"]), ("eval", [])):
        (tmp_path / f"{name}.yaml").write_text(json.dumps([*chain, "Normalize", "ToTensorV2"]))
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path / "job.yaml"


def new_run(job, path):
    folder = RunFolder.create(path, job_text(job, dump_job(job.config)))
    for recipe in (job.train, *(later.recipe for later in job.later), job.eval):
        folder.write_recipe(recipe)
    return folder


def entry(step, recipe="aa", start=None):
    return TimelineEntry(start=4 * step if start is None else start, step=step, recipe=recipe, batch_size=4)


def change(*entries, why="start"):
    return TimelineChange(from_step=entries[0].step, entries=entries, why=why)


def test_the_runs_job_is_the_one_it_was_begun_with_whatever_became_of_its_chain_files(job_file, tmp_path):
    job = load_job(job_file)
    new_run(job, tmp_path / "run").close()
    (tmp_path / "strong.yaml").write_text(json.dumps(["Normalize"]))
    (tmp_path / "weak.yaml").unlink()
    again = load_run_job(tmp_path / "run")
    assert again.config == job.config
    assert (again.train.digest, again.eval.digest) == (job.train.digest, job.eval.digest)
    assert (again.train_file, again.eval_file) == (str(tmp_path / "strong.yaml"), str(tmp_path / "eval.yaml"))
    assert [(each.from_epoch, each.recipe.digest, each.file) for each in again.later] == [
        (each.from_epoch, each.recipe.digest, each.file) for each in job.later
    ]


def test_a_chain_file_that_can_not_be_used_is_replaced_by_what_the_run_read_last_from_it(job_file, tmp_path):
    """A bad edit ends no run that is resumed; where the run has no such chain, or not as it was, the job is refused."""
    job, run = load_job(job_file), tmp_path / "run"
    live = job.recipe_of(parse_chain(b"[Transpose, Normalize, ToTensorV2]", "strong.yaml"))
    with new_run(job, run) as folder:
        folder.append_timeline(change(entry(0, job.train.digest)))
        folder.write_recipe(live)
        folder.append_timeline(TimelineChange(from_step=4, entries=(), why="edit", files={job.train_file: live.digest}))
    for name in ("strong", "eval"):
        (tmp_path / f"{name}.yaml").write_text("- [")

    def resumed():
        return load_job(job_file, kept=lambda config, file: kept_chain(run, file))

    again = resumed()
    assert (again.train.digest, again.eval.digest) == (live.digest, job.eval.digest)
    assert sorted(again.refused_files) == [job.eval_file, job.train_file]
    assert str(again.refused_files[job.train_file][0]).startswith(f"{job.train_file}:1")
    assert kept_chain(run, str(tmp_path / "other.yaml")) is None
    path = run / f"chains/{live.digest}.yaml"
    for damaged in (path.read_text().replace("Transpose", "HorizontalFlip"), "", None):
        path.unlink() if damaged is None else path.write_text(damaged)
        with pytest.raises(ConfigError, match=r"strong\.yaml:1"):
            resumed()
    shutil.rmtree(run)
    with pytest.raises(ConfigError, match=r"strong\.yaml:1(.|\n)*eval\.yaml:1|eval\.yaml:1(.|\n)*strong\.yaml:1"):
        resumed()


def test_a_runs_job_that_an_older_version_spelled_otherwise_is_the_same_job(job_file, tmp_path):
    """Its chains are no other schedule for having been written with `..`."""
    job = load_job(job_file)
    new_run(job, tmp_path / "run").close()
    path = tmp_path / "run/job.yaml"
    path.write_text(path.read_text().replace(f"{tmp_path}/", f"{tmp_path}/run/../"))
    again = load_run_job(tmp_path / "run")
    assert (again.config.train.chain, again.config.eval.chain) == (job.config.train.chain, job.config.eval.chain)
    assert (again.train_file, again.later, again.eval_file) == (job.train_file, again.later, job.eval_file)
    assert [each.file for each in again.later] == [each.file for each in job.later]


def test_a_recipe_comes_back_from_its_digest_and_what_differs_is_told_apart(job_file, tmp_path):
    """An edited chain file, and a plug-in that is another now, call for different things."""
    job = load_job(job_file)
    new_run(job, tmp_path / "run").close()
    assert load_recipe(tmp_path / "run", job.train.digest, job).digest == job.train.digest
    (tmp_path / "mine.py").write_text("ONE = 2\n")
    with pytest.raises(ConfigError, match=r"plug-in mine\n  expected: sha256 .*\n.*\n.*restore the plug-in"):
        load_recipe(tmp_path / "run", job.train.digest, load_job(job_file))
    (tmp_path / "mine.py").write_text("ONE = 1\n")
    path = tmp_path / f"run/chains/{job.train.digest}.yaml"
    path.write_text(path.read_text().replace("Affine", "Perspective"))
    with pytest.raises(ConfigError, match=r"expected: the chain of recipe .*, as it was written"):
        load_recipe(tmp_path / "run", job.train.digest, job)


def test_the_timeline_is_what_its_changes_make_of_it(tmp_path):
    with RunFolder.create(tmp_path / "run", "job\n") as folder:
        assert folder.timeline == ()
        folder.append_timeline(change(entry(0), entry(20, "bb")))
        folder.append_timeline(change(entry(7, "cc"), entry(20, "bb"), why="headrace swap"))
        folder.append_timeline(change(entry(12, "dd"), entry(30, "bb"), why="edit"))
        expected = (entry(0), entry(7, "cc"), entry(12, "dd"), entry(30, "bb"))
        assert folder.timeline == expected
    assert read_timeline(tmp_path / "run") == expected
    assert [each.why for each in read_changes(tmp_path / "run")] == ["start", "headrace swap", "edit"]


def test_of_a_step_that_was_done_twice_the_last_attempt_counts(tmp_path):
    with RunFolder.create(tmp_path / "run", "job\n") as folder:
        folder.append_metrics({"step": 0, "loss": 1.0})
        folder.append_metrics({"step": 1, "loss": 2.0})
        folder.append_quarantine({"stream": "train", "position": 9, "lost_attempt": 0})
    with RunFolder.resume(tmp_path / "run") as folder:
        assert folder.attempt == 2
        folder.append_metrics({"step": 1, "loss": 3.0})
        folder.append_quarantine({"stream": "train", "position": 9, "lost_attempt": 1})
        folder.append_quarantine({"stream": "eval", "position": 2, "lost_attempt": 0})
    metrics = read_metrics(tmp_path / "run")
    assert [(line["attempt"], line["loss"]) for line in metrics.values()] == [(1, 1.0), (2, 3.0)]
    train, held_out = read_quarantine(tmp_path / "run").values()
    assert (attempts_at(train, 1), attempts_at(held_out, 1)) == ({9: 2}, {2: 1})


def test_a_sample_lost_in_an_evaluation_is_replaced_from_that_one_on():
    """Entries of older versions tell no step: they hold for all."""
    records = [
        {"position": 5, "lost_attempt": 0, "step": 20},
        {"position": 5, "lost_attempt": 1, "step": 30},
        {"position": 5, "lost_attempt": 0, "step": 40},  # of an attempt that went on from before step 30
        {"position": 6, "lost_attempt": 0},
    ]
    entries = [entry_of(record) for record in records]
    found = [attempts_at(entries, step) for step in (0, 19, 20, 30, 40)]
    assert found == [{6: 1}, {6: 1}, {5: 1, 6: 1}, {5: 2, 6: 1}, {5: 2, 6: 1}]


def test_a_resumed_folder_is_tidied_of_what_a_crash_left(tmp_path):
    """Half a line, half a file, half a checkpoint; and a checkpoint that was being replaced is put back."""
    path = tmp_path / "run"
    with RunFolder.create(path, "job\n") as folder:
        folder.append_metrics({"step": 0, "epoch": 0, "recipe": "aa", "digest": "00"})
        checkpoint = folder.write_checkpoint(
            8, {"model.pt": lambda file: file.write_bytes(b"abc") and None}, {"step": 8}
        )
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"attempt":1,"st')
    (path / "checkpoints/.partial-step-00000009").mkdir()
    (path / "chains/.partial-aa.yaml").write_text("- Bl")
    checkpoint.rename(checkpoint.with_name(".replaced-step-00000008"))
    with RunFolder.resume(path) as folder:
        folder.append_metrics({"step": 1, "epoch": 0, "recipe": "aa", "digest": "00"})
    assert list(read_metrics(path)) == [0, 1]
    assert folder.tidied == ("the checkpoint step-00000009 was incomplete and was passed over: it was being written",)
    assert "checkpoint_incomplete" in {line["action"] for line in read_lines(path / "journal.jsonl")}
    assert list(path.rglob(".*")) == []
    assert choose_checkpoint(path).step == 8


def test_what_is_left_of_a_checkpoint_that_was_being_thinned_out_is_no_news(tmp_path, monkeypatch):
    path = tmp_path / "run"
    with RunFolder.create(path, "job\n") as folder:
        for step in (4, 8):
            folder.write_checkpoint(step, {}, {"step": step})
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda _: None)  # as a kill before it
            folder.keep_checkpoints(1)
    with RunFolder.resume(path) as folder:
        assert folder.tidied == ()
    assert [each.name for each in (path / "checkpoints").iterdir()] == ["step-00000008"]


def test_only_a_runs_folder_can_be_resumed(tmp_path):
    for path, got in ((tmp_path / "none", "no such folder"), (tmp_path, "an empty folder")):
        with pytest.raises(ConfigError, match=got):
            RunFolder.resume(path)


def test_operators_find_a_run_that_is_going_on_and_no_other(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(path, "job\n") as folder:
        assert live_run(path).endpoint == ""
        folder.publish("ipc:///some/where", "abc/train")
        live = live_run(path)
        assert (live.endpoint, live.stream, live.pid > 0) == ("ipc:///some/where", "abc/train", True)
        folder.publish("ipc:///x", "b/train")
        assert live_run(path).endpoint == "ipc:///x"
        with pytest.raises(ConfigError, match="a run that is going on"):
            RunFolder.resume(path)
    with pytest.raises(ConfigError, match="a run that has ended"):
        live_run(path)
    with pytest.raises(ConfigError, match="no such folder"):
        live_run(tmp_path / "none")


# --- one timeline in every file ---------------------------------------------------------------------------------


def run_with_a_swap(path):
    """A checkpoint after 8 steps, a swap from step 10 on, and 12 steps."""
    with RunFolder.create(path, "job\n") as folder:
        folder.append_timeline(change(entry(0)))
        state = {"step": 8, "timeline": [{"start": 0, "step": 0, "recipe": "aa", "batch_size": 4, "file": ""}]}
        folder.write_checkpoint(8, {}, {**state, "timeline_lines": 1})
        folder.append_timeline(change(entry(10, "bb"), why="headrace swap"))
        for step in range(12):
            folder.append_metrics({"step": step, "epoch": 0, "recipe": "bb" if step >= 10 else "aa", "digest": "00"})
    return path


def test_a_timeline_that_all_files_agree_on_is_the_runs(tmp_path):
    path = run_with_a_swap(tmp_path / "run")
    resumed = choose_checkpoint(path)
    assert require_one_timeline(path, resumed) == (entry(0), entry(10, "bb"))
    assert (resumed.step, resumed.free_from_step, sorted(resumed.recorded)) == (8, 12, [8, 9, 10, 11])


def test_chain_files_that_an_older_version_spelled_otherwise_are_known_again(tmp_path):
    """With `..`, or by way of a link; the checkpoint's copy of the timeline as well."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "link").symlink_to("jobs")
    path, name = tmp_path / "run", str(tmp_path / "jobs" / "strong.yaml")
    spelled = [str(tmp_path / "jobs/../jobs/strong.yaml"), str(tmp_path / "link/strong.yaml")]
    entries = [msgspec.structs.replace(entry(10 * number), file=file) for number, file in enumerate(spelled)]
    with RunFolder.create(path, "job\n") as folder:
        change = TimelineChange(from_step=0, entries=tuple(entries), why="start", files={spelled[0]: "aa"})
        folder.append_timeline(change)
        state = {"step": 8, "timeline": msgspec.to_builtins(entries), "timeline_lines": 1}
        folder.write_checkpoint(8, {}, state)
    assert [each.file for each in require_one_timeline(path, choose_checkpoint(path))] == [name, name]
    assert read_changes(path)[0].files == {name: "aa"}


def test_a_swap_that_is_missing_from_the_timeline_is_noticed(tmp_path):
    """By the journal, which counts its lines; and, were that cut as well, by the steps done under it."""
    path = run_with_a_swap(tmp_path / "run")
    lines = (path / "timeline.jsonl").read_bytes().splitlines(keepends=True)
    (path / "timeline.jsonl").write_bytes(lines[0])
    with pytest.raises(RunFailed, match=r"expected: 2 lines\n  got:      1: lines are missing"):
        require_one_timeline(path, choose_checkpoint(path))
    (path / "journal.jsonl").unlink()
    with pytest.raises(RunFailed, match=r"expected: recipe bb at step 10"):
        require_one_timeline(path, choose_checkpoint(path))
    (path / "metrics.jsonl").unlink()
    assert require_one_timeline(path, choose_checkpoint(path)) == (entry(0),)  # nothing tells of it any more
    (path / "timeline.jsonl").unlink()
    with pytest.raises(RunFailed, match=r"expected: 1 lines\n  got:      0"):
        require_one_timeline(path, choose_checkpoint(path))


def test_a_timeline_that_is_not_the_checkpoints_is_noticed(tmp_path):
    path = run_with_a_swap(tmp_path / "run")
    lines = (path / "timeline.jsonl").read_bytes().splitlines(keepends=True)
    (path / "timeline.jsonl").write_bytes(lines[1] + lines[0])
    with pytest.raises(RunFailed, match=r"as in checkpoints/step-00000008/state\.json"):
        require_one_timeline(path, choose_checkpoint(path))


def test_a_change_that_would_rewrite_what_was_trained_on_is_noticed(tmp_path):
    """Behind the checkpoint, yet from a step before it: no run writes that."""
    path = run_with_a_swap(tmp_path / "run")
    first, _ = (path / "timeline.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("metrics", "journal"):
        (path / f"{name}.jsonl").unlink()  # these would tell of it as well
    for step, is_refused in ((7, True), (8, False)):
        later = msgspec.to_builtins(change(entry(step, "cc"), why="swap"))
        (path / "timeline.jsonl").write_bytes(first + encode_line({"attempt": 1, **later}))
        if is_refused:
            with pytest.raises(RunFailed, match=r"changes from step 8 on .*\n  got:      one from 7"):
                require_one_timeline(path, choose_checkpoint(path))
        else:
            assert len(require_one_timeline(path, choose_checkpoint(path))) == 2


def test_no_boundary_lies_below_a_damaged_checkpoint_though_its_metrics_are_lost(tmp_path):
    """Its steps were trained on, whatever else tells of them."""
    path = tmp_path / "run"
    with RunFolder.create(path, "job\n") as folder:
        for step in (4, 8, 12):
            folder.write_checkpoint(step, {}, {"step": step})
    for step in (8, 12):
        (path / f"checkpoints/step-{step:08d}/state.json").write_text("{}")
    resumed = choose_checkpoint(path)
    assert (resumed.step, resumed.last_recorded_step, resumed.free_from_step) == (4, -1, 12)


@pytest.mark.parametrize("knows", ["journal", "checkpoint"])
def test_a_substituted_sample_that_is_missing_from_the_quarantine_is_noticed(knows, tmp_path):
    """Law 7; made again, its sample would be another than the one that was trained on."""
    path = tmp_path / "run"
    with RunFolder.create(path, "job\n") as folder:
        folder.write_checkpoint(4, {}, {"step": 4, "quarantine_lines": 0, "journal_lines": 0})
        for position in (3, 9):
            folder.append_quarantine({"stream": "train", "position": position, "lost_attempt": 0})
        if knows == "checkpoint":
            folder.write_checkpoint(8, {}, {"step": 8, "quarantine_lines": folder.mark().quarantine_lines})
    if knows == "checkpoint":
        (path / "journal.jsonl").unlink()
    require_whole_quarantine(path, choose_checkpoint(path))
    whole = (path / "quarantine.jsonl").read_bytes()
    for damaged, num_lines in ((whole[:-9], 1), (b"", 0)):
        (path / "quarantine.jsonl").write_bytes(damaged)
        with pytest.raises(RunFailed, match=rf"expected: 2 lines\n  got:      {num_lines}: lines are missing"):
            require_whole_quarantine(path, choose_checkpoint(path))
    (path / "quarantine.jsonl").write_bytes(whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(RunFailed, match=r"quarantine\.jsonl:2: line 2 is damaged"):
        require_whole_quarantine(path, choose_checkpoint(path))
    (path / "quarantine.jsonl").write_bytes(b"")
    require_whole_quarantine(path, choose_checkpoint(path, 4), is_going_back=True)


def test_steps_without_a_line_are_counted_and_lost_checkpoints_are_known_of(tmp_path):
    """Who deletes metrics.jsonl or all checkpoints is told what can't be checked, or is done again."""
    with RunFolder.create(tmp_path / "run", "name: run\n") as folder:
        assert not has_had_checkpoints(folder.path)
        for step in (0, 1, 1, 3, 7):
            folder.append_metrics({"step": step})
        folder.append_event("checkpointed", step=4)
        assert num_unrecorded_steps(folder.path, 4) == 1
        assert num_unrecorded_steps(folder.path, 0) == 0
        assert has_had_checkpoints(folder.path)
        (folder.path / "metrics.jsonl").unlink()
        assert num_unrecorded_steps(folder.path, 4) == 4
