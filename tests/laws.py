"""Laws that several tests state, and the models they are stated with."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Grant,
    ReportLost,
    StreamBeaten,
    StreamRegistered,
    Ticked,
    WorkerBeaten,
    WorkerGone,
    WorkerJoined,
)
from pipeline.leases import Leases
from pipeline.messages import Lease, SliceHeader
from pipeline.reassembly import Placement, Reassembly
from pipeline.recipe import FieldSpec
from pipeline.timeline import Timeline


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
    received: int = 0
    beat_number: int = 0
    holding: list[Lease] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def take(self, lease: Lease) -> None:
        if lease.number not in self.seen:
            self.seen.add(lease.number)
            self.received = max(self.received, lease.number)
            self.holding.append(lease)

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
    )


@dataclass
class LossySystem:
    """A dispatcher's leases and a trainer's reassembly, joined by lossy links and workers that die."""

    timeline: Timeline
    window: int
    slice_size: int
    coin: random.Random
    drop: float
    kill: float
    """Chance per worker and tick of being killed; a new one takes its place. The first worker is spared."""

    def __post_init__(self) -> None:
        self.leases = Leases(worker_ttl_s=10.0, stream_ttl_s=1e9, resend_s=2.0)
        self.trainer = Reassembly(self.timeline, stream="s", incarnation=1, window=self.window, head_step=0)
        self.control = Link(self.coin, drop=self.drop, repeat=0.1, max_delay_s=0.3)
        self.data = Link(self.coin, drop=self.drop, repeat=0.1, max_delay_s=0.5)
        self.workers: dict[str, ModelWorker] = {}
        self.placed: list[int] = []
        self.taken: list[int] = []
        self.beat_number = 0
        self.num_started = 0
        self.quarantined: dict[int, int] = {}
        self._act(self.leases.step(self._registration(), 0.0), 0.0)

    def run(self, num_workers: int, max_s: float) -> None:
        """Until every batch was taken; fails if that takes longer than max_s of model time."""
        now_s = 0.0
        while not self.trainer.ended:
            now_s += 0.05
            assert now_s < max_s, f"no progress: head {self.trainer.head_step}, taken {self.taken}"
            while len(self.workers) < num_workers:
                self._start_worker(now_s)
            self._workers_work(now_s)
            for event in self.control.arrived(now_s):
                if isinstance(event, tuple):
                    self._lease_reaches_worker(*event)
                else:
                    self._act(self.leases.step(event, now_s), now_s)  # type: ignore[arg-type]
            for message in self.data.arrived(now_s):
                self._slice_reaches_trainer(message)  # type: ignore[arg-type]
            self._act(self.leases.step(Ticked(), now_s), now_s)
            self._trainer_takes_and_beats(now_s)

    def _registration(self) -> StreamRegistered:
        return StreamRegistered(
            stream=("s", 1),
            source="photos",
            timeline=self.timeline,
            slice_size=self.slice_size,
            head_step=0,
            arrived=0,
            window=self.window,
            quarantined={},
        )

    def _start_worker(self, now_s: float) -> None:
        self.num_started += 1
        name = f"w{self.num_started}"
        self.workers[name] = ModelWorker(name)
        self._act(self.leases.step(WorkerJoined(worker=name, sources=frozenset({"photos"})), now_s), now_s)

    def _workers_work(self, now_s: float) -> None:
        for name, worker in list(self.workers.items()):
            if name != "w1" and self.coin.random() < self.kill:
                del self.workers[name]
                gone = WorkerGone(worker=name, cause="SIGKILL", blame=True)
                self._act(self.leases.step(gone, now_s), now_s)
                continue
            if worker.holding and self.coin.random() < 0.5:
                self.data.send(header_of(worker.holding.pop(0), name), now_s)
            self.control.send(worker.beat(), now_s)

    def _lease_reaches_worker(self, name: str, lease: Lease) -> None:
        if name in self.workers:
            self.workers[name].take(lease)

    def _slice_reaches_trainer(self, header: SliceHeader) -> None:
        placement = self.trainer.place(header)
        if isinstance(placement, Placement):
            already = self._rows(placement.step)
            self.trainer.mark(header, placement)
            new = self._rows(placement.step) & ~already
            first = self.timeline.batch(placement.step).start
            self.placed += [first + row for row in range(new.bit_length()) if new >> row & 1]

    def _rows(self, step: int) -> int:
        return self.trainer._arrived.get(step, 0)

    def _trainer_takes_and_beats(self, now_s: float) -> None:
        if not self.trainer.ended and self.trainer.is_complete(self.trainer.head_step) and self.coin.random() < 0.7:
            self.taken.append(self.trainer.take_head().step)
        self.beat_number += 1
        arrived = int.from_bytes(self.trainer.arrived(), "little")
        beat = StreamBeaten(
            stream=("s", 1),
            number=self.beat_number,
            head_step=self.trainer.head_step,
            arrived=arrived,
            window=self.window,
            quarantined=self.quarantined,
        )
        self.control.send(beat, now_s)

    def _act(self, actions: list[Action], now_s: float) -> None:
        for action in actions:
            match action:
                case Grant():
                    step_range = range(self.trainer.head_step, self.trainer.head_step + self.window)
                    in_window = [self.timeline.batch(s) for s in step_range if s < self.timeline.num_steps]
                    behind = not in_window or action.lease.stop <= in_window[0].start
                    assert behind or any(b.start <= action.lease.start < b.stop for b in in_window), (
                        "leased beyond the window"
                    )
                    self.control.send((action.worker, action.lease), now_s)
                case ReportLost():
                    self.quarantined |= {lost.position: lost.attempt + 1 for lost in action.lost}
                case AskToJoin() | AskToRegister():
                    pass
