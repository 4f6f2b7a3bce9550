"""Services of a job, and standing ones: killed or stopped at any time, they come back, and no batch changes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from headrace.embedded import Streams, open_streams
from headrace.service_process import ServiceProcess
from headrace.services import Services
from pipeline.config import load_job
from pipeline.config_job import Job
from pipeline.errors import EXIT_USER_INPUT, RunFailed
from pipeline.operator import Operator, new_operation
from pipeline.service_messages import AskScale
from tests.acceptance.test_kills import slow_job
from tests.home import GONE_WITHIN_S, Home, small_job
from tests.processes import DEADLINE_S, Headrace, dispatchers, pools, run_headrace, workers

BATCH_SIZE, SLICE_SIZE, WINDOW = 20, 5, 4
"""As in `slow_job`."""
SLEEP_S = 0.002
COUNTER = """
import os, time
from albumentations import ImageOnlyTransform

class Slow(ImageOnlyTransform):
    \"\"\"Sets the pace by sleeping, and leaves a byte for each image that it is given.\"\"\"

    def apply(self, img, **params):
        time.sleep(float(os.environ.get("TEST_SLEEP_S", "0")))
        if "TEST_COUNT" in os.environ:
            with open(os.environ["TEST_COUNT"], "ab", buffering=0) as counter:
                counter.write(b".")
        return img
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home for this process too: the streams of these tests are opened here."""
    home = Home()
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TEST_SLEEP_S", str(SLEEP_S))
    yield home
    home.remove()


@pytest.fixture
def job(tmp_path: Path, arrays: Path) -> Job:
    """Without end, at the pace of its sleeping workers."""
    path = slow_job(tmp_path, arrays, num_epochs=10_000)
    (tmp_path / "slow.py").write_text(COUNTER)
    return load_job(path, ["max_workers=6"])


@dataclass
class Taken:
    """The digests of a stream's batches, in the order in which the loop saw them."""

    streams: Streams
    digests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._batches = iter(self.streams.train)

    def take(self, num: int) -> None:
        for _ in range(num):
            batch = next(self._batches)
            assert batch.step == len(self.digests)
            self.digests.append(batch.digest)

    def take_until(self, condition: Callable[[], bool], what: str) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < give_up_s, what
            self.take(1)


def undisturbed(job: Job, num: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What one process makes of the job, without sleeping."""
    monkeypatch.setenv("TEST_SLEEP_S", "0")
    with open_streams(job, 0) as streams:
        taken = Taken(streams)
        taken.take(num)
    return taken.digests


def fork_servers(pid: int) -> list[psutil.Process]:
    """None or one: the parent of the workers."""
    found = {worker.ppid(): worker.parent() for worker in workers(pid)}
    return [parent for parent in found.values() if parent is not None]


VICTIMS = {"dispatcher": dispatchers, "pool": pools, "fork server": fork_servers, "worker": workers}


def endpoint_of(home: Home) -> str:
    """Where the job's own dispatcher listens."""
    (directory,) = (home.runtime / "headrace").iterdir()
    return f"ipc://{directory / 'control'}"


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)],
    ids=lambda number: number.name,
)
def test_every_part_is_replaced_after_a_signal_and_no_batch_changes(
    number: signal.Signals, job: Job, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laws 2, 5 and 9: the loop notices a pause at most."""
    with open_streams(job, 2) as streams:
        taken = Taken(streams)
        taken.take(5)
        for name, find in VICTIMS.items():
            victim = find(os.getpid())[0]
            victim.send_signal(number)
            began_s = time.monotonic()

            def is_replaced(victim: psutil.Process = victim, find: Callable[..., list[psutil.Process]] = find) -> bool:
                return is_gone(victim) and bool(find(os.getpid())) and len(workers(os.getpid())) == 2

            taken.take_until(is_replaced, f"another {name}")
            print(f"{name}: replaced {time.monotonic() - began_s:.1f} s after {number.name}")
            taken.take(10)
        assert len(dispatchers(os.getpid())) == len(pools(os.getpid())) == 1
    home.assert_empty_soon()
    assert taken.digests == undisturbed(job, len(taken.digests), monkeypatch)


@pytest.mark.long
def test_all_parts_killed_at_once_come_back(job: Job, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is needed stands in any of them, and the pool has the size that it was scaled to."""
    with open_streams(job, 2) as streams, Operator(endpoint_of(home)) as operator:
        taken = Taken(streams)
        operator.done(AskScale(operation=new_operation(), num_workers=3), lambda: None)
        taken.take_until(lambda: len(operator.status().workers) == 3, "a third worker")
        time.sleep(1.5)  # the watcher asks once a second
        for process in home.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        taken.take_until(lambda: len(workers(os.getpid())) == 3, "three workers again")
        taken.take(20)
    home.assert_empty_soon()
    assert taken.digests == undisturbed(job, len(taken.digests), monkeypatch)


@pytest.mark.long
def test_an_end_in_the_middle_of_a_restart_leaves_nothing(job: Job, home: Home) -> None:
    """A service that is just being started must not be forgotten."""
    for delay_s in (0.0, 0.05, 0.15, 0.3):
        services = Services(job, 1)
        for process in home.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(delay_s)
        services.end()
        home.assert_empty_soon()


def test_a_service_that_the_users_input_ends_is_not_started_again(
    job: Job, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find the same; its own words tell the user what is wrong."""
    broken = ["--connect", "ipc:///nowhere", "--source", "nonsense"]
    monkeypatch.setattr(Services, "_pool_arguments", lambda services: list(broken))
    services = Services(job, 1)
    try:
        with pytest.raises(RunFailed, match="nonsense") as failed:
            wait_for(lambda: services.check() is not None, "a failure")  # type: ignore[func-returns-value]
        assert "`headrace workers` ended with exit code 2" in str(failed.value)
    finally:
        services.end()
    home.assert_empty_soon()


@dataclass
class Kept:
    """The services of a job, and what they say of themselves."""

    services: Services
    notes: list[str]

    def pid(self, command: Literal["pipeline", "workers"]) -> int:
        process = self.services._services[command].process
        return process.pid if process is not None else 0

    def is_whole(self) -> bool:
        self.services.check()
        parts = dispatchers(os.getpid()), pools(os.getpid()), workers(os.getpid())
        return [len(found) for found in parts] == [1, 1, 1]


@pytest.fixture
def kept(job: Job, home: Home) -> Iterator[Kept]:
    """Services of one worker, all of which live."""
    notes: list[str] = []
    kept = Kept(Services(job, 1, on_trouble=notes.append), notes)
    try:
        wait_for(kept.is_whole, "all parts")
        yield kept
    finally:
        kept.services.end()
    home.assert_empty_soon()


@pytest.mark.long
def test_services_live_in_a_program_that_does_not_care_for_its_children(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores SIGCHLD, which processes inherit: nobody can say how a part ended, but that it did."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGCHLD, before))
    kept: Kept = request.getfixturevalue("kept")
    for name in ("dispatcher", "pool", "fork server"):
        victim = VICTIMS[name](os.getpid())[0]
        victim.kill()
        wait_for(lambda victim=victim: is_gone(victim) and kept.is_whole(), f"another {name}")  # type: ignore[misc]
    assert len(kept.notes) == 2
    assert all("nobody knows how" in note and "it is started again" in note for note in kept.notes)


@pytest.mark.long
def test_a_service_that_can_not_be_started_for_a_moment_is_started_the_next(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may be out of processes or memory just then; the run of days is not over."""
    real, failures = subprocess.Popen, [BlockingIOError(errno.EAGAIN, "no more processes")] * 2

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr("headrace.service_process.subprocess.Popen", start)
    os.kill(kept.pid("workers"), signal.SIGKILL)
    wait_for(lambda: not failures and kept.is_whole(), "another pool")
    assert [note for note in kept.notes if "could not be started" in note and "no more processes" in note]


@pytest.mark.long
@pytest.mark.parametrize("name", ["dispatcher", "pool", "worker"])
def test_a_signal_without_a_name_is_as_good_as_any(name: str, kept: Kept) -> None:
    """Real-time signals have none."""
    victim = VICTIMS[name](os.getpid())[0]
    os.kill(victim.pid, 40)
    wait_for(lambda: is_gone(victim) and kept.is_whole(), f"another {name}")
    assert name == "worker" or "ended by signal 40" in kept.notes[0]


@pytest.mark.long
def test_an_end_that_fails_somewhere_still_leaves_nothing(
    job: Job, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 9, whatever fails."""
    kill = ServiceProcess.kill

    def fail(process: ServiceProcess) -> str:
        kill(process)
        raise RuntimeError("a defect")

    services = Services(job, 1)
    monkeypatch.setattr(ServiceProcess, "kill", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        services.end()
    home.assert_empty_soon()


@pytest.mark.long
def test_a_plug_in_that_can_not_be_imported_ends_the_job_with_the_place_of_the_fault(
    job: Job, home: Home, tmp_path: Path
) -> None:
    """At once, and as the user's input: not as a lack of workers after `stall_timeout_s`."""
    (tmp_path / "slow.py").write_text("import os\n\nos.nothing_of_that_name\n")
    with (
        pytest.raises(RunFailed, match=rf"{tmp_path}/slow\.py:3: .*slow\.py\n") as failed,
        open_streams(job, 2) as streams,
    ):
        next(iter(streams.train))
    assert failed.value.exit_code == EXIT_USER_INPUT
    home.assert_empty_soon()


@pytest.mark.long
def test_an_edited_plug_in_changes_no_batch_though_workers_are_replaced(
    job: Job, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 1: what a recipe names is the code that its workers loaded, and who takes a dead one's place has it too."""
    with open_streams(job, 2) as streams:
        taken = Taken(streams)
        taken.take(5)
        (tmp_path / "slow.py").write_text(COUNTER.replace("return img", "return 255 - img"))
        dead = workers(os.getpid())
        for worker in dead:
            worker.kill()
        taken.take_until(lambda: all(map(is_gone, dead)) and len(workers(os.getpid())) == 2, "two others")
        taken.take(20)
    home.assert_empty_soon()
    (tmp_path / "slow.py").write_text(COUNTER)
    assert taken.digests == undisturbed(job, len(taken.digests), monkeypatch)


@pytest.mark.long
def test_services_that_were_stopped_end_with_their_trainer(home: Home, tmp_path: Path) -> None:
    """Stopped, they can't see that their lifeline is cut; nobody else would ever wake them."""
    job = small_job(tmp_path)
    with Headrace("train", job, "--workers", "1", folder=tmp_path, environment=home.environment) as trainer:
        trainer.wait_until(lambda: bool(workers(trainer.pid)), "a worker")
        for service in (*dispatchers(trainer.pid), *pools(trainer.pid)):
            service.suspend()
        trainer.process.kill()
        trainer.finish()
        give_up_s = time.monotonic() + GONE_WITHIN_S
        while home.processes():
            assert time.monotonic() < give_up_s
            time.sleep(0.05)


# standing services


@contextlib.contextmanager
def standing(name: str, home: Home, folder: Path, *arguments: str) -> Iterator[Headrace]:
    """A service of its own, in a folder of its own."""
    own = folder / name
    own.mkdir()
    with Headrace(name, *arguments, folder=own, environment=home.environment) as service:
        yield service


def pool_arguments(folder: Path, num: int) -> list[str]:
    return [
        *("--num", str(num), "--max", "6", "--name", "p1", "--base", str(folder)),
        *("--plugins", "slow.py", "--source", f"arrays={folder / 'arrays.npz'}"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("order", ["dispatcher pool trainer", "pool trainer dispatcher", "trainer dispatcher pool"])
def test_services_and_trainer_may_start_in_any_order(
    order: str, job: Job, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is early waits, says so, and goes on; the batches are those of a job that is all alone."""
    endpoint, connect = f"ipc://{home.path}/d", ("--connect", f"ipc://{home.path}/d")
    digests: list[str] = []

    def train() -> None:
        with open_streams(job, 0, connect=endpoint) as streams:
            taken = Taken(streams)
            taken.take(10)
            digests.extend(taken.digests)

    trainer = threading.Thread(target=train)
    with contextlib.ExitStack() as stack:
        services = {}
        for name in order.split():
            if name == "trainer":
                trainer.start()
            elif name == "pool":
                services[name] = stack.enter_context(
                    standing("workers", home, tmp_path, *connect, *pool_arguments(tmp_path, 2))
                )
            else:
                services[name] = stack.enter_context(standing("pipeline", home, tmp_path, "--listen", endpoint))
            time.sleep(1.0)  # so that they really start in this order
        trainer.join(DEADLINE_S)
        assert len(digests) == 10
        for service in services.values():
            service.process.terminate()
        for service in services.values():
            ended = service.finish()
            assert ended.code == 0, ended.err
            assert "Traceback" not in ended.err
    home.assert_empty_soon()
    assert digests == undisturbed(job, 10, monkeypatch)


@pytest.mark.long
def test_a_second_dispatcher_at_an_address_is_refused_and_the_first_goes_on(home: Home, tmp_path: Path) -> None:
    """ZeroMQ would take the socket over, and the first would be deaf without a word."""
    endpoint = f"ipc://{home.path}/d"
    with standing("pipeline", home, tmp_path, "--listen", endpoint) as first, Operator(endpoint) as operator:
        pid = operator.status().pid
        second = run_headrace("pipeline", "--listen", endpoint, folder=tmp_path, environment=home.environment)
        assert second.code == 2
        assert "another service listens there" in second.err
        assert operator.status().pid == pid == first.pid
        first.process.terminate()
        assert first.finish().code == 0
    home.assert_empty_soon()
    assert not (home.path / "d").exists()


@dataclass
class Trainer:
    """A training job in a thread, at a pace of its own."""

    job: Job
    endpoint: str
    seconds_a_batch: float
    num_taken: int = 0
    digests: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with open_streams(self.job, 0, connect=self.endpoint) as streams:
            taken = Taken(streams)
            while not self.stopping.wait(self.seconds_a_batch):
                taken.take(1)
                self.num_taken += 1
            self.digests = taken.digests


def test_two_jobs_share_a_pool_and_a_fast_one_does_not_starve_a_slow_one(
    job: Job, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one asks for less than half of what the pool makes, so it gets nearly all that it asks for."""
    endpoint, connect = f"ipc://{home.path}/d", ("--connect", f"ipc://{home.path}/d")
    fast, slow = Trainer(job, endpoint, 0.0), Trainer(job, endpoint, 0.2)
    threads = [threading.Thread(target=trainer.run) for trainer in (fast, slow)]
    with (
        standing("pipeline", home, tmp_path, "--listen", endpoint),
        standing("workers", home, tmp_path, *connect, *pool_arguments(tmp_path, 2)),
    ):
        threads[0].start()
        wait_for(lambda: fast.num_taken > 10, "the fast job alone")
        threads[1].start()
        wait_for(lambda: slow.num_taken > 3, "both jobs")
        began_s, fast_before, slow_before = time.monotonic(), fast.num_taken, slow.num_taken
        wait_for(lambda: fast.num_taken - fast_before > 150, "the fast job goes on")
        asked_for = (time.monotonic() - began_s) / 0.2
        got = slow.num_taken - slow_before
        print(f"fast {fast.num_taken - fast_before} batches, slow {got} of {asked_for:.0f} that it asked for")
        for trainer, thread in zip((fast, slow), threads, strict=True):
            trainer.stopping.set()
            thread.join(DEADLINE_S)
        assert got >= 0.5 * asked_for
    expected = undisturbed(job, len(fast.digests), monkeypatch)
    assert fast.digests == expected
    assert slow.digests == expected[: len(slow.digests)]


@pytest.mark.long
def test_a_pool_is_scaled_while_it_works_and_no_slice_is_made_twice(
    job: Job, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 1 to 2 to 6 and back: a new worker delivers soon, and one that goes finishes first."""
    counter = tmp_path / "count"
    monkeypatch.setenv("TEST_COUNT", str(counter))
    with open_streams(job, 1) as streams:
        taken = Taken(streams)
        with Operator(endpoint_of(home)) as operator:
            wait_for_calm(counter)
            num_before = counter.stat().st_size
            for size in (2, 6, 1):
                known = {worker.worker for worker in operator.status().workers}
                began_s = time.monotonic()
                operator.done(AskScale(operation=new_operation(), num_workers=size), lambda: None)
                told_s = time.monotonic()
                if size > len(known):
                    taken.take_until(lambda known=known: has_delivered(operator, known), "a new worker delivers")
                    print(f"to {size}: a new worker delivered {time.monotonic() - began_s:.3f} s after the command")
                taken.take_until(lambda size=size: len(operator.status().workers) == size, f"{size} workers")
                print(f"to {size}: told after {told_s - began_s:.3f} s, done after {time.monotonic() - began_s:.3f} s")
                taken.take(10)
            wait_for_calm(counter)
            num_hedged = sum(stream.num_hedged for stream in operator.status().streams)
        num_made = counter.stat().st_size - num_before
    home.assert_empty_soon()
    print(f"{num_made} samples made for {len(taken.digests)} batches, {num_hedged} slices hedged")
    num_needed = len(taken.digests) * BATCH_SIZE
    assert num_needed <= num_made <= num_needed + num_hedged * SLICE_SIZE
    monkeypatch.delenv("TEST_COUNT")
    assert taken.digests == undisturbed(job, len(taken.digests), monkeypatch)


def has_delivered(operator: Operator, known: set[str]) -> bool:
    return any(worker.num_delivered for worker in operator.status().workers if worker.worker not in known)


def wait_for_calm(counter: Path) -> None:
    """Until the window is full: nobody makes anything then."""
    size, since_s = -1, time.monotonic()
    give_up_s = since_s + DEADLINE_S
    while time.monotonic() - since_s < 1.5:
        assert time.monotonic() < give_up_s
        if counter.exists() and (now := counter.stat().st_size) != size:
            size, since_s = now, time.monotonic()
        elif size == -1:
            since_s = time.monotonic()
        time.sleep(0.02)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.02)
