"""A trainer without a model: it takes batches, changes its timeline, is killed and resumes from what is on disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.lease_events import StreamBeaten, StreamRegistered
from pipeline.messages import Lost
from pipeline.reassembly import Placement, Reassembly
from pipeline.slice_header import SliceHeader
from pipeline.swaps import swap_by_command
from pipeline.timeline import BatchRange, Timeline, TimelineChange, TimelineEntry
from tests.law_parts import AskProbe, FromTrainer, Known, Probed, RegisterAgain, ToTrainer

REGISTER_EVERY_S = 0.5


@dataclass
class Disk:
    """What outlives a trainer: everything a resume may read."""

    timeline: Timeline
    quarantined: dict[int, int] = field(default_factory=dict)
    num_delivered: int = 0
    """Steps below it were delivered at least once: no boundary may lie below it."""


@dataclass
class Wish:
    """A recipe that somebody wants, until it is in force or refused."""

    recipe: str
    at_step: int


class ModelTrainer:
    """One incarnation: reassembles, takes batches in order, and follows the swap's protocol."""

    def __init__(
        self,
        disk: Disk,
        incarnation: int,
        head_step: int,
        window: int,
        slice_size: int,
        send: Callable[[FromTrainer, float], None],
    ) -> None:
        self.disk, self.incarnation, self.window, self.slice_size = disk, incarnation, window, slice_size
        self.free_from_step = max(head_step, disk.num_delivered)
        self.wish: Wish | None = None
        self.taken: list[BatchRange] = []
        self.placed: list[int] = []
        self.placed_attempt: dict[int, int] = {}
        """With which attempt each position was placed."""
        self._send = send
        self._timeline = disk.timeline
        self._core = Reassembly(disk.timeline, stream="s", incarnation=incarnation, window=window, head_step=head_step)
        self._recipes: dict[int, set[str]] = {}
        """Step -> recipes of the slices in it."""
        self._revision = 0
        self._is_registered = False
        self._last_register_s = -REGISTER_EVERY_S
        self._beat_number = 0

    @property
    def head_step(self) -> int:
        return self._core.head_step

    @property
    def ended(self) -> bool:
        return self._core.ended

    @property
    def timeline(self) -> Timeline:
        return self._timeline

    def speak(self, now_s: float) -> None:
        """A beat; or the registration, as long as it is not answered."""
        arrived = int.from_bytes(self._core.arrived(), "little")
        quarantined = dict(self.disk.quarantined)
        if not self._is_registered:
            if now_s - self._last_register_s < REGISTER_EVERY_S:
                return
            self._last_register_s = now_s
            registration = StreamRegistered(
                stream=("s", self.incarnation), source="photos", timeline=self._timeline, slice_size=self.slice_size,
                head_step=self.head_step, arrived=arrived, window=self.window, quarantined=quarantined,
                revision=self._revision,
            )  # fmt: skip
            self._send(registration, now_s)
            return
        self._beat_number += 1
        beat = StreamBeaten(
            stream=("s", self.incarnation), number=self._beat_number, head_step=self.head_step, arrived=arrived,
            window=self.window, quarantined=quarantined, revision=self._revision,
        )  # fmt: skip
        self._send(beat, now_s)
        if self.wish is not None:
            self._send(AskProbe(self.incarnation, self.wish.recipe), now_s)

    def narrow(self, window: int) -> None:
        """Fewer batches in flight, or more again: as with a recipe that delivers larger images."""
        self.window = self._core.window = window

    def hear(self, message: ToTrainer, crash: Callable[[], bool]) -> bool:
        """False if it crashed, as `crash` decides, after it wrote down a change and before it acted on it."""
        match message.what:
            case Known(revision=revision):
                self._is_registered = self._is_registered or revision == self._revision
            case RegisterAgain():
                self._is_registered, self._last_register_s = False, -REGISTER_EVERY_S
            case Probed(recipe=recipe, accepted=accepted, unleased_step=hint):
                if self.wish is not None and self.wish.recipe == recipe:
                    at_step, self.wish = self.wish.at_step, None
                    return not accepted or self._swap(recipe, max(at_step, hint), crash)
            case tuple(losses):
                self._decide(losses)
        return True

    def place(self, header: SliceHeader) -> None:
        """A slice has come."""
        decided = {p: attempt for p, attempt in self.disk.quarantined.items() if header.start <= p < header.stop}
        placement = self._core.place(header)
        if isinstance(placement, Placement) and header.quarantined == decided:
            self._core.mark(header, placement)
            self._recipes.setdefault(placement.step, set()).add(header.recipe)
            placed = range(header.start, header.stop)
            self.placed += placed
            self.placed_attempt |= {position: decided.get(position, 0) for position in placed}

    def take(self) -> None:
        """The training loop takes the head batch, if it is complete."""
        if not self.ended and self._core.is_complete(self.head_step):
            batch = self._core.take_head()
            assert self._recipes.pop(batch.step) == {batch.recipe}, "a batch of two recipes"
            self.taken.append(batch)
            self.disk.num_delivered = max(self.disk.num_delivered, batch.step + 1)

    def _swap(self, recipe: str, earliest: int, crash: Callable[[], bool]) -> bool:
        untouched = self._core.first_untouched_step()
        step = max(earliest, untouched, self.head_step, self.free_from_step)
        if step >= self._timeline.num_steps:
            return True
        change = swap_by_command(self._timeline, step, recipe, "", "a test's wish")
        if change is not None:
            self.disk.timeline = self._timeline.changed(change)
            if crash():
                return False
            self._timeline = self.disk.timeline
            self._core.change(self._timeline)
            self._revision += 1
            self._is_registered, self._last_register_s = False, -REGISTER_EVERY_S
        return True

    def _decide(self, losses: tuple[Lost, ...]) -> None:
        """Quarantine what may still be made otherwise, each attempt once."""
        for lost in losses:
            if self._core.awaits(lost.position) and self.disk.quarantined.get(lost.position, 0) <= lost.attempt:
                self.disk.quarantined[lost.position] = lost.attempt + 1


def resumed(
    old: ModelTrainer, coin: random.Random, other_batch_size: float, send: Callable[[FromTrainer, float], None]
) -> ModelTrainer:
    """The next incarnation, from a checkpoint at or before where the old one stood; perhaps with another batch size."""
    disk, head_step = old.disk, coin.randint(max(0, old.head_step - 5), old.head_step)
    step = max(head_step, disk.num_delivered)
    if coin.random() < other_batch_size and step < disk.timeline.num_steps:
        later = [entry for entry in disk.timeline.entries if entry.step > step]
        here = disk.timeline.entry_at(step)
        if not later:  # whether scheduled entries keep their step or their position is the resume's matter
            start = disk.timeline.start_of(step)
            entry = TimelineEntry(start=start, step=step, recipe=here.recipe, batch_size=coin.randint(1, 12))
            disk.timeline = disk.timeline.changed(TimelineChange(from_step=step, entries=(entry,), why="resume"))
    return ModelTrainer(disk, old.incarnation + 1, head_step, old.window, old.slice_size, send)
