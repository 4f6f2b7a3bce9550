"""The real dispatcher, trainers and workers, joined by lossy links in which anybody may fail; no socket, no clock.

`tests/laws.py` drives the leases alone with models of all else, which is quicker; here every message is one of the
protocol's, spelled as on the wire, and every part but sockets, threads and pixels is the one that users run."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pipeline.dispatcher import Dispatcher
from pipeline.errors import ConfigError, RunFailed
from pipeline.leases import Leases
from pipeline.messages import AnyMessage, Granted, WorkerDied
from pipeline.recipe import Chain, ChainNode, Recipe
from pipeline.service_messages import Answer, AskSwap
from pipeline.timeline import BatchRange, Timeline, TimelineChange, TimelineEntry
from pipeline.wire import decode_message, encode_message
from tests.law_core_trainer import STREAM, CoreDisk, CoreTrainer, Crashed
from tests.law_core_worker import CoreWorker, Exited, model_time
from tests.law_parts import Link
from tests.laws import Faults
from trainer.swapping import Wish

TICK_S = 0.1
ASK_EVERY_S = 0.5
OPERATOR = "operator-1"


def recipe(number: int, kind: str = "Good") -> Recipe:
    """`Bad` is refused by workers, `Wide` by the trainer since it delivers another shape."""
    return Recipe(chain=Chain(file=f"{number}.yaml", nodes=(ChainNode(name=kind), ChainNode(name=f"T{number}"))))


@dataclass(frozen=True)
class ToDispatcher:
    """A frame and who sent it."""

    identity: str
    frame: bytes


@dataclass(frozen=True)
class FromDispatcher:
    """A frame and whom it is for."""

    identity: str
    frame: bytes


class CoreSystem:
    """A job of one stream. At each moment: nothing is leased beyond the window, or to more than two."""

    def __init__(
        self, timeline: Timeline, recipes: list[Recipe], window: int, slice_size: int, coin: random.Random,
        faults: Faults, *, max_delay_s: float = 0.3, wrong: float = 0.0,
    ) -> None:  # fmt: skip
        """`max_delay_s`: 0 for links that keep order; `wrong`: how many workers have another folder than the job's."""
        self.window, self.slice_size, self.coin, self.faults = window, slice_size, coin, faults
        self.trainers_window = window
        """What the trainer allows now: `window` at most."""
        self.wrong = wrong
        self.now_s = 0.0
        self.control = Link(coin, drop=faults.drop, repeat=0.1, max_delay_s=max_delay_s)
        self.data = Link(coin, drop=faults.drop, repeat=0.1, max_delay_s=max_delay_s)
        self.disk = CoreDisk(timeline, {each.digest: each for each in recipes})
        self.past: list[CoreTrainer] = []
        self.trainer = self._new_trainer(1, 0)
        self.dispatcher, self.leases = self._new_dispatcher()
        self.workers: dict[str, CoreWorker] = {}
        self.stopped_until_s: dict[str, float] = {}
        self.asked: AskSwap | None = None
        """What the operator still waits for."""
        self.answers: list[Answer] = []
        self.num_started = self.num_wishes = self.num_workers = 0
        self._wishes: list[Wish] = []

    @property
    def delivered(self) -> list[BatchRange]:
        """Every batch that any incarnation's loop took, in the order of taking."""
        return [batch for trainer in (*self.past, self.trainer) for batch in trainer.taken]

    def run(self, num_workers: int, max_s: float) -> None:
        """Until every batch was taken; fails if that takes longer than max_s of model time."""
        self.num_workers = num_workers
        with model_time(lambda: self.now_s):
            try:
                while not self.trainer.ended:
                    self.now_s += TICK_S
                    progress = f"head {self.trainer.head_step} of {self.trainer.course.timeline.num_steps}"
                    assert self.now_s < max_s, f"no progress: {progress}"
                    self._moment()
            finally:
                for worker in self.workers.values():
                    worker.end()

    def _moment(self) -> None:
        if self.now_s < self.faults.until_s:
            self._fail_at_random()
        while sum(worker.control._leave_by_s is None for worker in self.workers.values()) < self.num_workers:
            self._start_worker()
        notices: list[bytes] = []
        for message in self.control.arrived(self.now_s):
            match message:
                case ToDispatcher(identity=identity, frame=frame):
                    self.dispatcher.receive(identity.encode(), frame, self.now_s)
                case FromDispatcher(identity=identity, frame=frame):
                    if identity.startswith(STREAM):
                        notices.append(frame)  # those for an earlier incarnation, too
                    elif identity == OPERATOR:
                        self._answered(frame)
                    elif self._is_awake(identity):
                        self.workers[identity].hear(frame)
        self._workers_turn()
        self.dispatcher.tick(self.now_s)
        slices = [frames for frames in self.data.arrived(self.now_s) if isinstance(frames, list)]
        self._trainer_turn(slices, notices)

    def _fail_at_random(self) -> None:
        coin, faults = self.coin, self.faults
        if coin.random() < faults.restart:
            self.dispatcher, self.leases = self._new_dispatcher()
        if coin.random() < faults.resume:
            self._resume()
        if coin.random() < faults.leave:
            self.num_workers = coin.randint(1, 4)
            spare = [name for name in self.workers if name != "w1"]
            for name in spare[self.num_workers - 1 :]:
                self.workers[name].leave(self.now_s)
        if coin.random() < faults.swap:
            self._wish()
        if faults.narrow and coin.random() < faults.narrow:
            self.trainers_window = coin.randint(1, self.window)
        if self.asked is not None and self.now_s % ASK_EVERY_S < TICK_S:
            self.control.send(ToDispatcher(OPERATOR, encode_message(self.asked)), self.now_s)

    def _wish(self) -> None:
        self.num_wishes += 1
        wanted = recipe(self.num_wishes, self.coin.choice(["Good", "Good", "Bad", "Wide"]))
        at_step = self.coin.choice([None, self.trainer.head_step + self.coin.randint(0, 8)])
        operation = f"o{self.num_wishes}"
        if self.asked is None and self.coin.random() < 0.5:
            chain = self.coin.choice([wanted.chain, None])
            self.asked = AskSwap(operation=operation, stream=STREAM, chain=chain, at_step=at_step)
        else:
            edited = self.coin.choice(["", "0.yaml"])
            self._wishes.append(Wish(operation=operation, recipe=wanted, at_step=at_step, edited=edited))

    def _answered(self, frame: bytes) -> None:
        answer = decode_message(frame)
        assert isinstance(answer, Answer)
        if self.asked is not None and answer.operation == self.asked.operation:
            self.answers.append(answer)
            self.asked = None

    # the trainer

    def _new_trainer(self, incarnation: int, head_step: int) -> CoreTrainer:
        identity = f"{STREAM}#{incarnation}"
        return CoreTrainer(
            self.disk, incarnation, head_step, window=lambda: self.trainers_window, slice_size=self.slice_size,
            send=lambda frame: self.control.send(ToDispatcher(identity, frame), self.now_s),
            crashes=lambda: self.now_s < self.faults.until_s and self.coin.random() < self.faults.crash_in_swap,
        )  # fmt: skip

    def _trainer_turn(self, slices: list[list[bytes]], notices: list[bytes]) -> None:
        wishes, self._wishes = self._wishes, []
        try:
            self.trainer.turn(self.now_s, slices, notices, wishes)
            if self.coin.random() < 0.7 and not self.trainer.ended:
                self.trainer.take()
        except Crashed:
            self._resume()
        except RunFailed as error:  # a sample that was there before can't be read again now
            if "can't be done again" not in str(error):
                raise
            self._resume()
        except ConfigError as error:  # five were killed while they probed: by policy the chain's fault
            if "workers survive" not in str(error):
                raise
            self._resume()

    def _resume(self) -> None:
        """From a checkpoint at or before where it stood; perhaps with another batch size."""
        self.past.append(self.trainer)
        head_step = self.coin.randint(max(0, self.trainer.head_step - 5), self.trainer.head_step)
        disk, step = self.disk, max(head_step, self.disk.num_delivered)
        is_last = all(entry.step <= step for entry in disk.timeline.entries)
        if self.coin.random() < self.faults.other_batch_size and is_last and step < disk.timeline.num_steps:
            here = disk.timeline.entry_at(step)
            entry = TimelineEntry(
                start=disk.timeline.start_of(step), step=step, recipe=here.recipe, batch_size=self.coin.randint(1, 12)
            )
            disk.write(disk.recipes[here.recipe], TimelineChange(from_step=step, entries=(entry,), why="resume"))
        self.trainer = self._new_trainer(self.trainer.incarnation + 1, head_step)

    # workers

    def _start_worker(self) -> None:
        self.num_started += 1
        name = f"w{self.num_started}"
        self.workers[name] = CoreWorker(
            name, self.coin, lambda frame: self.control.send(ToDispatcher(name, frame), self.now_s),
            lambda frames: self.data.send(frames, self.now_s), self._may_read,
            is_wrong=name != "w1" and self.coin.random() < self.wrong,
        )  # fmt: skip

    def _may_read(self, position: int, attempt: int) -> bool:
        return (attempt > 0 or position not in self.faults.unreadable) and self.coin.random() >= self.faults.flaky

    def _is_awake(self, name: str) -> bool:
        return name in self.workers and self.now_s >= self.stopped_until_s.get(name, 0.0)

    def _workers_turn(self) -> None:
        for name, worker in list(self.workers.items()):
            if name != "w1" and self.coin.random() < self.faults.kill:
                died = WorkerDied(worker=name, cause="killed by SIGKILL", by_itself=False)
                self.control.send(ToDispatcher("pool", encode_message(died)), self.now_s)
                self._end(name)
                continue
            if self.now_s < self.faults.until_s and self.coin.random() < self.faults.silence:
                self.stopped_until_s[name] = self.now_s + 15.0
            if self._is_awake(name):
                try:
                    goes_on = worker.turn(self.now_s)
                except Exited:  # it was leaving, and nobody dismissed it
                    goes_on = False
                if not goes_on:
                    self._end(name)

    def _end(self, name: str) -> None:
        self.workers.pop(name).end()

    # the dispatcher

    def _new_dispatcher(self) -> tuple[Dispatcher, Leases]:
        leases = Leases(worker_ttl_s=10.0, stream_ttl_s=1e9, resend_s=2.0)

        def send(identity: bytes, message: AnyMessage) -> None:
            if isinstance(message, Granted):
                self._check_lease(message, leases)
            self.control.send(FromDispatcher(identity.decode(), encode_message(message)), self.now_s)

        return Dispatcher(send, leases, self.now_s), leases

    def _check_lease(self, granted: Granted, leases: Leases) -> None:
        lease = granted.lease
        stream = leases.streams[lease.stream, lease.incarnation]
        assert len(stream.leased[lease.start, lease.stop]) <= 2
        assert sum(stop - start for start, stop in stream.leased) <= self.window * 12, "more than the window is leased"
        timeline, head_step = stream.timeline, stream.head_step
        steps = range(head_step, min(head_step + stream.window, timeline.num_steps))
        in_window = [timeline.batch(step) for step in steps]
        fits = [batch for batch in in_window if batch.start <= lease.start and lease.stop <= batch.stop]
        assert [lease.recipe] == [batch.recipe for batch in fits], "beyond the window, or of two recipes"
        if lease.incarnation == self.trainer.incarnation:
            assert head_step <= self.trainer.head_step, "the dispatcher can't be ahead of the training loop"
