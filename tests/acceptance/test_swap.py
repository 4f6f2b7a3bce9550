"""Chains swapped in a running stream: one boundary each, on disk first, replayed exactly; a bad one changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from headrace import Stream
from headrace.embedded import Streams, open_streams
from pipeline.config import dump_job, load_chain, load_job
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.operator import Operator, new_operation
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.run_history import kept_chain, load_recipe, read_changes, read_timeline
from pipeline.service_messages import AskSwap
from pipeline.stream_start import StreamStart
from pipeline.timeline import TimelineEntry
from tests.processes import DEADLINE_S, lines_of, write_job

STRONG: list[Any] = [{"HorizontalFlip": {"p": 0.5}}, {"RandomCrop": {"height": 16, "width": 16}}]
WEAK: list[Any] = [{"CenterCrop": {"height": 16, "width": 16}}]
FROM_EPOCH = 40
"""Far enough for every edit to be noticed before, in a stream that has ten batches an epoch."""
TAIL: list[Any] = ["Normalize", "ToTensorV2"]


class Taken(NamedTuple):
    """What must be equal in a repetition."""

    step: int
    start: int
    recipe: str
    digest: str


def write_chain(path: Path, nodes: list[Any]) -> str:
    """Write the chain; its recipe's digest follows from the text."""
    path.write_text(json.dumps([*nodes, *TAIL]))
    return str(path)


@pytest.fixture
def job(tmp_path: Path, arrays: Path) -> Job:
    """Batches of 10 out of 100 arrays; strong.yaml, from epoch 40 on weak.yaml."""
    write_chain(tmp_path / "strong.yaml", STRONG)
    write_chain(tmp_path / "weak.yaml", WEAK)
    return load_job(job_file(tmp_path, arrays))


def job_file(folder: Path, arrays: Path, **fields: Any) -> Path:
    chain = [{"from_epoch": 0, "use": "strong.yaml"}, {"from_epoch": FROM_EPOCH, "use": "weak.yaml"}]
    train = {"source": "photos", "chain": chain, "batch_size": 10, "epochs": 200}
    sources = {"photos": {"kind": "arrays", "path": str(arrays)}}
    made = {"sources": sources, "train": train, "device": "cpu", "window_batches": 3, "slice_size": 4, **fields}
    return write_job(folder, **made)


def recipe_of(job: Job, file: str) -> Recipe:
    return job.recipe_of(load_chain(job.path.parent / file))


def take(streams: Streams) -> Taken:
    raw = streams.train.next_raw()
    assert raw is not None
    return Taken(raw.range.step, raw.range.start, raw.range.recipe, raw.digest)


def take_until(streams: Streams, taken: list[Taken], recipe: str) -> None:
    """Waits until the recipe stands in the timeline, then takes batches up to the first one made under it."""
    wait_for(lambda: recipe in {entry.recipe for entry in streams.timeline.entries}, f"no boundary of {recipe}")
    while taken[-1].recipe != recipe:
        taken.append(take(streams))


def take_more(streams: Streams, taken: list[Taken], count: int) -> None:
    taken += [take(streams) for _ in range(count)]


def wait_for(condition: Any, what: str) -> None:
    give_up_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.05)


def events(run_dir: Path, action: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(run_dir / "journal.jsonl") if line["action"] == action]


def start_of(folder: Path, job: Job, head_step: int = 0) -> StreamStart:
    """The run again, from its folder alone."""
    entries = read_timeline(folder)
    recipes = {entry.recipe: load_recipe(folder, entry.recipe, job) for entry in entries}
    return StreamStart(entries=entries, recipes=recipes, head_step=head_step, free_from_step=head_step)


def again(job: Job, start: StreamStart, count: int, num_workers: int) -> list[Taken]:
    with open_streams(job, num_workers, start=start) as streams:
        return [take(streams) for _ in range(count)]


def boundaries(taken: list[Taken]) -> list[tuple[int, str]]:
    """First step of each stretch of one recipe."""
    return [(next(group).step, recipe) for recipe, group in groupby(taken, key=lambda batch: batch.recipe)]


def entries_of(entries: tuple[TimelineEntry, ...]) -> list[tuple[int, str]]:
    return [(entry.step, entry.recipe) for entry in entries]


@pytest.fixture
def folder(job: Job, tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "run", dump_job(job.config)) as made:
        yield made


def test_edits_a_schedule_and_an_operators_swap_are_replayed_exactly(job: Job, folder: RunFolder) -> None:
    """Given the timeline, another run makes the same batches, also from its middle, with any number of workers."""
    strong, weak = job.train.digest, job.later[0].recipe.digest
    strong_file = job.path.parent / "strong.yaml"
    other_file = job.path.parent / "other.yaml"
    with open_streams(job, 2, folder) as streams:
        taken = [take(streams)]
        write_chain(strong_file, [{"VerticalFlip": {"p": 0.9}}, *STRONG])
        edited = recipe_of(job, "strong.yaml").digest
        take_until(streams, taken, edited)
        assert taken[0].recipe == strong
        take_until(streams, taken, weak)  # as scheduled, though the chain before it was edited
        assert taken[-1].step == 10 * FROM_EPOCH
        write_chain(other_file, [{"Transpose": {"p": 1.0}}, *WEAK])
        other = recipe_of(job, "other.yaml")
        answer = swap(streams, AskSwap(operation=new_operation(), chain=other.chain))
        take_until(streams, taken, other.digest)
        assert f"takes over at step {taken[-1].step}" in answer
        assert weak in swap(streams, AskSwap(operation=new_operation()))  # back to the one before
        take_until(streams, taken, weak)
        take_more(streams, taken, 20)
        entries = streams.timeline.entries
    assert [batch.step for batch in taken] == list(range(len(taken)))
    assert boundaries(taken) == entries_of(entries) == entries_of(read_timeline(folder.path))
    assert [recipe for _, recipe in boundaries(taken)] == [strong, edited, weak, other.digest, weak]
    assert [change.why.split()[0] for change in read_changes(folder.path)] == ["start", "edit", "headrace", "headrace"]
    assert again(job, start_of(folder.path, job), len(taken), num_workers=1) == taken
    middle = len(taken) // 2
    assert again(job, start_of(folder.path, job, middle), len(taken) - middle, num_workers=0) == taken[middle:]


def swap(streams: Streams, ask: AskSwap) -> str:
    """What an operator is answered; nobody takes batches meanwhile."""
    services = streams._services
    assert services is not None
    with Operator(services.dispatcher) as operator:
        return operator.done(ask, lambda: None)


@pytest.mark.parametrize("num_workers", [2, 0])
def test_a_bad_edit_is_refused_with_its_place_and_the_old_chain_goes_on(
    job: Job, folder: RunFolder, num_workers: int
) -> None:
    """Text that is no YAML, a transform that does not exist, one that fails on real samples, another shape."""
    file = job.path.parent / "strong.yaml"
    bad: dict[str, list[Any] | str] = {
        "expected: YAML": "- HorizontalFlip: {p: 0.5",
        "HorizontalFlop": [{"HorizontalFlop": {"p": 0.5}}],
        "RandomCrop": [{"RandomCrop": {"height": 500, "width": 500}}],
        "shape: free": [{"Resize": {"height": 20, "width": 20}}],
    }
    with open_streams(job, num_workers, folder) as streams:
        taken = [take(streams)]
        for number, (hint, text) in enumerate(bad.items(), start=1):
            if isinstance(text, str):
                file.write_text(text)
            else:
                write_chain(file, text)

            def refused(number: int = number) -> bool:
                if num_workers == 0:
                    take_more(streams, taken, 1)  # there, edits are looked at between batches
                return len(events(folder.path, "swap_refused")) == number

            wait_for(refused, hint)
            note = events(folder.path, "swap_refused")[-1]["note"]
            assert hint in note
            assert f"{file}:1" in note
            assert streams._notes.latest()[-1].endswith(note)
        write_chain(file, [{"VerticalFlip": {"p": 0.5}}, *STRONG])
        good = recipe_of(job, "strong.yaml").digest
        if num_workers == 0:
            wait_for(lambda: events(folder.path, "swap") or take_more(streams, taken, 1), "no swap")
        take_until(streams, taken, good)
    assert {batch.recipe for batch in taken[:-1]} == {job.train.digest}
    assert len(read_changes(folder.path)) == 2


STUCK = """
import time
from albumentations import ImageOnlyTransform

class StuckAtFirst(ImageOnlyTransform):
    def __init__(self, p: float = 0.5):
        time.sleep(3600)

class StuckAtWork(ImageOnlyTransform):
    def apply(self, img, **params):
        time.sleep(3600)
"""


@pytest.mark.long
def test_a_chain_that_hangs_is_refused_with_its_place_and_the_next_swap_goes_through(
    tmp_path: Path, arrays: Path, job: Job
) -> None:
    """Its only worker is replaced each time; hang_s is short here so that nobody waits for half a minute."""
    (tmp_path / "stuck.py").write_text(STUCK)
    hanging = load_job(job_file(tmp_path, arrays, plugins=["stuck.py"], hang_s=2.0))
    file = tmp_path / "other.yaml"
    with open_streams(hanging, 1) as streams:
        taken = [take(streams)]
        for name, place in (("StuckAtFirst", "in __init__"), ("StuckAtWork", "in apply")):
            write_chain(file, [{name: {"p": 1.0}}, *STRONG])
            with pytest.raises(ConfigError, match=rf"other\.yaml:1: chain\n(.|\n)*hung.*stuck\.py.*{place}"):
                swap(streams, AskSwap(operation=new_operation(), chain=load_chain(file)))
            take_more(streams, taken, 5)
        write_chain(file, [{"Transpose": {"p": 1.0}}, *STRONG])
        answer = swap(streams, AskSwap(operation=new_operation(), chain=load_chain(file)))
        take_until(streams, taken, recipe_of(hanging, "other.yaml").digest)
        assert f"takes over at step {taken[-1].step}" in answer
    assert [batch.step for batch in taken] == list(range(len(taken)))


@pytest.mark.long
def test_of_twenty_edits_in_two_seconds_the_last_one_wins(job: Job, folder: RunFolder) -> None:
    """Half of them half written; no batch mixes two of them, as a repetition shows."""
    file = job.path.parent / "strong.yaml"
    with open_streams(job, 2, folder) as streams:
        taken = [take(streams)]
        for number in range(20):
            if number % 2:
                file.write_text('[{"HorizontalFlip": {"p"')
            else:
                write_chain(file, [{"VerticalFlip": {"p": (number + 1) / 20}}, *STRONG])
            take_more(streams, taken, 1)
            time.sleep(0.1)
        partial = file.with_suffix(".new")
        write_chain(partial, [{"VerticalFlip": {"p": 1.0}}, *STRONG])
        partial.rename(file)  # as editors do
        last = recipe_of(job, "strong.yaml").digest
        take_until(streams, taken, last)
        take_more(streams, taken, 3)
    assert boundaries(taken) == entries_of(read_timeline(folder.path))[: len(boundaries(taken))]
    assert again(job, start_of(folder.path, job), len(taken), num_workers=2) == taken


@pytest.mark.long
def test_an_edit_made_while_the_job_was_down_lands_at_the_first_batch_never_delivered(
    job: Job, folder: RunFolder
) -> None:
    """What was delivered is made again as it was, from the checkpoint on."""
    with open_streams(job, 1, folder) as streams:
        taken: list[Taken] = []
        take_more(streams, taken, 12)
    write_chain(job.path.parent / "strong.yaml", [{"VerticalFlip": {"p": 1.0}}, *STRONG])
    edited = load_job(job.path)
    start = start_of(folder.path, edited, head_step=5)
    resumed = StreamStart(entries=start.entries, recipes=start.recipes, head_step=5, free_from_step=12)
    with open_streams(edited, 2, folder, start=resumed) as streams:
        repeated: list[Taken] = []
        take_more(streams, repeated, 40)
    assert repeated[:7] == taken[5:]
    assert boundaries(repeated) == [(5, job.train.digest), (12, edited.train.digest)]
    assert entries_of(streams.timeline.entries)[2:] == [(10 * FROM_EPOCH, job.later[0].recipe.digest)]
    assert read_changes(folder.path)[-1].why.startswith("edit of ")
    with open_streams(edited, 1, folder, start=start_of(folder.path, edited, head_step=45)):
        assert len(read_changes(folder.path)) == 2, "nothing has changed since"


def resumed_at_12(job: Job, folder: RunFolder, head_step: int) -> StreamStart:
    """Of a run that has delivered its first twelve batches."""
    start = start_of(folder.path, job, head_step)
    return StreamStart(entries=start.entries, recipes=start.recipes, head_step=head_step, free_from_step=12)


@pytest.mark.parametrize(("num_workers", "head_step"), [pytest.param(2, 12, marks=pytest.mark.long), (0, 12), (0, 5)])
def test_an_edit_that_is_refused_on_resume_leaves_the_run_as_it_was_and_the_old_chain_goes_on(
    job: Job, folder: RunFolder, num_workers: int, head_step: int
) -> None:
    """As when it is refused live, whether or not batches are made again before it; a good one lands beside it."""
    strong, weak = job.path.parent / "strong.yaml", job.path.parent / "weak.yaml"

    def resumed() -> list[Taken]:
        again = load_job(job.path, kept=lambda config, file: kept_chain(folder.path, file))
        start = resumed_at_12(again, folder, head_step)
        with open_streams(again, num_workers, folder, start=start) as streams:
            return [take(streams) for _ in range(head_step, 20)]

    with open_streams(job, num_workers, folder) as streams:
        taken: list[Taken] = []
        take_more(streams, taken, 20)
    timeline = (folder.path / "timeline.jsonl").read_bytes()
    # Of another shape than what was delivered, also where nothing of that is made again; and impossible to build.
    write_chain(strong, [{"Resize": {"height": 20, "width": 20}}])
    write_chain(weak, [{"RandomCrop": {"height": 500, "width": 500}}])
    for _ in range(2):
        assert resumed() == taken[head_step:]
        assert (folder.path / "timeline.jsonl").read_bytes() == timeline
        for file, hint in ((strong, "shape: free"), (weak, "RandomCrop")):
            (note,) = [each["note"] for each in events(folder.path, "swap_refused")[-2:] if str(file) in each["note"]]
            assert note.startswith(
                f"edit of {file} while the run was down: refused; the present chain goes on\n{file}:1"
            )
            assert hint in note
    # One that can't be read does not stand in the way of a good one, which lands at the first batch never delivered.
    write_chain(strong, [{"VerticalFlip": {"p": 1.0}}, *STRONG])
    weak.write_text("- [")
    good = recipe_of(job, "strong.yaml").digest
    once_more = resumed()
    assert once_more[: 12 - head_step] == taken[head_step:12]
    assert {batch.recipe for batch in once_more[12 - head_step :]} == {good}
    assert "expected: YAML" in events(folder.path, "swap_refused")[-1]["note"]
    changes = read_changes(folder.path)
    assert [(change.from_step, change.why) for change in changes[1:]] == [
        (12, f"edit of {strong} while the run was down")
    ]
    assert entries_of(changes[-1].entries) == [(12, good), (10 * FROM_EPOCH, job.later[0].recipe.digest)]
    assert resumed() == once_more


@pytest.mark.parametrize("num_workers", [pytest.param(2, marks=pytest.mark.long), 0])
def test_another_schedule_that_is_refused_on_resume_is_not_written(
    job: Job, folder: RunFolder, num_workers: int
) -> None:
    """It is no edit: the job is refused, until it is set right or set back; the run can be resumed as before."""
    with open_streams(job, num_workers, folder) as streams:
        taken: list[Taken] = []
        take_more(streams, taken, 14)
    timeline = (folder.path / "timeline.jsonl").read_bytes()
    write_chain(job.path.parent / "other.yaml", [{"RandomCrop": {"height": 500, "width": 500}}])
    other = load_job(job.path, ["train.chain=other.yaml"])
    with (
        pytest.raises(ConfigError, match="RandomCrop"),
        open_streams(other, num_workers, folder, start=resumed_at_12(other, folder, 12)),
    ):
        pass
    assert (folder.path / "timeline.jsonl").read_bytes() == timeline
    with open_streams(job, num_workers, folder, start=resumed_at_12(job, folder, 12)) as streams:
        assert [take(streams) for _ in range(2)] == taken[12:]


def test_a_run_that_was_killed_before_its_first_chain_was_tried_is_resumed_with_the_mended_one(
    job: Job, folder: RunFolder
) -> None:
    """What its timeline begins with can't be used, and nothing was made with it."""
    strong = job.path.parent / "strong.yaml"
    write_chain(strong, [{"RandomCrop": {"height": 500, "width": 500}}])
    with pytest.raises(ConfigError, match="RandomCrop"), open_streams(load_job(job.path), 0, folder):
        pass  # killed here, it does not get to remove its folder
    assert len(read_changes(folder.path)) == 1
    write_chain(strong, STRONG)
    with open_streams(job, 0, folder, start=start_of(folder.path, job)) as streams:
        assert take(streams).recipe == job.train.digest


@pytest.mark.long
def test_with_a_free_shape_the_images_may_grow(tmp_path: Path, arrays: Path, job: Job) -> None:
    """Progressive resizing by schedule and by edit; batches of both sizes stand in one window."""
    write_chain(tmp_path / "weak.yaml", [{"Resize": {"height": 24, "width": 24}}])
    path = job_file(tmp_path, arrays)
    for num_workers in (2, 0):
        stream = Stream(path, ["shape=free", "train.epochs=42"], workers=num_workers)
        with stream:
            sides = [tuple(batch.images.shape) for batch in stream]
        assert sides == [(10, 3, 16, 16)] * 400 + [(10, 3, 24, 24)] * 20
    fixed = load_job(path)
    for num_workers in (2, 0):
        with pytest.raises(ConfigError, match=r"weak\.yaml:1: chain\n  expected: .*3x16x16.*\n  got: .*3x24x24"):
            Streams(fixed, num_workers, None)


@pytest.mark.long
def test_a_free_shape_does_not_let_in_what_the_run_could_not_train_on(tmp_path: Path, arrays: Path) -> None:
    """It would be in force, on disk, and kill the run there at each resume."""
    write_chain(tmp_path / "strong.yaml", STRONG)
    write_chain(tmp_path / "weak.yaml", [{"Resize": {"height": 24, "width": 24}}])
    path = job_file(tmp_path, arrays, shape="free", model={"kind": "cnn", "width": 4, "depth": 1})
    free = load_job(path)
    with RunFolder.create(tmp_path / "run", dump_job(free.config)) as folder, open_streams(free, 1, folder) as streams:
        unfinished = msgspec.structs.replace(load_chain(tmp_path / "strong.yaml"), nodes=())
        with pytest.raises(ConfigError, match=r"with 3 channels.*\(NCHW\)\n  got:      image uint8 with 3 channels"):
            swap(streams, AskSwap(operation=new_operation(), chain=unfinished))
        assert take(streams).recipe == free.train.digest
        assert len(read_changes(folder.path)) == 1
    fixed = load_job(path, ["model.kind=mlp"])
    with (
        RunFolder.create(tmp_path / "mlp", dump_job(fixed.config)) as folder,
        pytest.raises(ConfigError, match=r"weak\.yaml:1: chain\n(.|\n)*an `mlp` takes images of one size"),
    ):
        Streams(fixed, 0, folder)


@pytest.mark.long
def test_an_edit_of_a_file_that_makes_no_batch_is_told_and_a_given_timeline_follows_none(
    job: Job, folder: RunFolder, tmp_path: Path
) -> None:
    """An operator's chain stands in its place; or the timeline was chosen as it is."""
    other_file = tmp_path / "other.yaml"
    write_chain(other_file, [{"Transpose": {"p": 1.0}}, *WEAK])
    with open_streams(job, 1, folder) as streams:
        other = recipe_of(job, "other.yaml")
        assert "takes over at step" in swap(streams, AskSwap(operation=new_operation(), chain=other.chain))
        take(streams)
        write_chain(job.path.parent / "strong.yaml", [{"VerticalFlip": {"p": 0.9}}, *STRONG])
        wait_for(lambda: events(folder.path, "swap_without_effect"), "the note")
        (told,) = events(folder.path, "swap_without_effect")
        assert "strong.yaml: not in use any more" in told["note"]
        assert streams._notes.latest()[-1].endswith(told["note"])
    entries = read_timeline(folder.path)
    given = load_job(job.path)
    recipes = {entry.recipe: load_recipe(folder.path, entry.recipe, job) for entry in entries}
    start = StreamStart(entries=entries, recipes=recipes)
    with RunFolder.create(tmp_path / "again", dump_job(given.config)) as again_folder:
        with open_streams(given, 1, again_folder, start=start) as streams:
            assert streams._edits is None
            assert events(again_folder.path, "edits_not_followed")
            swap(streams, AskSwap(operation=new_operation(), chain=given.train.chain))
        assert len(read_changes(again_folder.path)) == 2, "an operator may swap nevertheless"
