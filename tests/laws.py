"""Laws that several tests state, and the models they are stated with."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pipeline.lease_events import (
    AskToJoin,
    AskToRegister,
    Event,
    Grant,
    ReportLost,
    SliceGivenBack,
    StreamBeaten,
    StreamRegistered,
    Ticked,
    WorkerBeaten,
    WorkerGone,
    WorkerJoined,
)
from pipeline.leases import Leases
from pipeline.messages import Lease, Lost, SliceHeader
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
    life: int = 1
    """Rises with each JoinAgain. A connection keeps order: nothing that was meant for an earlier life comes later."""
    received: int = 0
    beat_number: int = 0
    holding: list[Lease] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

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
    event: WorkerBeaten | SliceGivenBack | WorkerJoined


@dataclass(frozen=True)
class ToWorker:
    """A lease, or with None the request to join again."""

    name: str
    life: int
    lease: Lease | None


@dataclass(frozen=True)
class ToTrainer:
    """What is lost, or with None the request to register again."""

    lost: tuple[Lost, ...] | None


@dataclass
class LossySystem:
    """A dispatcher's leases and a trainer's reassembly, joined by lossy links; workers die, are taken for dead and fail
    to read; the dispatcher forgets everything."""

    timeline: Timeline
    window: int
    slice_size: int
    coin: random.Random
    drop: float
    kill: float
    """Chance per worker and tick of being killed; a new one takes its place. The first worker is spared."""
    silence: float = 0.0
    """Chance per worker and tick of being stopped for 15 s, which is long enough to be taken for dead."""
    restart: float = 0.0
    """Chance per tick that a new dispatcher takes the place of the old."""
    unreadable: frozenset[int] = frozenset()
    """Positions whose own sample can't be read; a substitute can."""
    flaky: float = 0.0
    """Chance that a read of a slice fails once."""

    def __post_init__(self) -> None:
        self.leases = self._new_leases()
        self.trainer = Reassembly(self.timeline, stream="s", incarnation=1, window=self.window, head_step=0)
        self.control = Link(self.coin, drop=self.drop, repeat=0.1, max_delay_s=0.3)
        self.data = Link(self.coin, drop=self.drop, repeat=0.1, max_delay_s=0.5)
        self.workers: dict[str, ModelWorker] = {}
        self.joined_life: dict[str, int] = {}
        """Which life of each worker the dispatcher has admitted."""
        self.stopped_until_s: dict[str, float] = {}
        self.placed: list[int] = []
        self.taken: list[int] = []
        self.beat_number = 0
        self.num_started = 0
        self.quarantined: dict[int, int] = {}
        self.placed_attempt: dict[int, int] = {}
        """With which attempt each position was placed."""
        self._dispatch(self._registration(), 0.0)

    def run(self, num_workers: int, max_s: float) -> None:
        """Until every batch was taken; fails if that takes longer than max_s of model time."""
        now_s = 0.0
        while not self.trainer.ended:
            now_s += 0.05
            assert now_s < max_s, f"no progress: head {self.trainer.head_step}, taken {self.taken}"
            if self.coin.random() < self.restart:
                self.leases = self._new_leases()
            while len(self.workers) < num_workers:
                self._start_worker(now_s)
            self._workers_work(now_s)
            for message in self.control.arrived(now_s):
                self._deliver(message, now_s)
            for message in self.data.arrived(now_s):
                self._slice_reaches_trainer(message)  # type: ignore[arg-type]
            self._dispatch(Ticked(), now_s)
            self._trainer_takes_and_beats(now_s)

    @staticmethod
    def _new_leases() -> Leases:
        return Leases(worker_ttl_s=10.0, stream_ttl_s=1e9, resend_s=2.0)

    def _registration(self) -> StreamRegistered:
        return StreamRegistered(
            stream=("s", 1),
            source="photos",
            timeline=self.timeline,
            slice_size=self.slice_size,
            head_step=self.trainer.head_step,
            arrived=int.from_bytes(self.trainer.arrived(), "little"),
            window=self.window,
            quarantined=dict(self.quarantined),
        )

    def _start_worker(self, now_s: float) -> None:
        self.num_started += 1
        name = f"w{self.num_started}"
        self.workers[name] = ModelWorker(name)
        self._join(name, now_s)

    def _join(self, name: str, now_s: float) -> None:
        event = WorkerJoined(worker=name, sources=frozenset({"photos"}))
        self.control.send(FromWorker(name, self.workers[name].life, event), now_s)

    def _workers_work(self, now_s: float) -> None:
        for name, worker in list(self.workers.items()):
            if name != "w1" and self.coin.random() < self.kill:
                del self.workers[name]
                self._dispatch(WorkerGone(worker=name, cause="SIGKILL", blame=True), now_s)
                continue
            if self.coin.random() < self.silence:
                self.stopped_until_s[name] = now_s + 15.0
            if now_s < self.stopped_until_s.get(name, 0.0):
                continue
            if worker.holding and self.coin.random() < 0.5:
                self._make(worker, worker.holding.pop(0), now_s)
            self.control.send(FromWorker(name, worker.life, worker.beat()), now_s)

    def _make(self, worker: ModelWorker, lease: Lease, now_s: float) -> None:
        failed = [p for p in range(lease.start, lease.stop) if p in self.unreadable and not lease.quarantined.get(p)]
        if not failed and self.coin.random() < self.flaky:
            failed = [self.coin.randrange(lease.start, lease.stop)]
        if failed:
            event = SliceGivenBack(worker=worker.name, lease=lease.number, position=failed[0], cause="I/O error")
            self.control.send(FromWorker(worker.name, worker.life, event), now_s)
        else:
            self.data.send(header_of(lease, worker.name), now_s)

    def _deliver(self, message: object, now_s: float) -> None:
        match message:
            case FromWorker(name=name, life=life, event=event):
                if name not in self.workers or life < self.joined_life.get(name, 0):
                    return
                if isinstance(event, WorkerJoined):
                    if life == self.joined_life.get(name) and name in self.leases.workers:
                        return  # the link's own repetition
                    self.joined_life[name] = life
                self._dispatch(event, now_s)
            case ToWorker(name=name, life=life, lease=lease):
                worker = self.workers.get(name)
                if worker is None:
                    return
                if lease is not None:
                    if life == self.joined_life[name]:
                        worker.take(lease)
                elif life == worker.life:
                    worker.forget()
                    self._join(name, now_s)
            case ToTrainer(lost=None):
                self.control.send(self._registration(), now_s)
            case ToTrainer(lost=lost):
                self._samples_are_lost(lost or ())
            case StreamRegistered() | StreamBeaten():
                self._dispatch(message, now_s)

    def _samples_are_lost(self, losses: tuple[Lost, ...]) -> None:
        """Quarantine what may still be made otherwise, each attempt once."""
        for lost in losses:
            if self.trainer.awaits(lost.position) and self.quarantined.get(lost.position, 0) <= lost.attempt:
                self.quarantined[lost.position] = lost.attempt + 1

    def _slice_reaches_trainer(self, header: SliceHeader) -> None:
        decided = {p: attempt for p, attempt in self.quarantined.items() if header.start <= p < header.stop}
        placement = self.trainer.place(header)
        if isinstance(placement, Placement) and header.quarantined == decided:
            already = self._rows(placement.step)
            self.trainer.mark(header, placement)
            new = self._rows(placement.step) & ~already
            first = self.timeline.batch(placement.step).start
            placed = [first + row for row in range(new.bit_length()) if new >> row & 1]
            self.placed += placed
            self.placed_attempt |= {position: decided.get(position, 0) for position in placed}

    def _rows(self, step: int) -> int:
        return self.trainer._arrived.get(step, 0)

    def _trainer_takes_and_beats(self, now_s: float) -> None:
        if not self.trainer.ended and self.trainer.is_complete(self.trainer.head_step) and self.coin.random() < 0.7:
            self.taken.append(self.trainer.take_head().step)
        self.beat_number += 1
        beat = StreamBeaten(
            stream=("s", 1),
            number=self.beat_number,
            head_step=self.trainer.head_step,
            arrived=int.from_bytes(self.trainer.arrived(), "little"),
            window=self.window,
            quarantined=dict(self.quarantined),
        )
        self.control.send(beat, now_s)

    def _dispatch(self, event: Event, now_s: float) -> None:
        for action in self.leases.step(event, now_s):
            match action:
                case Grant():
                    self._check_window(action.lease)
                    life = self.joined_life[action.worker]
                    self.control.send(ToWorker(action.worker, life, action.lease), now_s)
                case ReportLost():
                    self.control.send(ToTrainer(action.lost), now_s)
                case AskToJoin():
                    life = self.workers[action.worker].life
                    self.control.send(ToWorker(action.worker, life, None), now_s)
                case AskToRegister():
                    self.control.send(ToTrainer(None), now_s)

    def _check_window(self, lease: Lease) -> None:
        steps = range(self.trainer.head_step, self.trainer.head_step + self.window)
        in_window = [self.timeline.batch(step) for step in steps if step < self.timeline.num_steps]
        behind = not in_window or lease.stop <= in_window[0].start
        assert behind or any(batch.start <= lease.start < batch.stop for batch in in_window), "leased beyond the window"
