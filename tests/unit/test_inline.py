"""The inline receiver: one thread, the same rules; a swap takes effect at the very next batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Literal

import msgspec
import numpy as np
import pytest

from pipeline.digests import sample_digest
from pipeline.errors import ConfigError, Problem
from pipeline.messages import Lease, Lost, OpenStream, StreamSpec
from pipeline.recipe import BatchSpec, Chain, ChainNode, FieldSpec, Recipe
from pipeline.timeline import Timeline, TimelineEntry
from tests.laws import header_of
from trainer import inline as inline_module
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
    failing: dict[int, int] = field(default_factory=dict)
    """Position -> how often its read fails still."""

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
        for position in range(lease.start, lease.stop):
            if self.failing.get(position) and not lease.quarantined.get(position):
                self.failing[position] -= 1
                return Lost(position=position, attempt=0, cause="I/O error")
        images = np.stack([np.full((2, 2, 3), position % 256, np.uint8) for position in range(lease.start, lease.stop)])
        digests = b"".join(map(sample_digest, images, range(lease.start, lease.stop)))
        header = msgspec.structs.replace(header_of(lease, "inline"), fields=SPEC.fields, digests=digests)
        return header, [images, np.arange(lease.start, lease.stop)]


@dataclass
class World:
    """20 batches of 4; with a schedule, SECOND from step 10 on."""

    head_step: int = 0
    later: Recipe | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    on_bad_sample: Literal["substitute", "fail"] = "fail"

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
        self.policy = BadSamplePolicy(self.on_bad_sample, 0.0, 40, identify=lambda position, attempt: (position, "x"))
        self.receiver = InlineReceiver(
            stream="s",
            incarnation=1,
            spec=spec,
            course=Course(timeline, recipes, window=lambda batch_size, spec: 1),
            head_step=self.head_step,
            maker=self.maker,
            policy=self.policy,
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


def test_a_sample_is_given_up_after_three_reads_of_its_own_not_of_its_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with workers: else a moment's trouble, with a read of each of three samples, would change the batch."""
    monkeypatch.setattr(inline_module, "time", SimpleNamespace(sleep=lambda seconds: None))
    world = World(on_bad_sample="substitute")
    world.maker.failing = {0: 2, 1: 2, 2: 2, 5: 3}
    world.take(1)
    assert world.policy.num_bad == 0
    world.take(1)
    assert (world.policy.num_bad, world.maker.failing) == (1, {0: 0, 1: 0, 2: 0, 5: 0})
