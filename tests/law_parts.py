"""Parts of the models that laws are stated with: a lossy link, a worker without pixels, and what they send."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pipeline.lease_events import (
    SliceGivenBack,
    StreamBeaten,
    StreamRegistered,
    WorkerBeaten,
    WorkerJoined,
    WorkerLeaving,
)
from pipeline.messages import Lease, Lost
from pipeline.recipe import FieldSpec
from pipeline.slice_header import SliceHeader


class Link:
    """Carries messages late, twice, out of order or not at all, as a seeded coin decides."""

    def __init__(self, coin: random.Random, *, drop: float, repeat: float, max_delay_s: float) -> None:
        self.coin, self.drop, self.repeat, self.max_delay_s = coin, drop, repeat, max_delay_s
        self._under_way: list[tuple[float, int, object]] = []
        self._count = 0

    def send(self, message: object, now_s: float) -> None:
        for _ in range(2 if self.coin.random() < self.repeat else 1):
            if self.coin.random() >= self.drop:
                self._count += 1
                self._under_way.append((now_s + self.coin.uniform(0, self.max_delay_s), self._count, message))

    def arrived(self, now_s: float) -> list[object]:
        due = sorted(item for item in self._under_way if item[0] <= now_s)
        self._under_way = [item for item in self._under_way if item[0] > now_s]
        return [message for _, _, message in due]


@dataclass
class ModelWorker:
    """What a worker does with leases, without pixels: hold them, make the first, send it, beat."""

    name: str
    life: int = 1
    """Rises with each JoinAgain. A connection keeps order: nothing that was meant for an earlier life comes later."""
    received: int = 0
    beat_number: int = 0
    holding: list[Lease] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    is_leaving: bool = False

    def take(self, lease: Lease) -> None:
        if lease.number not in self.seen:
            self.seen.add(lease.number)
            self.received = max(self.received, lease.number)
            self.holding.append(lease)

    def forget(self) -> None:
        """What JoinAgain asks for."""
        self.life += 1
        self.received = self.beat_number = 0
        self.holding.clear()
        self.seen.clear()

    def beat(self) -> WorkerBeaten:
        self.beat_number += 1
        holding = tuple(lease.number for lease in self.holding)
        return WorkerBeaten(worker=self.name, number=self.beat_number, received=self.received, holding=holding)


def header_of(lease: Lease, worker: str) -> SliceHeader:
    num_samples = lease.stop - lease.start
    return SliceHeader(
        stream=lease.stream,
        incarnation=lease.incarnation,
        worker=worker,
        start=lease.start,
        stop=lease.stop,
        recipe=lease.recipe,
        fields=(FieldSpec(name="image", dtype="uint8", shape=(1,)),),
        sample_ids=tuple(range(lease.start, lease.stop)),
        digests=bytes(16 * num_samples),
        quarantined=lease.quarantined,
    )


@dataclass(frozen=True)
class FromWorker:
    """An event of a worker, or its wish to join, in one of its lives."""

    name: str
    life: int
    event: WorkerBeaten | SliceGivenBack | WorkerJoined | WorkerLeaving


@dataclass(frozen=True)
class ToWorker:
    """A lease, the request to join again, or the leave to end."""

    name: str
    life: int
    what: Lease | str


@dataclass(frozen=True)
class AskProbe:
    """A trainer wants a recipe tried."""

    incarnation: int
    recipe: str


FromTrainer = StreamRegistered | StreamBeaten | AskProbe


@dataclass(frozen=True)
class Known:
    """The dispatcher knows the timeline of this revision."""

    revision: int


@dataclass(frozen=True)
class RegisterAgain:
    """The dispatcher does not know the stream, or not its timeline."""


@dataclass(frozen=True)
class Probed:
    """What became of a probe, and the first batch from which on nothing is leased."""

    recipe: str
    accepted: bool
    unleased_step: int


@dataclass(frozen=True)
class ToTrainer:
    """What an incarnation is told; tuples are lost positions."""

    incarnation: int
    what: Known | RegisterAgain | Probed | tuple[Lost, ...]
