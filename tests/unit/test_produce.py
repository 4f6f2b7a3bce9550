"""Produce: a slice's bytes depend on its coordinates only, and every bad sample is named."""

from __future__ import annotations

import errno
import itertools
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from albumentations import HorizontalFlip, ImageOnlyTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.digests import SAMPLE_DIGEST_NBYTES, sample_digest
from pipeline.errors import SampleError
from pipeline.messages import Lease, StreamSpec
from pipeline.recipe import BatchSpec, Chain, ChainNode, Decode, Recipe
from pipeline.slice_header import QUARANTINED, SliceHeader
from pipeline.sources.protocol import RawSample
from pipeline.timeline import TimelineEntry
from tests.sizes import cases
from workers import produce as produce_module
from workers.chain import CompiledChain, compile_chain
from workers.produce import (
    MAX_ATTEMPTS,
    PROBE_ENOUGH_S,
    ChainIsImpure,
    FinishMisfits,
    NothingMade,
    Producer,
    ReadFailed,
    StreamIsBroken,
)

NUM_SAMPLES = 20
NODES = (
    ChainNode(name="HorizontalFlip", params={"p": 0.5}),
    ChainNode(name="RandomBrightnessContrast", params={"p": 0.8}),
)
RECIPE = Recipe(chain=Chain(file="chain.yaml", nodes=NODES))
CHAIN = compile_chain(RECIPE)


class Shelf:
    """A source in memory, with faults put at some indices."""

    fingerprint = "ff"
    classes = ("even", "odd")

    def __init__(self, faults: dict[int, Exception] | None = None, wide: int = -1) -> None:
        self.faults = faults or {}
        self.wide = wide
        self.num_reads = 0

    def __len__(self) -> int:
        return NUM_SAMPLES

    def read(self, index: int) -> RawSample:
        self.num_reads += 1
        if index in self.faults:
            raise self.faults[index]
        width = 9 if index == self.wide else 8
        image = np.random.default_rng(index).integers(0, 256, (6, width, 3), dtype=np.uint8)
        return RawSample(image, index % 2)

    def describe(self, index: int) -> str:
        return f"shelf[{index}]"


def producer(shelf: Shelf | None = None) -> Producer:
    spec = StreamSpec(
        source="shelf", source_fingerprint="ff", num_samples=NUM_SAMPLES, seed=3, shuffle=True, last_batch="wrap",
        end_position=10 * NUM_SAMPLES, slice_size=4, recipes=(RECIPE,), endpoint="ipc:///nowhere",
        timeline=(TimelineEntry(start=0, step=0, recipe=RECIPE.digest, batch_size=8),),
    )  # fmt: skip
    return Producer(spec, shelf or Shelf(), "w1")


BATCH_SPEC: BatchSpec = producer().probe(CHAIN, Decode())


def make(
    start: int,
    stop: int,
    shelf: Shelf | None = None,
    quarantined: dict[int, int] | None = None,
    by: Producer | None = None,
) -> tuple[SliceHeader, np.ndarray, np.ndarray]:
    """Header, images (N,H,W,C) and labels (N,) of a slice."""
    lease = Lease(
        number=1, stream="s", incarnation=1, start=start, stop=stop, recipe=RECIPE.digest, quarantined=quarantined or {}
    )
    header, (images, labels) = (by or producer(shelf)).make(lease, CHAIN, Decode(), BATCH_SPEC)
    return header, images, labels


EPOCH = make(0, NUM_SAMPLES)
IDS = EPOCH[0].sample_ids


@settings(max_examples=cases(100))
@given(cuts=st.lists(st.integers(1, 3 * NUM_SAMPLES - 1), max_size=12), history=st.integers(0, 30))
def test_however_a_range_is_cut_its_samples_are_the_same(cuts: list[int], history: int) -> None:
    """Law 1: neighbours, slice size, epoch edges and what was made before change no byte."""
    whole = make(0, 3 * NUM_SAMPLES)
    edges = [0, *sorted(set(cuts)), 3 * NUM_SAMPLES]
    worker = producer()
    make(history, history + 3, by=worker)

    parts = [make(start, stop, by=worker) for start, stop in itertools.pairwise(edges)]

    assert np.array_equal(np.concatenate([images for _, images, _ in parts]), whole[1])
    assert np.array_equal(np.concatenate([labels for _, _, labels in parts]), whole[2])
    assert sum((header.sample_ids for header, _, _ in parts), ()) == whole[0].sample_ids
    assert b"".join(header.digests for header, _, _ in parts) == whole[0].digests


def test_an_epoch_has_every_sample_once_and_the_header_tells_what_was_made() -> None:
    """Ids, labels and digests stand beside the bytes they belong to; another epoch augments otherwise."""
    header, images, labels = EPOCH
    assert sorted(header.sample_ids) == list(range(NUM_SAMPLES))
    assert labels.tolist() == [index % 2 for index in header.sample_ids]
    digests = [
        header.digests[at : at + SAMPLE_DIGEST_NBYTES] for at in range(0, len(header.digests), SAMPLE_DIGEST_NBYTES)
    ]
    assert digests == [sample_digest(image, label) for image, label in zip(images, labels, strict=True)]
    assert header.bad == ()
    second_header, second, _ = make(NUM_SAMPLES, 2 * NUM_SAMPLES)
    by_id = dict(zip(second_header.sample_ids, second, strict=True))
    assert any(not np.array_equal(by_id[index], image) for index, image in zip(header.sample_ids, images, strict=True))


def test_a_bad_sample_is_named_and_replaced_by_a_function_of_its_coordinates() -> None:
    """Its neighbours stay as they were, and every worker chooses the same substitute."""
    shelf = Shelf({IDS[5]: SampleError("cut short")})

    header, images, labels = make(0, NUM_SAMPLES, shelf)

    (bad,) = header.bad
    assert (bad.position, bad.index, bad.name, bad.cause) == (5, IDS[5], f"shelf[{IDS[5]}]", "cut short")
    assert header.sample_ids[5] == bad.substitute != IDS[5]
    assert labels[5] == bad.substitute % 2
    others = [row for row in range(NUM_SAMPLES) if row != 5]
    assert np.array_equal(images[others], EPOCH[1][others])
    again, alone, _ = make(5, 6, shelf)
    assert np.array_equal(alone[0], images[5])
    assert again.bad == header.bad


def test_substitutes_that_are_bad_too_are_named_each() -> None:
    """With half of the source bad, every position still gets a good sample."""
    shelf = Shelf({index: SampleError("cut short") for index in range(0, NUM_SAMPLES, 2)})

    header, _, labels = make(0, NUM_SAMPLES, shelf)

    assert set(labels.tolist()) == {1}
    assert {bad.position for bad in header.bad} == {row for row in range(NUM_SAMPLES) if IDS[row] % 2 == 0}
    assert all(bad.substitute == header.sample_ids[bad.position] for bad in header.bad)


def test_a_quarantined_position_begins_with_its_substitute() -> None:
    """The sample itself is not touched: it may kill whoever does. It makes what a bad sample there would have made."""
    quarantined, images, _ = make(0, NUM_SAMPLES, Shelf({IDS[5]: AssertionError("touched")}), {5: 1})
    substituted, expected, _ = make(0, NUM_SAMPLES, Shelf({IDS[5]: SampleError("cut short")}))

    assert np.array_equal(images, expected)
    assert quarantined.sample_ids == substituted.sample_ids
    assert [(bad.position, bad.cause) for bad in quarantined.bad] == [(5, QUARANTINED)]
    third, _, _ = make(5, 6, quarantined={5: 2})
    assert third.sample_ids != quarantined.sample_ids[5:6]


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "I/O error"), FileNotFoundError("gone"), MemoryError()])
def test_a_read_that_fails_is_given_back_not_substituted(fault: Exception) -> None:
    """It may pass, or work elsewhere: not a function of coordinates, so nothing may be put in its place here."""
    with pytest.raises(ReadFailed) as raised:
        make(0, NUM_SAMPLES, Shelf({IDS[5]: fault}))
    assert raised.value.position == 5
    assert str(fault) in str(raised.value)


def test_a_failed_read_says_whose_it_was_and_what_was_wrong_before_it() -> None:
    """Or the trainer would lay it to the sample whose place it is, and never learn what that one's fault is."""
    (bad,) = make(5, 6, Shelf({IDS[5]: SampleError("cut short")}))[0].bad
    shelf = Shelf({IDS[5]: SampleError("cut short"), bad.substitute: OSError(errno.EIO, "I/O error")})
    with pytest.raises(ReadFailed) as raised:
        make(5, 6, shelf)
    assert (raised.value.position, raised.value.attempt, raised.value.bad_before) == (5, 1, ("cut short",))
    with pytest.raises(ReadFailed) as raised:
        make(5, 6, shelf, {5: 1})
    assert (raised.value.attempt, raised.value.bad_before) == (1, ())


def test_a_source_without_a_good_sample_ends_the_stream_naming_the_first() -> None:
    """The search for a substitute ends."""
    shelf = Shelf({index: SampleError("cut short") for index in range(NUM_SAMPLES)})
    with pytest.raises(StreamIsBroken, match=rf"shelf\[{IDS[2]}\]: cut short\n.*{MAX_ATTEMPTS - 1} substitutes"):
        make(2, 3, shelf)
    with pytest.raises(StreamIsBroken, match="cut short"):
        producer(shelf).probe(CHAIN, Decode())


def test_a_shape_that_changes_ends_the_stream_naming_sample_shapes_and_way_out() -> None:
    """A batch needs one shape; which sample differs is what its user must know."""
    with pytest.raises(StreamIsBroken) as raised:
        make(0, NUM_SAMPLES, Shelf(wide=IDS[7]))
    for told in (f"shelf[{IDS[7]}]", "6x9x3 uint8", "6x8x3 uint8", "add a crop or Resize"):
        assert told in str(raised.value)


def test_a_probe_tells_what_the_chain_delivers_and_spares_known_killers() -> None:
    """It is the stream's first sight of the data; a killer that is known must not kill the probing workers too."""
    assert [(field.name, field.dtype, field.shape) for field in BATCH_SPEC.fields] == [
        ("image", "uint8", (6, 8, 3)),
        ("label", "int64", ()),
    ]
    killer = Shelf({IDS[0]: AssertionError("touched")})
    assert producer(killer).probe(CHAIN, Decode(), skip={0}) == BATCH_SPEC
    with pytest.raises(StreamIsBroken, match="6x9x3"):
        producer(Shelf(wide=IDS[0])).probe(CHAIN, Decode())


class _Global(ImageOnlyTransform):
    def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
        return img + np.uint8(next(self.numbers) % 251)

    numbers = itertools.count()


def test_a_chain_that_depends_on_what_was_made_before_is_refused_by_its_transform() -> None:
    """np.random, or a thing kept from call to call: nobody could make its batches again, and nothing would tell."""
    paths, first, last = dict[int, str](), HorizontalFlip(p=0.5), _Global(p=0.5)
    paths[id(first)], paths[id(last)] = "chain[0].HorizontalFlip", "chain[1].Global"
    chain = CompiledChain([first, last], paths, CHAIN.finish, 3)
    with pytest.raises(ChainIsImpure, match=r"^chain\[1\]\.Global makes shelf\[\d+\] another image") as raised:
        producer().probe(chain, Decode())
    assert "self.random_generator" in str(raised.value)
    assert producer().probe(CHAIN, Decode()) == BATCH_SPEC


def test_a_source_that_reads_another_image_or_label_each_time_is_refused() -> None:
    """A source's `read` is a function of its index."""

    class Loose(Shelf):
        def read(self, index: int) -> RawSample:
            self.num_reads += 1
            return RawSample(np.full((6, 8, 3), self.num_reads, dtype=np.uint8), 0)

    class Undecided(Shelf):
        def read(self, index: int) -> RawSample:
            self.num_reads += 1
            return RawSample(np.full((6, 8, 3), index, dtype=np.uint8), self.num_reads)

    for source in (Loose(), Undecided()):
        with pytest.raises(
            ChainIsImpure, match=r"^the source or its decoder makes shelf\[\d+\] another image or label"
        ):
            producer(source).probe(CHAIN, Decode())


class OneChannel(ImageOnlyTransform):  # type: ignore[misc]
    """A plug-in's transform, of which nobody knows that it changes the channels."""

    def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
        return img[:, :, :1].copy()


def of_one_channel(*nodes: ChainNode) -> CompiledChain:
    name, module = "plugin_of_this_test", ModuleType("plugin_of_this_test")
    module.OneChannel = type("OneChannel", (OneChannel,), {"__module__": name})  # type: ignore[attr-defined]
    chain = Chain(file="chain.yaml", nodes=(ChainNode(name="OneChannel", params={"p": 1.0}), *nodes))
    return compile_chain(Recipe(chain=chain), {name: module})


def test_a_normalize_that_a_plugin_leaves_without_its_channels_is_refused_by_the_probe() -> None:
    with pytest.raises(FinishMisfits, match="3 numbers, and 1 channels"):
        producer().probe(of_one_channel(ChainNode(name="Normalize")), Decode())
    two = ChainNode(name="Normalize", params={"mean": [0.5, 0.5]})
    with pytest.raises(StreamIsBroken, match=r"chain\[1\]\.Normalize failed .* mean has 2 numbers, the image has 1"):
        producer().probe(of_one_channel(two, ChainNode(name="HorizontalFlip")), Decode())


def test_a_crop_that_is_larger_than_the_images_is_refused_by_the_probe_as_that() -> None:
    """Every sample fails at it: no sample is to blame, and no limit of bad samples helps."""
    crop = ChainNode(name="RandomCrop", params={"height": 64, "width": 64})
    chain = compile_chain(Recipe(chain=Chain(file="chain.yaml", nodes=(NODES[0], crop))))
    with pytest.raises(NothingMade, match=r"shelf\[\d+\]: .*\(64, 64\) vs \(6, 8\)") as raised:
        producer().probe(chain, Decode())
    assert raised.value.path == "chain[1].RandomCrop"
    assert "RandomCrop needs larger images: put a Resize or PadIfNeeded before chain[1]" in raised.value.way_out


def test_a_slow_chain_is_probed_on_fewer_samples_and_on_two_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow may be meant so; of two samples one can tell that their shapes differ."""
    clock = itertools.count(step=PROBE_ENOUGH_S)
    monkeypatch.setattr(produce_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    shelf = Shelf()
    assert producer(shelf).probe(CHAIN, Decode()) == BATCH_SPEC
    assert shelf.num_reads == 2
