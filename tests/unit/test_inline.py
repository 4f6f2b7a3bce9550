"""The inline receiver: one thread, the same rules; a swap takes effect at the very next batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from pipeline.digests import sample_digest
from pipeline.errors import ConfigError, Problem
from pipeline.messages import Lease, Lost, OpenStream, StreamSpec
from pipeline.recipe import BatchSpec, Chain, ChainNode, FieldSpec, Recipe
from pipeline.timeline import Timeline, TimelineEntry
from tests.laws import header_of
from trainer.buffers import BufferPool
from trainer.course import Course
from trainer.inline import InlineReceiver, Made
from trainer.policy import BadSamplePolicy
from trainer.swapping import Outcome, Wish


def recipe(name: str) -> Recipe:
    return Recipe(chain=Chain(file=f"{name}.yaml", nodes=(ChainNode(name=name),)))


FIRST, SECOND, BAD = recipe("first"), recipe("second"), recipe("bad")
SPEC = BatchSpec(
    fields=(
        FieldSpec(name="image", dtype="uint8", shape=(2, 2, 3)),
        FieldSpec(name="label", dtype="int64", shape=()),
    )
)


@dataclass
class FakeMaker:
    """Images full of their position's number; refuses recipe BAD, and a lease of a recipe it was not told of."""

    fingerprint: str = "py=3.11"
    opened: list[OpenStream] = field(default_factory=list)
    probed: list[str] = field(default_factory=list)

    def open(self, message: OpenStream) -> None:
        self.opened.append(message)

    def probe(self, stream: tuple[str, int], digest: str) -> BatchSpec | tuple[Problem, ...]:
        assert digest in {known.digest for known in self.opened[-1].spec.recipes}
        self.probed.append(digest)
        if digest == BAD.digest:
            return (Problem(file="bad.yaml", line=1, path="chain[0]", expected="a transform", got="bad"),)
        return SPEC

    def make(self, lease: Lease) -> Made | Lost:
        assert self.opened[-1].batch_specs[lease.recipe] == SPEC
        images = np.stack([np.full((2, 2, 3), position % 256, np.uint8) for position in range(lease.start, lease.stop)])
        digests = b"".join(sample_digest(image) for image in images)
        header = msgspec.structs.replace(header_of(lease, "inline"), fields=SPEC.fields, digests=digests)
        return header, [images, np.arange(lease.start, lease.stop)]


@dataclass
class World:
    """20 batches of 4; with a schedule, SECOND from step 10 on."""

    head_step: int = 0
    later: Recipe | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        entries = [TimelineEntry(start=0, step=0, recipe=FIRST.digest, batch_size=4, file="first.yaml")]
        recipes = {FIRST.digest: FIRST}
        if self.later is not None:
            recipes[self.later.digest] = self.later
            entries.append(TimelineEntry(start=40, step=10, recipe=self.later.digest, batch_size=4))
        timeline = Timeline(entries, num_samples=80, last_batch="drop", end_position=80)
        spec = StreamSpec(
            source="photos",
            source_fingerprint="f",
            num_samples=80,
            seed=0,
            shuffle=False,
            last_batch="drop",
            end_position=80,
            slice_size=3,
            recipes=tuple(recipes.values()),
            timeline=tuple(entries),
            endpoint="inproc://unused",
        )
        self.maker = FakeMaker()
        self.receiver = InlineReceiver(
            stream="s",
            incarnation=1,
            spec=spec,
            course=Course(timeline, recipes, window=lambda batch_size, spec: 1),
            head_step=self.head_step,
            maker=self.maker,
            policy=BadSamplePolicy("fail", 0.0, 40, identify=lambda position, attempt: (position, "x")),
            pool=BufferPool(max_free=2),
            on_outcome=lambda wish, outcome: self.outcomes.append(outcome),
        )

    def take(self, count: int) -> list[tuple[int, str]]:
        taken = []
        for _ in range(count):
            batch = self.receiver.next_batch()
            assert batch is not None
            positions = list(range(batch.range.start, batch.range.stop))
            assert batch.labels_N.tolist() == positions == batch.images_NHWC[:, 0, 0, 0].tolist()
            taken.append((batch.range.step, batch.range.recipe))
        return taken


def test_it_begins_at_its_head_step_and_ends_with_the_timeline() -> None:
    """A resume is nothing else."""
    world = World(head_step=17)
    assert world.take(3) == [(17, FIRST.digest), (18, FIRST.digest), (19, FIRST.digest)]
    assert world.receiver.next_batch() is None


def test_every_recipe_ahead_is_probed_before_the_first_batch() -> None:
    """A refused one ends the run with its place, not in epoch 8."""
    assert World(later=SECOND).maker.probed == [FIRST.digest, SECOND.digest]
    assert World(later=SECOND, head_step=12).maker.probed == [SECOND.digest]
    with pytest.raises(ConfigError, match=r"bad\.yaml:1: chain\[0\]"):
        World(later=BAD)


def test_an_edit_takes_effect_at_the_next_batch_and_a_bad_one_not_at_all() -> None:
    """Asked for between two batches, from any thread."""
    world = World(later=SECOND)
    world.take(3)
    world.receiver.wish(Wish(operation="edit 1", recipe=BAD, edited="first.yaml"))
    assert world.take(1) == [(3, FIRST.digest)]
    third = recipe("third")
    world.receiver.wish(Wish(operation="edit 2", recipe=third, edited="first.yaml"))
    assert world.take(7)[::6] == [(4, third.digest), (10, SECOND.digest)]
    assert [outcome.done for outcome in world.outcomes] == [False, True]
    assert "bad.yaml:1" in str(world.outcomes[0])


def test_a_schedule_is_followed() -> None:
    """Without any wish."""
    assert World(later=SECOND, head_step=9).take(2) == [(9, FIRST.digest), (10, SECOND.digest)]
