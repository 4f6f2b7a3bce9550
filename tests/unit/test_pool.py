"""A pool: whom it kills, and what it says of workers that end."""

from __future__ import annotations

import signal
import typing
from pathlib import Path

import pytest

from pipeline.messages import AnyMessage, WorkerDied
from pipeline.wire import decode_message
from workers import pool as module
from workers.pool import FORK_SERVER_LOST, LOOK_S, Pool, PoolConfig
from workers.progress import IDLE, ProgressSlot

HANG_S = 5.0


class Process:
    """What a pool sees of a worker process, without one."""

    pid = 2**22
    sentinel = 5

    def __init__(self, target: object, args: tuple[typing.Any], name: str, daemon: bool) -> None:
        self.exitcode: int | None = None
        self.progress_path: Path = args[0].progress_path
        self.position_at_start: int | None = None

    def start(self) -> None:
        self.position_at_start = ProgressSlot(self.progress_path).read().position

    def kill(self) -> None:
        self.exitcode = -signal.SIGKILL

    def terminate(self) -> None:
        self.exitcode = -signal.SIGTERM

    def join(self, timeout: float | None = None) -> None:
        assert self.exitcode is not None

    def close(self) -> None:
        pass


class Dealer:
    """Keeps what is said, until it is closed."""

    def __init__(self) -> None:
        self.said: list[AnyMessage] = []
        self.is_closed = False

    def send(self, frame: bytes) -> None:
        assert not self.is_closed
        self.said.append(decode_message(frame))

    def close_when_sent(self, wait_s: float) -> None:
        assert wait_s > 0
        self.is_closed = True


class Poller:
    def add(self, source: int) -> None:
        pass

    def remove(self, source: int) -> None:
        pass


class Bench:
    """A pool of one worker that has begun its sample 7 and does not go on."""

    def __init__(self, directory: Path) -> None:
        self.dealer = Dealer()
        config = PoolConfig(
            connect="ipc:///nowhere", num_workers=1, sources={}, plugins=(), base=directory, hang_s=HANG_S,
            directory=directory,
        )  # fmt: skip
        self.pool = Pool(config, typing.cast(typing.Any, self.dealer), typing.cast(typing.Any, Poller()))
        self.now_s = 100.0
        self.pool.look(self.now_s)
        self.process = self.current()
        worker = ProgressSlot(self.process.progress_path)
        worker.begin_slice("run/train", 1)
        worker.begin_sample(7)

    def current(self) -> Process:
        (member,) = self.pool.members.values()
        return typing.cast(Process, member.process)

    def looks_for(self, seconds: float) -> None:
        for _ in range(int(seconds / LOOK_S)):
            self.now_s += LOOK_S
            self.pool.look(self.now_s)


@pytest.fixture(name="bench")
def _bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module._forkserver, "Process", Process)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module.os, "kill", lambda pid, number: None)
    return Bench(tmp_path)


def test_a_worker_without_progress_is_killed_after_hang_s(bench: Bench) -> None:
    """One endless transform must not hold a run of days."""
    bench.looks_for(HANG_S)
    assert bench.process.exitcode is None
    bench.looks_for(3 * LOOK_S)
    (died,) = bench.dealer.said
    assert isinstance(died, WorkerDied)
    assert (died.by_itself, died.in_peace, died.position) == (True, False, 7)
    assert "no progress for 5 s" in died.cause


def test_a_pool_that_was_stopped_itself_kills_nobody_for_it(bench: Bench) -> None:
    """SIGSTOP, or a suspended machine, stops workers too: their clocks begin anew, and then run as ever."""
    bench.looks_for(2.0)
    bench.now_s += 1000.0
    bench.looks_for(HANG_S)
    assert bench.process.exitcode is None
    bench.looks_for(1.0)
    assert bench.process is not bench.current()


def test_a_hung_worker_that_dies_just_before_its_signal_does_not_end_the_pool(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look and a signal is time enough to die."""

    def no_such_process(pid: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(module.os, "kill", no_such_process)
    bench.looks_for(HANG_S + 1.0)
    assert len(bench.dealer.said) == 1
    assert bench.process is not bench.current()


def test_a_worker_that_never_began_counts_as_idle(bench: Bench) -> None:
    """A file of zeros would read as work on position 0, and blame that sample for the death."""
    assert bench.process.position_at_start == IDLE
    bench.process.exitcode = 1
    bench.looks_for(1.0)
    bench.current().exitcode = 1
    bench.looks_for(1.0)
    assert [typing.cast(WorkerDied, died).position for died in bench.dealer.said] == [7, IDLE]


@pytest.mark.parametrize(
    ("exitcode", "by_itself"), [(-signal.SIGSEGV, True), (1, True), (-signal.SIGKILL, False), (FORK_SERVER_LOST, False)]
)
def test_a_kill_from_outside_is_not_a_crash(bench: Bench, exitcode: int, by_itself: bool) -> None:
    """The out-of-memory killer may take the fork server, and all workers with it: no sample is to blame."""
    bench.process.exitcode = exitcode
    bench.looks_for(LOOK_S)
    (died,) = bench.dealer.said
    assert typing.cast(WorkerDied, died).by_itself == by_itself


def test_a_pool_that_ends_says_so_for_each_worker(bench: Bench) -> None:
    """Else the dispatcher would wait ten seconds for them, and then blame the slices they held."""
    (name,) = bench.pool.members
    bench.pool.end()
    assert bench.dealer.said == [WorkerDied(worker=name, cause="its pool ended", by_itself=False, in_peace=True)]
    assert bench.dealer.is_closed
