"""Remaking a batch: the digest of the workers' code, substitutes where they stood, causes named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.remake import RemadeSample, Remaker, final_attempt
from pipeline.config import load_job
from pipeline.config_job import Job
from pipeline.digests import batch_digest, sample_digest
from pipeline.errors import ConfigError
from pipeline.order import Order
from pipeline.recipe import Recipe
from pipeline.slice_header import QUARANTINED, BadSample
from pipeline.sources import Source, open_source
from pipeline.timeline import Timeline, TimelineEntry
from tests.images import encoded
from tests.processes import write_job

NUM_SAMPLES, BATCH_SIZE = 12, 6
CHAIN: list[Any] = [{"RandomCrop": {"height": 16, "width": 16}}, {"HorizontalFlip": {"p": 0.5}}, "Normalize"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Twelve JPEGs of two classes; the third file is damaged."""
    for number in range(NUM_SAMPLES):
        path = tmp_path / "photos" / ("cats", "dogs")[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (24, 28, 3), dtype=np.uint8)
        path.write_bytes(b"no image" if number == 2 else encoded("JPEG", image=image))
    train = {"source": "photos", "chain": CHAIN, "batch_size": BATCH_SIZE, "epochs": 2}
    return load_job(write_job(tmp_path, sources={"photos": {"kind": "folder", "path": "photos"}}, train=train, seed=5))


def remaker(job: Job, quarantined: dict[int, int] | None = None) -> tuple[Remaker, Source, Timeline]:
    source = open_source(job.config.sources["photos"], job.path.parent)
    entry = TimelineEntry(start=0, step=0, recipe=job.train.digest, batch_size=BATCH_SIZE)
    timeline = Timeline([entry], num_samples=len(source), last_batch="drop", end_position=2 * len(source))
    return Remaker(job, source, timeline, job.path.parent, quarantined or {}), source, timeline


def all_samples(job: Job, quarantined: dict[int, int] | None = None) -> list[RemadeSample]:
    made, _, timeline = remaker(job, quarantined)
    steps = range(timeline.num_steps)
    return [each for step in steps for each in made.remake(timeline.batch(step), job.train, BATCH_SIZE).samples]


def test_the_digest_is_that_of_all_samples_however_many_are_shown(job: Job) -> None:
    made, _, timeline = remaker(job)
    whole, part = (made.remake(timeline.batch(1), job.train, num) for num in (BATCH_SIZE, 2))
    digests = [sample_digest(sample.image_HWC, sample.label) for sample in whole.samples]
    labels = np.array([sample.label for sample in whole.samples])
    ids = np.array([sample.index for sample in whole.samples])
    assert batch_digest(digests, labels, ids) == whole.digest == part.digest
    assert [6, 7] == [sample.position for sample in part.samples]


def test_a_bad_sample_is_named_beside_the_one_that_stands_in_its_place(job: Job) -> None:
    """And every other sample stands where the order has it."""
    _, source, _ = remaker(job)
    order = Order(NUM_SAMPLES, seed=5, shuffle=True)
    damaged = next(index for index in range(NUM_SAMPLES) if source.describe(index) == "cats/02.jpg")
    for sample, key in zip(all_samples(job), order.keys(0, 2 * NUM_SAMPLES), strict=True):
        if key.sample_index == damaged:
            assert "cats/02.jpg" == sample.replaces[0][0]
            assert sample.index == order.substitute(key, len(sample.replaces)).sample_index != damaged
        else:
            assert (key.sample_index, ()) == (sample.index, sample.replaces)
        assert sample.class_name == source.describe(sample.index).split("/")[0]


def test_a_quarantined_position_begins_with_the_attempt_the_run_wrote_down(job: Job) -> None:
    order = Order(NUM_SAMPLES, seed=5, shuffle=True)
    (key,) = order.keys(4, 5)
    sample = all_samples(job, {4: 3})[4]
    assert sample.replaces[0][1] == QUARANTINED
    assert order.substitute(key, 3 + len(sample.replaces) - 1).sample_index == sample.index


def test_the_attempt_that_stands_counts_the_quarantine_once() -> None:
    def note(cause: str) -> BadSample:
        return BadSample(position=4, index=1, name="a.jpg", cause=cause, substitute=2)

    assert 0 == final_attempt([], 0)
    assert 2 == final_attempt([note("damaged"), note("damaged")], 0)
    assert 4 == final_attempt([note(QUARANTINED), note("damaged")], 3)


def test_another_recipe_is_shown_at_the_same_coordinates(job: Job) -> None:
    made, _, timeline = remaker(job)
    other = Recipe(
        chain=msgspec.structs.replace(job.train.chain, nodes=job.train.chain.nodes[:1]), decode=job.train.decode
    )
    ours, theirs = (made.remake(timeline.batch(0), recipe, BATCH_SIZE) for recipe in (job.train, other))
    assert [each.index for each in ours.samples] == [each.index for each in theirs.samples]
    for mine, its in zip(ours.samples, theirs.samples, strict=True):
        flipped = [each.name for each in mine.applied] == ["RandomCrop", "HorizontalFlip"]
        assert (mine.image_HWC[:, ::-1] if flipped else mine.image_HWC).tobytes() == its.image_HWC.tobytes()


def test_a_file_that_is_gone_is_named_with_the_way_out(job: Job, tmp_path: Path) -> None:
    made, source, timeline = remaker(job)
    order = Order(NUM_SAMPLES, seed=5, shuffle=True)
    gone = next(key for key in order.keys(0, 6) if source.describe(key.sample_index) != "cats/02.jpg")
    name = source.describe(gone.sample_index)
    (tmp_path / "photos" / name).unlink()
    with pytest.raises(ConfigError, match="--source photos=DIR") as caught:
        made.remake(timeline.batch(0), job.train, BATCH_SIZE)
    assert name == caught.value.problems[0].file
