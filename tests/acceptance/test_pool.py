"""A real pool before a dispatcher that a test plays: it grows and shrinks, leaves in peace, and dies as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from pipeline.errors import EXIT_USER_INPUT
from pipeline.messages import AnyMessage, Dismissed, Join, Leaving, WorkerDied
from pipeline.service_messages import Condemned, PoolBeat, Resize
from pipeline.transport import Context, Poller, remove_socket_file
from pipeline.wire import decode_message, encode_message
from tests.home import Home
from tests.processes import DEADLINE_S, Headrace, descendants, run_headrace, workers

Kind = TypeVar("Kind", bound=AnyMessage)


class Dispatcher:
    """Hears everything, answers a pool's beats, and dismisses who wants to leave."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.said: list[AnyMessage] = []
        self.context = Context()
        self.router = self.context.router(endpoint)
        self.poller = Poller()
        self.poller.add(self.router)
        self.size = 2

    def hear_until(self, condition: Callable[[], bool], what: str) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < give_up_s, (what, self.said)
            self.poller.wait(0.05)
            while (received := self.router.receive()) is not None:
                self._answer(received[0], decode_message(received[1]))

    def heard(self, kind: type[Kind]) -> list[Kind]:
        return [message for message in self.said if isinstance(message, kind)]

    def beat(self) -> PoolBeat:
        """The pool's last."""
        return self.heard(PoolBeat)[-1]

    def tell(self, identity: str, message: AnyMessage) -> None:
        self.router.send(identity.encode(), encode_message(message))

    def close(self) -> None:
        self.context.close()
        remove_socket_file(self.endpoint)

    def _answer(self, identity: bytes, message: AnyMessage) -> None:
        self.said.append(message)
        match message:
            case PoolBeat():
                answer: AnyMessage = Resize(pool=message.pool, size=self.size, automatic=False)
            case Leaving():
                answer = Dismissed(worker=message.worker)
            case _:
                return
        self.router.send(identity, encode_message(answer))


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


@pytest.fixture
def dispatcher(home: Home) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(f"ipc://{home.path}/d")
    yield dispatcher
    dispatcher.close()


@contextlib.contextmanager
def pool_of(num: int, home: Home, folder: Path, dispatcher: Dispatcher, *more: str) -> Iterator[Headrace]:
    dispatcher.size = num
    arguments = ["--connect", dispatcher.endpoint, "--num", str(num), "--name", "p1", "--max", "6", *more]
    with Headrace("workers", *arguments, folder=folder, environment=home.environment) as pool:
        dispatcher.hear_until(lambda: len(dispatcher.heard(Join)) >= num, f"{num} workers have joined")
        yield pool


def names(said: list[Join] | list[Leaving]) -> set[str]:
    return {message.worker for message in said}


def test_a_pool_grows_and_shrinks_and_who_leaves_is_dismissed_first(
    home: Home, tmp_path: Path, dispatcher: Dispatcher
) -> None:
    """The youngest go, each after it was told that all it sent has arrived."""
    with pool_of(1, home, tmp_path, dispatcher):
        eldest = dispatcher.heard(Join)[0]
        dispatcher.size = 3
        asked_s = time.monotonic()
        dispatcher.tell("p1", Resize(pool="p1", size=3, automatic=False))
        dispatcher.hear_until(lambda: len(dispatcher.heard(Join)) == 3, "two more")
        print(f"two workers joined {time.monotonic() - asked_s:.3f} s after the word")
        assert {message.pool for message in dispatcher.heard(Join)} == {"p1"}
        joined = names(dispatcher.heard(Join))
        dispatcher.hear_until(lambda: set(dispatcher.beat().workers) >= joined, "a beat of three")

        dispatcher.size = 1
        dispatcher.tell("p1", Resize(pool="p1", size=1, automatic=False))
        dispatcher.hear_until(lambda: dispatcher.beat().workers == (eldest.worker,), "a beat of one")

        died = dispatcher.heard(WorkerDied)
        assert {message.worker for message in died} == joined - {eldest.worker}
        assert all(message.in_peace and not message.by_itself for message in died)
        assert names(dispatcher.heard(Leaving)) == {message.worker for message in died}
        assert dispatcher.beat().num_restarts == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_pool_that_is_asked_to_stop_lets_its_workers_leave_and_ends_well(
    number: signal.Signals, home: Home, tmp_path: Path, dispatcher: Dispatcher
) -> None:
    """A standing service is stopped on purpose: exit code 0, and nothing is left."""
    with pool_of(2, home, tmp_path, dispatcher) as pool:
        os.killpg(pool.pid, number) if number == signal.SIGINT else os.kill(pool.pid, number)
        dispatcher.hear_until(lambda: len(dispatcher.heard(WorkerDied)) == 2, "both have left")
        assert len(names(dispatcher.heard(Leaving))) == 2
        assert all(message.in_peace for message in dispatcher.heard(WorkerDied))
        finished = pool.finish()
    assert finished.code == 0, finished.err
    assert "Traceback" not in finished.err
    dispatcher.close()
    home.assert_empty_soon()


def test_a_second_request_ends_a_pool_at_once(home: Home, tmp_path: Path, dispatcher: Dispatcher) -> None:
    """Nobody dismisses its workers here, and the user has no time."""
    with pool_of(2, home, tmp_path, dispatcher) as pool:
        pool.process.terminate()
        time.sleep(0.5)
        pool.process.terminate()
        assert pool.finish().code == 0
        dispatcher.hear_until(lambda: len(dispatcher.heard(WorkerDied)) == 2, "its last words")
        assert all(message.in_peace for message in dispatcher.heard(WorkerDied))


@pytest.mark.long
@pytest.mark.parametrize("first", [[], ["forkserver"], ["worker"], ["forkserver", "worker"]], ids=str)
def test_a_killed_pool_takes_all_it_started_with_it(
    first: list[str], home: Home, tmp_path: Path, dispatcher: Dispatcher
) -> None:
    """Also what was stopped before, and could not have ended by itself."""
    with pool_of(2, home, tmp_path, dispatcher) as pool:
        started = descendants(pool.pid)
        found = workers(pool.pid)
        assert len(found) == 2
        if "worker" in first:
            found[0].suspend()
        if "forkserver" in first:
            fork_server(pool).suspend()
        os.kill(pool.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(started, timeout=5.0)
        assert alive == []


@pytest.mark.long
def test_a_stopped_fork_server_is_replaced_with_its_workers(home: Home, tmp_path: Path, dispatcher: Dispatcher) -> None:
    """Its pool would wait for ever for the next worker."""
    with pool_of(1, home, tmp_path, dispatcher) as pool:
        stopped = fork_server(pool)
        stopped.suspend()
        dispatcher.size = 2
        dispatcher.tell("p1", Resize(pool="p1", size=2, automatic=False))
        dispatcher.hear_until(lambda: len(dispatcher.heard(Join)) >= 3, "two new workers")
        assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
        dispatcher.hear_until(lambda: len(dispatcher.beat().workers) == 2, "a beat of two")


@pytest.mark.long
def test_a_condemned_worker_is_killed_though_it_is_stopped(home: Home, tmp_path: Path, dispatcher: Dispatcher) -> None:
    """And another takes its place."""
    with pool_of(1, home, tmp_path, dispatcher) as pool:
        (worker,) = workers(pool.pid)
        worker.suspend()
        dispatcher.tell("p1", Condemned(pool="p1", worker=dispatcher.heard(Join)[0].worker))
        dispatcher.hear_until(lambda: len(dispatcher.heard(Join)) == 2, "a new worker")
        assert not worker.is_running()
        (died,) = dispatcher.heard(WorkerDied)
        assert not died.by_itself
        assert dispatcher.beat().num_restarts == 1


def test_a_pool_waits_for_its_dispatcher_and_says_so(home: Home, tmp_path: Path) -> None:
    """Whichever is started first; and while nobody is there, a stop is at once."""
    endpoint = f"ipc://{home.path}/d"
    arguments = ["--connect", endpoint, "--num", "1", "--name", "p1"]
    with Headrace("workers", *arguments, folder=tmp_path, environment=home.environment) as pool:
        said = tmp_path / "command.err"
        pool.wait_until(lambda: f"waiting for the dispatcher at {endpoint}" in said.read_text(), "it says so")
        dispatcher = Dispatcher(endpoint)
        dispatcher.size = 1
        dispatcher.hear_until(lambda: bool(dispatcher.heard(Join)), "its worker joins")
        assert len(dispatcher.heard(Join)) == 1
        # A worker is quicker than the next beat now and then, and only beats are answered.
        dispatcher.hear_until(lambda: bool(dispatcher.heard(PoolBeat)), "a beat")
        pool.wait_until(lambda: f"the dispatcher at {endpoint} answers" in said.read_text(), "it says that too")
        dispatcher.close()
        pool.wait_until(lambda: "has not answered for" in said.read_text(), "it is waited for again")
        pool.process.terminate()
        assert pool.finish().code == 0
    home.assert_empty_soon()


def test_a_pool_whose_plug_in_can_not_be_imported_ends_with_the_place_of_the_fault(home: Home, tmp_path: Path) -> None:
    """In words, once, and without a dispatcher: no restart would mend it."""
    (tmp_path / "broken.py").write_text("import os\n\nos.nothing_of_that_name\n")
    arguments = ["--connect", f"ipc://{home.path}/d", "--num", "2", "--plugins", "broken.py"]
    finished = run_headrace("workers", *arguments, folder=tmp_path, environment=home.environment)
    assert finished.code == EXIT_USER_INPUT
    assert f"headrace: {tmp_path / 'broken.py'}:3: broken.py\n  expected: " in finished.err
    assert "Traceback" not in finished.err
    home.assert_empty_soon()


@pytest.mark.long
def test_a_plug_in_that_breaks_while_a_pool_works_is_told_until_it_is_mended(
    home: Home, tmp_path: Path, dispatcher: Dispatcher
) -> None:
    """Whoever edits a file that a pool of days has loaded does not end it, even if its fork server dies just then."""
    (tmp_path / "plug.py").write_text("value = 1\n")
    with pool_of(1, home, tmp_path, dispatcher, "--plugins", "plug.py") as pool:
        (tmp_path / "plug.py").write_text("value =\n")
        workers(pool.pid)[0].kill()
        dispatcher.hear_until(lambda: len(dispatcher.heard(Join)) == 2, "a worker with the code from before")
        fork_server(pool).kill()
        dispatcher.hear_until(
            lambda: any("plug.py:1" in died.cause for died in dispatcher.heard(WorkerDied)), "what is wrong"
        )
        (tmp_path / "plug.py").write_text("value = 2\n")
        dispatcher.hear_until(lambda: len(dispatcher.heard(Join)) == 3, "a worker again")


def fork_server(pool: Headrace) -> psutil.Process:
    return workers(pool.pid)[0].parent()
