"""The streams of a worker: what it opens for them, keeps, and drops."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.job import ArraysSource, SplitByHash
from pipeline.lease_events import BUILDING, OPENING
from pipeline.messages import Lease, OpenStream, StreamSpec
from pipeline.recipe import BatchSpec, Chain, ChainNode, Recipe
from pipeline.sources import Source, open_source
from pipeline.timeline import TimelineEntry
from workers import streams as streams_module
from workers.progress import ProgressSlot
from workers.streams import OpenStreams, StreamId
from workers.unserved import CannotServe

FLIP, INVERT = (
    Recipe(chain=Chain(file="chain.yaml", nodes=(ChainNode(name=name),))) for name in ("HorizontalFlip", "InvertImg")
)


class Bench:
    """A worker's streams over one source, whose content can be changed."""

    def __init__(self, folder: Path, progress: ProgressSlot | None = None) -> None:
        self.config = ArraysSource(path=folder / "photos.npz")
        self.write(8)
        self.streams = OpenStreams({"photos": self.config}, (), folder, "w1", progress)

    def write(self, num_samples: int) -> Source:
        """The source, changed, as a trainer opens it."""
        images = np.zeros((num_samples, 4, 4, 3), np.uint8)
        np.savez(self.config.path, images=images, labels=np.arange(num_samples))
        return open_source(self.config, self.config.path.parent)

    def open(self, name: str, source: Source, recipe: Recipe = FLIP, **settings: Any) -> StreamId:
        spec = StreamSpec(
            source="photos", source_fingerprint=source.fingerprint, num_samples=len(source), seed=0, shuffle=True,
            last_batch="drop", end_position=len(source), slice_size=4, recipes=(recipe,), endpoint="ipc:///nowhere",
            timeline=(TimelineEntry(start=0, step=0, recipe=recipe.digest, batch_size=4),), source_settings=settings,
        )  # fmt: skip
        self.streams.open(OpenStream(stream=name, incarnation=1, spec=spec))
        return name, 1

    def probe(self, stream: StreamId, recipe: Recipe = FLIP) -> None:
        assert isinstance(self.streams.probe(stream, recipe.digest), BatchSpec)


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_pool_that_stands_serves_the_next_job_though_its_source_has_changed(bench: Bench) -> None:
    """Also while the earlier job goes on with what it began with."""
    first = bench.open("first", bench.write(8))
    bench.probe(first)
    second = bench.open("second", bench.write(12))
    bench.probe(second)
    bench.probe(first)


def test_a_source_that_is_not_the_trainers_is_no_fault_of_the_stream(bench: Bench) -> None:
    """It may be right on another machine, and here as soon as the folder is: nothing is remembered."""
    wanted = bench.write(12)
    bench.write(8)
    stream = bench.open("s", wanted)
    with pytest.raises(CannotServe) as raised:
        bench.probe(stream)
    assert "12 samples" in raised.value.problems[0].expected
    assert "8 samples" in raised.value.problems[0].got
    assert "--source photos=DIR" in raised.value.problems[0].way_out
    bench.write(12)
    bench.probe(stream)


def test_a_worker_that_was_given_a_place_alone_takes_the_jobs_split(bench: Bench, tmp_path: Path) -> None:
    """Or it would have all samples, and say that folders which are equal are not."""
    bench.write(40)
    split = SplitByHash(part="held_out")
    wanted = open_source(bench.config.model_copy(update={"split": split}), tmp_path)
    stream = bench.open("s", wanted, split=split.model_dump())
    bench.probe(stream)
    bench.open("t", bench.write(41), split={"part": "both"})
    with pytest.raises(CannotServe, match="source_settings"):
        bench.probe(("t", 1))
    bench.write(40)
    spelled_out = bench.config.model_copy(update={"split": SplitByHash(part="train")})
    bench.streams = OpenStreams({"photos": spelled_out}, (), tmp_path, "w2")
    bench.open("s", wanted, split=split.model_dump())
    with pytest.raises(CannotServe) as raised:
        bench.probe(stream)
    path, asked = str(bench.config.path), '"split": {"part": "held_out", "held_out": 0.2, "salt": ""}'
    way_out = f"""--source 'photos={{"kind": "arrays", "path": "{path}", {asked}}}'"""
    assert way_out in raised.value.problems[0].way_out


def test_a_source_that_is_missing_here_is_no_fault_of_the_stream(bench: Bench) -> None:
    """A mount may be."""
    stream = bench.open("s", bench.write(8))
    bench.config.path.unlink()
    with pytest.raises(CannotServe, match=r"photos\.npz"):
        bench.probe(stream)


def test_what_no_open_stream_needs_is_dropped(bench: Bench) -> None:
    """A pool that stands for months sees many jobs, each with a source and chains of its own."""
    source = bench.write(8)
    streams = [bench.open("a", source), bench.open("b", source), bench.open("c", source, INVERT)]
    for stream, recipe in zip(streams, (FLIP, FLIP, INVERT), strict=True):
        bench.probe(stream, recipe)
    opened = weakref.ref(next(iter(bench.streams._sources.values())))
    chains = [weakref.ref(bench.streams._chains[recipe.digest]) for recipe in (FLIP, INVERT)]
    del source

    def alive() -> list[bool]:
        return [known() is not None for known in (opened, *chains)]

    for number, expected in enumerate(([True, True, True], [True, False, True], [False, False, False])):
        bench.streams.close(streams[number])
        assert expected == alive()


def test_a_source_is_opened_once_for_all_the_evaluation_passes_of_a_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factory of the user's own may connect to a database, and each pass is a stream of its own."""
    opened = []
    monkeypatch.setattr(streams_module, "open_source", lambda *args: opened.append(0) or open_source(*args))
    bench.probe(bench.open("train", bench.write(8)))
    held_out = bench.write(12)
    for number in range(5):
        stream = bench.open(f"eval {number}", held_out)
        bench.probe(stream)
        bench.streams.close(stream)
    assert len(opened) == 2


def test_sources_that_no_open_stream_needs_are_kept_to_a_few(bench: Bench) -> None:
    """A pool sees many jobs, and one of them may run for months; those that were used last stay."""
    train = bench.open("train", bench.write(100))
    bench.probe(train)
    fingerprints = []
    for number in [1, 2, 3, 4, 5, 2, 6]:
        source = bench.write(4 * number)
        stream = bench.open("eval", source)
        bench.probe(stream)
        bench.streams.close(stream)
        fingerprints.append(source.fingerprint)
    kept = [fingerprint for _, fingerprint in bench.streams._sources]
    assert kept[1:] == [fingerprints[number] for number in (3, 4, 5, 6)]
    bench.streams.close(train)
    assert not bench.streams._sources


def test_a_stream_that_is_swapped_keeps_the_chains_it_still_names_and_no_others(bench: Bench) -> None:
    """A job of days is swapped hundreds of times, and each worker is told each time what may still come."""
    source = bench.write(8)
    for number in range(100):
        recipe = Recipe(
            chain=Chain(file="chain.yaml", nodes=(ChainNode(name="HorizontalFlip", params={"p": number / 100}),))
        )
        stream = bench.open("s", source, recipe)
        bench.probe(stream, recipe)
        assert list(bench.streams._chains) == [recipe.digest]
        assert list(bench.streams._probed) == [(stream, recipe.digest)]
    bench.open("t", source, INVERT)
    assert list(bench.streams._chains) == [recipe.digest], "another stream's message changes nothing here"


def test_a_refusal_is_remembered_until_the_stream_is_opened_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe whose answer is late is asked for again and again: its repetitions must not keep leases waiting."""
    built = []
    real = streams_module.compile_chain
    monkeypatch.setattr(streams_module, "compile_chain", lambda *args: built.append(0) or real(*args))
    wrong, source = Recipe(chain=Chain(file="chain.yaml", nodes=(ChainNode(name="Flop"),))), bench.write(8)
    stream = bench.open("s", source, wrong)
    first = bench.streams.probe(stream, wrong.digest)
    assert not isinstance(first, BatchSpec)
    bench.open("t", source)
    assert bench.streams.probe(stream, wrong.digest) == first
    assert len(built) == 1
    bench.open("s", source, wrong)
    assert bench.streams.probe(stream, wrong.digest) == first
    assert len(built) == 2


def test_opening_a_source_and_building_a_chain_are_work_that_the_pool_can_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either may hang, and a worker that seems idle is never killed for it."""
    slot, seen = ProgressSlot(tmp_path / "progress"), []

    def watch(name: str) -> None:
        real = getattr(streams_module, name)

        def watched(*args: Any) -> Any:
            last = slot.read()
            seen.append((last.position, last.stream, last.probed))
            return real(*args)

        monkeypatch.setattr(streams_module, name, watched)

    watch("open_source")
    watch("compile_chain")
    bench = Bench(tmp_path, slot)
    stream = bench.open("s", bench.write(8))
    bench.probe(stream)
    assert seen == [(OPENING, "s", FLIP.digest), (BUILDING, "s", FLIP.digest)]
    bench.streams._chains.clear()
    spec = bench.streams.probe(stream, FLIP.digest)
    bench.streams._streams[stream] = msgspec.structs.replace(
        bench.streams._streams[stream], batch_specs={FLIP.digest: spec}
    )
    bench.streams.make(Lease(number=1, stream="s", incarnation=1, start=0, stop=4, recipe=FLIP.digest))
    assert seen[2:] == [(BUILDING, "s", "")]
    assert slot.read().position == 3
