"""A trainer of a law of cores: its conversation, swapping, course, placing and policy are the real ones; it has no
thread, no socket, no disk and no model. What it takes is looked at byte by byte."""

from __future__ import annotations

import threading
import typing
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.messages import StreamSpec
from pipeline.reassembly import Reassembly
from pipeline.recipe import Chain, Recipe
from pipeline.timeline import BatchRange, Timeline, TimelineChange
from pipeline.wire import encode_message
from tests.law_core_worker import byte_of
from tests.unit.test_placing import FakePull
from trainer.buffers import BufferPool
from trainer.conversation import Conversation
from trainer.course import Course
from trainer.notes import Notes
from trainer.placing import Placing
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import RawBatch, ReceiverState
from trainer.receiver import BEAT_S, NEWS_EVERY_S, REGISTER_EVERY_S, URGENT_NEWS_EVERY_S
from trainer.swapping import Outcome, Swapping, Wish

STREAM = "run/train"


class Crashed(Exception):
    """The trainer was killed in the middle of something."""


@dataclass
class CoreDisk:
    """What outlives a trainer: everything a resume may read."""

    timeline: Timeline
    recipes: dict[str, Recipe]
    quarantined: dict[int, int] = field(default_factory=dict)
    fingerprint: str = ""
    num_delivered: int = 0
    """Steps below it were delivered at least once."""
    digests: dict[int, str] = field(default_factory=dict)
    """Step -> what its batch was when it was delivered first."""

    def write(self, recipe: Recipe, change: TimelineChange) -> None:
        """A change of the timeline; none may touch what was delivered."""
        assert change.from_step >= self.num_delivered, "a boundary below what was delivered"
        self.recipes[recipe.digest] = recipe
        self.timeline = self.timeline.changed(change)

    def quarantine(self, entry: dict[str, typing.Any]) -> None:
        self.quarantined[entry["position"]] = entry["lost_attempt"] + 1


class CoreTrainer:
    """One incarnation, as `trainer/receiver.py` drives it, one turn at a time."""

    def __init__(
        self,
        disk: CoreDisk,
        incarnation: int,
        head_step: int,
        *,
        window: Callable[[], int],
        slice_size: int,
        send: Callable[[bytes], None],
        crashes: Callable[[], bool],
    ) -> None:
        """`crashes`: whether it is killed just before, and just after, a change is on disk."""
        self.disk, self.incarnation = disk, incarnation
        self._most = window()
        """Batches that may be in memory: the widest window so far."""
        self.taken: list[BatchRange] = []
        self.outcomes: list[Outcome] = []
        self._send, self._crashes = send, crashes
        self._next_beat_s = self._spoke_s = 0.0
        self._pull = FakePull()
        lock, state, notes = threading.Condition(), ReceiverState(), Notes(lambda action, **fields: None)
        timeline, free_from_step = disk.timeline, max(head_step, disk.num_delivered)
        policy = BadSamplePolicy(
            "substitute", 1.0, 1_000_000, identify=lambda position, attempt: (position, f"{position}.png"),
            quarantine=disk.quarantine, quarantined=disk.quarantined,
            trained_at=lambda position: (
                step if (step := timeline.step_from(position + 1) - 1) < free_from_step else None
            ),
        )  # fmt: skip
        self.course = Course(
            disk.timeline, disk.recipes, window=lambda batch_size, spec: window(),
            free_from_step=free_from_step, record=self._record,
        )  # fmt: skip
        self.reassembly = Reassembly(
            disk.timeline, stream=STREAM, incarnation=incarnation, window=0, head_step=head_step
        )
        self.placing = Placing(
            course=self.course, reassembly=self.reassembly, policy=policy, pool=BufferPool(max_free=4), state=state,
            notes=notes, lock=lock,
        )  # fmt: skip
        self.conversation = Conversation(
            stream=STREAM, incarnation=incarnation, spec=spec_of(disk, incarnation, slice_size), course=self.course,
            swapping=Swapping(self.course, self._outcome), reassembly=self.reassembly, policy=policy, state=state,
            notes=notes, lock=lock, fingerprint=disk.fingerprint, recipe_of=_recipe_of,
        )  # fmt: skip

    @property
    def identity(self) -> str:
        return f"{STREAM}#{self.incarnation}"

    @property
    def head_step(self) -> int:
        return self.reassembly.head_step

    @property
    def ended(self) -> bool:
        return self.reassembly.ended

    def turn(self, now_s: float, slices: list[list[bytes]], notices: list[bytes], wishes: list[Wish]) -> None:
        """What its receiver does in a moment; Crashed if it was killed meanwhile."""
        self._most = max(self._most, self.reassembly.window)
        self._pull.slices.extend(slices)
        has_news = self.placing.receive(typing.cast(typing.Any, self._pull))
        for wish in wishes:
            self.conversation.wish(wish)
        is_urgent = bool(wishes)
        for notice in notices:
            is_urgent = self.conversation.hear(notice) or is_urgent
        self.disk.fingerprint = self.conversation.fingerprint
        if is_urgent or (has_news and self.conversation.is_registered):
            is_urgent = is_urgent or self.conversation.is_window_behind
            news_every_s = URGENT_NEWS_EVERY_S if is_urgent else NEWS_EVERY_S
            self._next_beat_s = min(self._next_beat_s, self._spoke_s + news_every_s)
        if now_s >= self._next_beat_s:
            self.conversation.speak()
            self._spoke_s = now_s
            self._next_beat_s = now_s + (BEAT_S if self.conversation.is_registered else REGISTER_EVERY_S)
        for message in self.conversation.outbox:
            self._send(encode_message(message))
        self.conversation.outbox.clear()

    def take(self) -> None:
        """The training loop takes the head batch, if it is complete, and finds in it what the timeline says."""
        assert len(self.placing._batches) <= self._most, "more than a window in memory"
        step = self.head_step
        if (batch := self.placing.maybe_take()) is None:
            return
        disk = self.disk
        assert batch.range == disk.timeline.batch(step)
        check_bytes(batch, disk)
        assert disk.digests.setdefault(step, batch.digest) == batch.digest, "made again, it is another batch"
        disk.num_delivered = max(disk.num_delivered, step + 1)
        self.taken.append(batch.range)

    def _record(self, recipe: Recipe, change: TimelineChange) -> None:
        if self._crashes():
            raise Crashed("before a change was written")
        self.disk.write(recipe, change)
        if self._crashes():
            raise Crashed("after a change was written")

    def _outcome(self, wish: Wish, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.conversation.outcome(wish, outcome)


def check_bytes(batch: RawBatch, disk: CoreDisk) -> None:
    """Every sample stands at its place, made under the batch's one recipe and with what was quarantined on disk."""
    positions = list(range(batch.range.start, batch.range.stop))
    assert batch.labels_N.tolist() == batch.sample_ids_N.tolist() == positions
    expected = [byte_of(batch.range.recipe, place, disk.quarantined.get(place, 0)) for place in positions]
    assert batch.images_NHWC[:, 0, 0, 0].tolist() == expected, "a sample of another recipe or attempt"


def spec_of(disk: CoreDisk, incarnation: int, slice_size: int) -> StreamSpec:
    timeline = disk.timeline
    return StreamSpec(
        source="photos", source_fingerprint="ff", num_samples=timeline.num_samples, seed=0, shuffle=False,
        last_batch=timeline.last_batch, end_position=timeline.end_position, slice_size=slice_size,
        recipes=tuple(disk.recipes.values()), timeline=timeline.entries, endpoint=f"inproc://{incarnation}",
    )  # fmt: skip


def _recipe_of(chain: Chain) -> Recipe:
    return Recipe(chain=chain)
