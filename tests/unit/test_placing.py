"""Slices off the wire: placed with the bytes that were sent, or dropped, counted, and told of when that is odd."""

from __future__ import annotations

import threading
from collections import deque
from typing import cast

import msgspec
import numpy as np
import pytest
import torch

from pipeline.digests import sample_digest
from pipeline.errors import RunFailed
from pipeline.messages import Lease
from pipeline.reassembly import Reassembly
from pipeline.recipe import BatchSpec, Chain, ChainNode, FieldSpec, Finish, Recipe
from pipeline.timeline import Timeline, TimelineEntry
from pipeline.transport import Pull
from pipeline.wire import encode_slice
from tests.laws import header_of
from trainer.buffers import BufferPool
from trainer.course import Course
from trainer.notes import Notes
from trainer.placing import AMONG_SLICES, MAX_WRONG_DIGESTS, NOTE_DROPPED_FROM, Placing
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import ReceiverState


def recipe(name: str) -> Recipe:
    return Recipe(chain=Chain(file=f"{name}.yaml", nodes=(ChainNode(name=name),)))


def spec(side: int) -> BatchSpec:
    image = FieldSpec(name="image", dtype="uint8", shape=(side, side, 3))
    return BatchSpec(fields=(image, FieldSpec(name="label", dtype="int64", shape=())), finish=Finish())


SMALL, LARGE = recipe("small"), recipe("large")
SIDES = {SMALL.digest: 2, LARGE.digest: 5}


class FakePull:
    """Frames of slices, as a PULL socket hands them out."""

    def __init__(self) -> None:
        self.slices: deque[list[bytes]] = deque()
        self._rest: list[bytes] = []

    def receive_header(self) -> bytes | None:
        assert not self._rest, "frames of a slice were left behind"
        if not self.slices:
            return None
        header, *self._rest = self.slices.popleft()
        return header

    def has_more(self) -> bool:
        return bool(self._rest)

    def receive_into(self, buffer: memoryview) -> int:
        frame = self._rest.pop(0)
        buffer[: len(frame)] = frame[: len(buffer)]
        return len(frame)

    def skip_rest(self) -> None:
        self._rest = []


class World:
    """Batches of 4: of small images, from step 2 on of large ones."""

    def __init__(self) -> None:
        entries = [
            TimelineEntry(start=4 * step, step=step, recipe=each.digest, batch_size=4)
            for step, each in ((0, SMALL), (2, LARGE))
        ]
        timeline = Timeline(entries, num_samples=100, last_batch="drop", end_position=100)
        self.state = ReceiverState()
        self.told: list[str] = []
        self.pull = FakePull()
        reassembly = Reassembly(timeline, stream="s", incarnation=1, window=4, head_step=0)
        self.placing = Placing(
            course=Course(
                timeline,
                {each.digest: each for each in (SMALL, LARGE)},
                window=lambda batch_size, spec: 4,
                batch_specs={digest: spec(side) for digest, side in SIDES.items()},
            ),
            reassembly=reassembly,
            policy=BadSamplePolicy("fail", 0.0, 40, identify=lambda position, attempt: (position, "x")),
            pool=BufferPool(max_free=2),
            state=self.state,
            notes=Notes(lambda action, **fields: self.told.append(fields["note"])),
            lock=threading.Condition(),
        )

    def arrive(self, *slices: list[bytes]) -> None:
        self.pull.slices += slices
        self.placing.receive(cast(Pull, self.pull))


def sent(start: int, stop: int, of: Recipe = SMALL) -> list[bytes]:
    side = SIDES[of.digest]
    images = np.stack([np.full((side, side, 3), position, np.uint8) for position in range(start, stop)])
    lease = Lease(number=1, stream="s", incarnation=1, start=start, stop=stop, recipe=of.digest)
    digests = b"".join(map(sample_digest, images, range(start, stop)))
    header = msgspec.structs.replace(header_of(lease, "w"), fields=spec(side).fields, digests=digests)
    return [bytes(frame) for frame in encode_slice(header, [images, np.arange(start, stop)])]


def test_batches_of_two_shapes_stand_side_by_side_in_one_window() -> None:
    """Progressive resizing: slices of both arrive mixed around the boundary."""
    world = World()
    world.arrive(sent(8, 12, LARGE), sent(2, 4), sent(4, 8), sent(0, 2))
    for step, side in ((0, 2), (1, 2), (2, 5)):
        batch = world.placing.maybe_take()
        assert batch is not None
        assert batch.range.step == step
        assert batch.spec == spec(side)
        assert batch.images_NHWC.shape == (4, side, side, 3)
        assert torch.equal(batch.images_NHWC[:, 0, 0, 0], torch.arange(4 * step, 4 * step + 4, dtype=torch.uint8))
        assert batch.labels_N.tolist() == list(range(4 * step, 4 * step + 4))
    assert world.placing.maybe_take() is None
    assert world.state.dropped.total() == 0


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"garbage"], "malformed"),
        (sent(0, 4, LARGE), "wrong_recipe"),
        (sent(2, 6), "outside_window"),
        (sent(0, 4)[:1], "wrong_size"),
        (sent(0, 4)[:2], "wrong_size"),
        ([*sent(0, 4)[:1], b"short", b""], "wrong_size"),
        ([sent(0, 4)[0], sent(0, 4)[1] + b"long", sent(0, 4)[2]], "wrong_size"),
        ([sent(0, 4)[0], bytes(48), sent(0, 4)[2]], "wrong digest from w"),
        ([*sent(0, 4)[:2], np.array([0, 1, 2, 4]).tobytes()], "wrong digest from w"),
    ],
)
def test_what_does_not_fit_is_dropped_and_what_comes_after_it_is_not(frames: list[bytes], reason: str) -> None:
    """One bad sender costs its own slices only."""
    world = World()
    world.arrive(frames, [*sent(0, 4), b"a frame too many"])
    assert dict(world.state.dropped) == {reason: 1}
    batch = world.placing.maybe_take()
    assert batch is not None
    assert batch.labels_N.tolist() == [0, 1, 2, 3]


def test_slices_that_keep_arriving_damaged_end_the_run() -> None:
    """A machine that breaks bytes would train on them sooner or later."""
    world = World()
    header, _, labels = sent(0, 4)
    damaged = [header, bytes(48), labels]
    world.arrive(*[damaged] * MAX_WRONG_DIGESTS)
    with pytest.raises(RunFailed, match="wrong digest from w"):
        world.arrive(damaged)


def test_slices_damaged_now_and_then_do_not_end_a_run_of_days() -> None:
    """Each is made again; only so many among the last ones are a broken machine."""
    world = World()
    header, images, labels = sent(0, 4)
    for _ in range(2 * MAX_WRONG_DIGESTS):
        world.arrive([header, bytes(len(images)), labels])
        world.placing._num_checked += AMONG_SLICES // MAX_WRONG_DIGESTS  # so many good ones in between
    assert world.placing.maybe_take() is None
    world.arrive(sent(0, 4))
    assert world.placing.maybe_take() is not None
    assert world.state.dropped == {"wrong digest from w": 2 * MAX_WRONG_DIGESTS}


def test_the_user_hears_of_many_odd_slices_and_not_of_usual_ones() -> None:
    """Twins and slices of an old recipe come with hedging and swaps."""
    world = World()
    world.arrive(*[[b"garbage"]] * NOTE_DROPPED_FROM, *[sent(0, 4)] * (NOTE_DROPPED_FROM + 1))
    assert world.told == [f"{NOTE_DROPPED_FROM} slices were dropped: malformed"]
