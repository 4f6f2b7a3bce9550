"""Laws that several tests state: a whole system of cores, joined by lossy links, in which anybody may fail."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pipeline.lease_events import (
    Action,
    AskToJoin,
    AskToRegister,
    Dismiss,
    Event,
    Grant,
    ReportLost,
    SliceGivenBack,
    StreamBeaten,
    StreamId,
    StreamRegistered,
    Ticked,
    WorkerGone,
    WorkerJoined,
    WorkerLeaving,
)
from pipeline.leases import Leases
from pipeline.messages import Lease, Lost
from pipeline.slice_header import SliceHeader
from pipeline.timeline import BatchRange, Timeline
from tests.law_parts import (
    AskProbe,
    FromWorker,
    Known,
    Link,
    ModelWorker,
    Probed,
    RegisterAgain,
    ToTrainer,
    ToWorker,
    header_of,
)
from tests.law_trainer import Disk, ModelTrainer, Wish, resumed

__all__ = ["Faults", "LossySystem", "header_of"]

TICK_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How likely each thing is: per worker and tick, per tick, or per message."""

    drop: float = 0.0
    """Of a message, on any link."""
    kill: float = 0.0
    """Of a worker; a new one takes its place. The first worker is spared."""
    leave: float = 0.0
    """A worker is asked to leave; a new one takes its place. The first worker is spared."""
    silence: float = 0.0
    """A worker is stopped for 15 s, which is long enough to be taken for dead."""
    restart: float = 0.0
    """A new dispatcher, which knows nothing, takes the place of the old."""
    resume: float = 0.0
    """The trainer is killed, and resumes from an earlier step."""
    swap: float = 0.0
    """Somebody wishes another recipe; a third of them are refused."""
    crash_in_swap: float = 0.0
    """The trainer is killed between writing a change down and acting on it."""
    other_batch_size: float = 0.0
    """A resumed trainer goes on with another batch size."""
    unreadable: frozenset[int] = frozenset()
    """Positions whose own sample can't be read; a substitute can."""
    flaky: float = 0.0
    """A read of a slice fails once."""
    narrow: float = 0.0
    """The trainer's window becomes another, between one batch and all that it may be."""
    until_s: float = 60.0
    """Afterwards nobody is stopped or restarted, nothing swapped: who goes back every five seconds never arrives."""


@dataclass
class LossySystem:
    """A dispatcher's leases and a trainer's reassembly, joined by lossy links; anybody may be killed or stopped, and
    the trainer changes its timeline. At each moment: nothing is leased beyond the window, or to more than two."""

    timeline: Timeline
    window: int
    slice_size: int
    coin: random.Random
    faults: Faults

    def __post_init__(self) -> None:
        self.leases = self._new_leases()
        drop = self.faults.drop
        self.control = Link(self.coin, drop=drop, repeat=0.1, max_delay_s=0.3)
        self.data = Link(self.coin, drop=drop, repeat=0.1, max_delay_s=0.5)
        self.disk = Disk(self.timeline)
        self.trainer = ModelTrainer(self.disk, 1, 0, self.window, self.slice_size, self.control.send)
        self.past: list[ModelTrainer] = []
        """Incarnations that were killed."""
        self.workers: dict[str, ModelWorker] = {}
        self.joined_life: dict[str, int] = {}
        """Which life of each worker the dispatcher has admitted."""
        self.stopped_until_s: dict[str, float] = {}
        self.num_started = self.num_wishes = self.num_hedged = 0

    @property
    def delivered(self) -> list[BatchRange]:
        """Every batch that any incarnation's loop took, in the order of taking."""
        return [batch for trainer in (*self.past, self.trainer) for batch in trainer.taken]

    def run(self, num_workers: int, max_s: float) -> None:
        """Until every batch was taken; fails if that takes longer than max_s of model time."""
        now_s = 0.0
        while not self.trainer.ended:
            now_s += TICK_S
            assert now_s < max_s, f"no progress: head {self.trainer.head_step} of {self.trainer.timeline.num_steps}"
            if now_s < self.faults.until_s:
                self._fail_at_random()
            while sum(not worker.is_leaving for worker in self.workers.values()) < num_workers:
                self._start_worker(now_s)
            self._workers_work(now_s)
            for message in self.control.arrived(now_s):
                self._deliver(message, now_s)
            for header in self.data.arrived(now_s):
                assert isinstance(header, SliceHeader)
                self.trainer.place(header)
            self._dispatch(Ticked(), now_s)
            if self.coin.random() < 0.7:
                self.trainer.take()
            self.trainer.speak(now_s)

    @staticmethod
    def _new_leases() -> Leases:
        return Leases(worker_ttl_s=10.0, stream_ttl_s=1e9, resend_s=2.0)

    def _fail_at_random(self) -> None:
        if self.coin.random() < self.faults.restart:
            self.leases = self._new_leases()
        if self.coin.random() < self.faults.resume:
            self._resume()
        if self.trainer.wish is None and self.coin.random() < self.faults.swap:
            self.num_wishes += 1
            at_step = self.coin.choice([0, self.trainer.head_step + self.coin.randint(0, 8)])
            self.trainer.wish = Wish(f"r{self.num_wishes}", at_step)
        if self.faults.narrow and self.coin.random() < self.faults.narrow:
            self.trainer.narrow(self.coin.randint(1, self.window))

    def _resume(self) -> None:
        self.past.append(self.trainer)
        self.trainer = resumed(self.trainer, self.coin, self.faults.other_batch_size, self.control.send)

    # workers

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
            if name != "w1" and self.coin.random() < self.faults.kill:
                del self.workers[name]
                self._dispatch(WorkerGone(worker=name, cause="SIGKILL", blame=True), now_s)
                continue
            if name != "w1" and self.coin.random() < self.faults.leave:
                worker.is_leaving = True
            if now_s < self.faults.until_s and self.coin.random() < self.faults.silence:
                self.stopped_until_s[name] = now_s + 15.0
            if now_s < self.stopped_until_s.get(name, 0.0):
                continue
            if worker.holding and self.coin.random() < 0.5:
                self._make(worker, worker.holding.pop(0), now_s)
            self.control.send(FromWorker(name, worker.life, worker.beat()), now_s)
            if worker.is_leaving:
                self.control.send(FromWorker(name, worker.life, WorkerLeaving(worker=name)), now_s)

    def _make(self, worker: ModelWorker, lease: Lease, now_s: float) -> None:
        unreadable = self.faults.unreadable
        failed = [p for p in range(lease.start, lease.stop) if p in unreadable and not lease.quarantined.get(p)]
        if not failed and self.coin.random() < self.faults.flaky:
            failed = [self.coin.randrange(lease.start, lease.stop)]
        if failed:
            position = failed[0]
            lost = Lost(position=position, attempt=lease.quarantined.get(position, 0), cause="I/O error")
            event = SliceGivenBack(worker=worker.name, lease=lease.number, failed=lost)
            self.control.send(FromWorker(worker.name, worker.life, event), now_s)
        else:
            self.data.send(header_of(lease, worker.name), now_s)

    # what the links bring

    def _deliver(self, message: object, now_s: float) -> None:
        match message:
            case FromWorker():
                self._hear_worker(message, now_s)
            case ToWorker():
                self._tell_worker(message, now_s)
            case ToTrainer(incarnation=incarnation) if incarnation == self.trainer.incarnation:
                if not self.trainer.hear(message, lambda: self.coin.random() < self.faults.crash_in_swap):
                    self._resume()
            case StreamRegistered() | StreamBeaten():
                self._dispatch(message, now_s)
            case AskProbe(incarnation=incarnation, recipe=recipe):
                self._probe(("s", incarnation), recipe, now_s)

    def _hear_worker(self, message: FromWorker, now_s: float) -> None:
        name, life = message.name, message.life
        if name not in self.workers or life < self.joined_life.get(name, 0):
            return
        if isinstance(message.event, WorkerJoined):
            if life == self.joined_life.get(name) and name in self.leases.workers:
                return  # the link's own repetition
            self.joined_life[name] = life
        self._dispatch(message.event, now_s)

    def _tell_worker(self, message: ToWorker, now_s: float) -> None:
        worker = self.workers.get(message.name)
        if worker is None:
            return
        if isinstance(message.what, Lease):
            if message.life == self.joined_life[message.name]:
                worker.take(message.what)
        elif message.life == worker.life:
            if message.what == "join again":
                worker.forget()
                self._join(message.name, now_s)
            elif not worker.holding:  # dismissed; what it took since must be given back
                del self.workers[message.name]
                if self.coin.random() >= self.faults.drop:
                    self._dispatch(WorkerGone(worker=message.name, cause="left", blame=False), now_s)

    def _probe(self, stream_id: StreamId, recipe: str, now_s: float) -> None:
        stream = self.leases.streams.get(stream_id)
        if stream is not None:
            answer = Probed(recipe, not recipe.endswith(("3", "6", "9")), stream.unleased_step)
            self.control.send(ToTrainer(stream_id[1], answer), now_s)

    # the dispatcher

    def _dispatch(self, event: Event, now_s: float) -> None:
        for action in self._stepped(event, now_s):
            match action:
                case Grant(worker=name, lease=lease):
                    self._check_window(lease)
                    self.control.send(ToWorker(name, self.joined_life[name], lease), now_s)
                case ReportLost(stream=(_, incarnation), lost=lost):
                    self.control.send(ToTrainer(incarnation, lost), now_s)
                case AskToJoin(worker=name):
                    self.control.send(ToWorker(name, self.workers[name].life, "join again"), now_s)
                case Dismiss(worker=name) if name in self.workers:
                    self.control.send(ToWorker(name, self.workers[name].life, "dismissed"), now_s)
                case AskToRegister(stream=(_, incarnation)):
                    self.control.send(ToTrainer(incarnation, RegisterAgain()), now_s)
        if isinstance(event, StreamRegistered) and (stream := self.leases.streams.get(event.stream)) is not None:
            self.control.send(ToTrainer(event.stream[1], Known(stream.revision)), now_s)
        self.num_hedged += sum(stream.num_hedged for stream in self.leases.streams.values()) > 0

    def _stepped(self, event: Event, now_s: float) -> list[Action]:
        stream = self.leases.streams.get(event.stream) if isinstance(event, StreamRegistered) else None
        revision = stream.revision if stream else -1
        actions = self.leases.step(event, now_s)
        if isinstance(event, StreamRegistered) and event.revision > revision:
            known = self.leases.streams.get(event.stream)
            assert known is None or known.window == event.window, "a registration's window counts from then on"
        return actions

    def _check_window(self, lease: Lease) -> None:
        stream = self.leases.streams[lease.stream, lease.incarnation]
        assert len(stream.leased[lease.start, lease.stop]) <= 2
        assert sum(stop - start for start, stop in stream.leased) <= self.window * 12, "more than the window is leased"
        timeline, head_step = stream.timeline, stream.head_step
        steps = range(head_step, min(head_step + stream.window, timeline.num_steps))
        in_window = [timeline.batch(step) for step in steps]
        assert any(batch.start <= lease.start and lease.stop <= batch.stop for batch in in_window), "beyond the window"
        if lease.incarnation == self.trainer.incarnation:
            assert head_step <= self.trainer.head_step, "the dispatcher can't be ahead of the training loop"
