"""A pool: whom it kills, and what it says of workers that end."""

from __future__ import annotations

import shutil
import signal
import typing
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import EXIT_USER_INPUT, RunFailed
from pipeline.lease_events import BUILDING, IDLE, OPENING
from pipeline.messages import AnyMessage, WorkerDied
from pipeline.probes import PROBE_S, PROBE_SAMPLE_S
from pipeline.service_messages import Condemned, Resize
from workers import pool_member as module
from workers.pool import FIRST_BACKOFF_S, LEAVE_S, LOOK_S, Pool, PoolConfig, WorkersRefused
from workers.pool_member import FORK_SERVER_LOST, OPEN_S
from workers.progress import ProgressSlot
from workers.worker_config import REFUSAL

HANG_S = 5.0


class Process:
    """What a pool sees of a worker process, without one."""

    pid = 2**22
    sentinel = 5

    def __init__(self, target: object, args: tuple[typing.Any], name: str, daemon: bool) -> None:
        self.exitcode: int | None = None
        self.num_asked_to_leave = 0
        self.progress_path: Path = args[0].progress_path
        self.trace_path: Path = args[0].trace_path
        self.position_at_start: int | None = None

    def start(self) -> None:
        self.position_at_start = ProgressSlot(self.progress_path).read().position

    def kill(self) -> None:
        self.exitcode = -signal.SIGKILL

    def terminate(self) -> None:
        self.num_asked_to_leave += 1

    def join(self, timeout: float | None = None) -> None:
        assert self.exitcode is not None

    def close(self) -> None:
        pass


class Voice:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[AnyMessage] = []
        self.num_beats = 0

    def say(self, message: AnyMessage) -> None:
        self.said.append(message)

    def beat_now(self) -> None:
        self.num_beats += 1


class Poller:
    def add(self, source: int) -> None:
        pass

    def remove(self, source: int) -> None:
        pass


class Bench:
    """A pool of one worker that has begun its sample 7 and does not go on."""

    def __init__(self, directory: Path) -> None:
        self.voice = Voice()
        config = PoolConfig(
            name="p1", connect="ipc:///nowhere", num_workers=1, max_workers=6, sources={}, plugins=(),
            base=directory, hang_s=HANG_S, directory=directory,
        )  # fmt: skip
        self.pool = Pool(config, typing.cast(typing.Any, Poller()), self.voice)
        self.now_s = 100.0
        self.pool.look(self.now_s)
        self.process = self.current()
        worker = ProgressSlot(self.process.progress_path)
        worker.begin_slice("run/train", 1)
        worker.begin_sample(7, attempt=2)

    def current(self) -> Process:
        (member,) = self.pool.members.values()
        return typing.cast(Process, member.process)

    def looks_for(self, seconds: float) -> None:
        for _ in range(int(seconds / LOOK_S)):
            self.now_s += LOOK_S
            self.pool.look(self.now_s)


@pytest.fixture(name="bench")
def _bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module.forkserver, "Process", Process)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module.os, "kill", lambda pid, number: None)
    return Bench(tmp_path)


def test_a_worker_without_progress_is_killed_after_hang_s(bench: Bench) -> None:
    """One endless transform must not hold a run of days."""
    bench.looks_for(HANG_S)
    assert bench.process.exitcode is None
    bench.looks_for(3 * LOOK_S)
    (died,) = bench.voice.said
    assert isinstance(died, WorkerDied)
    assert (died.by_itself, died.in_peace, died.position) == (True, False, 7)
    assert "no progress for 5 s" in died.cause


def prepare(bench: Bench, what: int, *, hang_s: float = 60.0, probed: str = "") -> None:
    """The present worker has begun to build a chain, or to open a source, and does not go on."""
    bench.pool.config = replace(bench.pool.config, hang_s=hang_s)
    worker = ProgressSlot(bench.current().progress_path)
    worker.begin_slice("run/train", 1, probed=probed)
    worker.begin_sample(what)


def lasts(bench: Bench) -> tuple[float, WorkerDied]:
    """How long the pool leaves the present worker alone, and what it says of it then."""
    began_s, process, num_said = bench.now_s, bench.current(), len(bench.voice.said)
    while process.exitcode is None:
        bench.looks_for(LOOK_S)
    died_s = bench.now_s
    bench.looks_for(LOOK_S)
    (died,) = bench.voice.said[num_said:]
    bench.looks_for(20.0)  # whatever the backoff, another has begun
    return int(died_s - began_s), typing.cast(WorkerDied, died)


def test_a_worker_that_hangs_while_it_builds_a_chain_is_killed_after_hang_s(bench: Bench) -> None:
    """A plug-in's constructor may block as its transform may; no sample is in work then, nor to blame."""
    prepare(bench, BUILDING, hang_s=40.0)
    lasted_s, died = lasts(bench)
    assert (lasted_s, died.position, died.probed, died.by_itself) == (40, BUILDING, "", True)
    assert died.cause.startswith("hung: no progress in building its chain for 40 s")


@pytest.mark.parametrize(("what", "limit_s"), [(BUILDING, PROBE_S), (7, PROBE_SAMPLE_S)])
def test_a_probe_has_less_time_than_a_slice(bench: Bench, what: int, limit_s: float) -> None:
    """An operator waits for it, and no other chain is tried meanwhile; a shorter hang_s is kept to, and
    one above the default: a model that a plug-in loads, or cold storage, may be slow and sound."""
    for hang_s, expected_s in ((60.0, limit_s), (4.0, 4.0), (300.0, 300.0)):
        prepare(bench, what, hang_s=hang_s, probed="ab" * 8)
        lasted_s, died = lasts(bench)
        assert (lasted_s, died.position, died.probed) == (expected_s, what, "ab" * 8)


def test_a_source_may_take_long_to_open_and_longer_after_each_worker_that_was_killed_for_it(bench: Bench) -> None:
    """Killed in its first index, a worker leaves nothing to the next one: with one limit none would ever be done."""
    for number in range(3):
        prepare(bench, OPENING, probed="ab" * 8)
        lasted_s, died = lasts(bench)
        assert lasted_s == OPEN_S * 2**number
        assert not died.by_itself, "it may only have been slow"
        assert "no progress in opening its source" in died.cause


def test_all_workers_that_wait_for_one_index_double_the_limit_once(bench: Bench) -> None:
    """One lists the folder, the others wait for it: it is one hang."""
    bench.pool.obey(Resize(pool="p1", size=3, automatic=False))
    bench.looks_for(LOOK_S)
    bench.pool.config = replace(bench.pool.config, hang_s=60.0)
    for member in bench.pool.members.values():
        worker = ProgressSlot(member.config.progress_path)
        worker.end_slice(delivered=False)
        worker.begin_sample(OPENING)
    bench.looks_for(OPEN_S + 3 * LOOK_S)
    assert len(bench.voice.said) == 3
    assert bench.pool.open_s == 2 * OPEN_S


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
    assert len(bench.voice.said) == 1
    assert bench.process is not bench.current()


def test_a_worker_that_never_began_counts_as_idle(bench: Bench) -> None:
    """A file of zeros would read as work on position 0, and blame that sample for the death."""
    assert bench.process.position_at_start == IDLE
    bench.process.exitcode = 1
    bench.looks_for(1.0)
    bench.current().exitcode = 1
    bench.looks_for(1.0)
    said = [typing.cast(WorkerDied, died) for died in bench.voice.said]
    assert [(died.position, died.attempt) for died in said] == [(7, 2), (IDLE, 0)]


@pytest.mark.parametrize(
    ("exitcode", "by_itself"), [(-signal.SIGSEGV, True), (1, True), (-signal.SIGKILL, False), (FORK_SERVER_LOST, False)]
)
def test_a_kill_from_outside_is_not_a_crash(bench: Bench, exitcode: int, by_itself: bool) -> None:
    """The out-of-memory killer may take the fork server, and all workers with it: no sample is to blame."""
    bench.process.exitcode = exitcode
    bench.looks_for(LOOK_S)
    (died,) = bench.voice.said
    assert typing.cast(WorkerDied, died).by_itself == by_itself


def test_a_pool_that_ends_says_so_for_each_worker(bench: Bench) -> None:
    """Else the dispatcher would wait ten seconds for them, and then blame the slices they held."""
    (name,) = bench.pool.members
    bench.pool.end()
    assert bench.process.exitcode == -signal.SIGKILL
    assert bench.voice.said == [WorkerDied(worker=name, cause="its pool ended", by_itself=False, in_peace=True)]


def resize(bench: Bench, size: int, *, automatic: bool = False) -> list[Process]:
    """The processes, oldest first, after a look."""
    bench.pool.obey(Resize(pool="p1", size=size, automatic=automatic))
    bench.looks_for(LOOK_S)
    return [typing.cast(Process, member.process) for member in bench.pool.members.values()]


def test_a_pool_grows_at_once_and_names_its_new_workers_in_its_next_beat(bench: Bench) -> None:
    """A worker that joins and that its pool does not name counts as dead."""
    assert len(resize(bench, 4)) == 4
    beat = bench.pool.beat(7)
    assert (beat.pool, beat.number, beat.size, beat.workers) == ("p1", 7, 4, tuple(bench.pool.members))
    assert bench.voice.num_beats > 0


def test_a_pool_does_not_answer_a_word_that_changes_nothing(bench: Bench) -> None:
    """The dispatcher answers each beat with the size it has: the two would never fall silent."""
    num_beats = bench.voice.num_beats
    resize(bench, 1)
    assert bench.voice.num_beats == num_beats


def test_a_pool_keeps_to_its_bounds(bench: Bench) -> None:
    """The dispatcher clamps too, but an old message may come from one that knew other bounds."""
    resize(bench, 99)
    assert bench.pool.size == 6
    resize(bench, -3)
    assert bench.pool.size == 1


def test_a_pool_that_is_to_be_automatic_keeps_its_size_until_one_is_named(bench: Bench) -> None:
    """0 means: as many as there are."""
    resize(bench, 0, automatic=True)
    assert (bench.pool.size, bench.pool.beat(1).automatic) == (1, True)


def test_a_shrinking_pool_asks_its_youngest_to_leave_once_and_replaces_nobody(bench: Bench) -> None:
    """The eldest are warm. One that leaves counts no more, and is no restart."""
    resize(bench, 3)
    processes = resize(bench, 1)
    bench.looks_for(2.0)
    assert [process.num_asked_to_leave for process in processes] == [0, 1, 1]
    for process in processes[1:]:
        process.exitcode = 0
    bench.looks_for(1.0)
    assert len(bench.pool.members) == 1
    assert [(died.in_peace, died.by_itself) for died in bench.voice.said] == [(True, False)] * 2  # type: ignore[union-attr]
    assert bench.pool.num_restarts == 0


def test_a_pool_that_grows_again_while_workers_leave_starts_others(bench: Bench) -> None:
    """A leaving worker does not come back."""
    resize(bench, 2)
    leaving = resize(bench, 1)[1]
    assert len(resize(bench, 2)) == 3
    leaving.exitcode = 0
    bench.looks_for(LOOK_S)
    assert len(bench.pool.members) == 2


def test_a_worker_that_does_not_leave_is_killed(bench: Bench) -> None:
    """It may be stopped, or in a transform that does not end; it left in peace all the same."""
    resize(bench, 2)
    leaving = resize(bench, 1)[1]
    bench.looks_for(LEAVE_S)
    assert leaving.exitcode is None
    bench.looks_for(1.0)
    assert leaving.exitcode == -signal.SIGKILL
    assert bench.voice.said[-1].in_peace  # type: ignore[union-attr]


def test_a_condemned_worker_is_killed_and_replaced_and_an_unknown_one_is_passed_over(bench: Bench) -> None:
    """The dispatcher has counted it as dead already; a repeated word must not cost its successor."""
    (name,) = bench.pool.members
    for _ in range(2):
        bench.pool.obey(Condemned(pool="p1", worker=name))
        bench.looks_for(1.0)
    assert bench.process.exitcode == -signal.SIGKILL
    assert bench.current() is not bench.process
    assert bench.current().exitcode is None
    assert bench.pool.num_restarts == 1


def test_a_worker_that_ends_with_code_0_unasked_is_no_peaceful_end(bench: Bench) -> None:
    """A transform that calls os._exit(0) must not be tried for ever."""
    bench.process.exitcode = 0
    bench.looks_for(LOOK_S)
    (died,) = bench.voice.said
    assert not typing.cast(WorkerDied, died).in_peace


def test_a_fork_server_that_dies_under_a_start_is_no_end_of_the_pool(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, a moment later, and nothing of the failed start is left."""

    def die(self: Process) -> None:
        raise EOFError

    with monkeypatch.context() as broken:
        broken.setattr(Process, "start", die)
        bench.pool.obey(Resize(pool="p1", size=2, automatic=False))
        bench.pool.look(bench.now_s)
        assert len(bench.pool.beat(1).workers) == 1
        assert len(list(bench.pool.config.directory.glob("*.progress"))) == 1
    bench.pool.look(bench.now_s + FIRST_BACKOFF_S / 2)
    assert len(bench.pool.members) == 1
    bench.pool.look(bench.now_s + FIRST_BACKOFF_S)
    assert len(bench.pool.members) == 2


def refuse(bench: Bench) -> None:
    """The present worker ends as one whose plug-in can't be imported."""
    process = bench.current()
    process.trace_path.write_text(f"{REFUSAL}plug.py:3: plug.py\n  got:      NameError")
    process.exitcode = EXIT_USER_INPUT


def restarted(bench: Bench) -> Bench:
    """The same, with a worker that has not yet loaded what it needs."""
    bench.pool.has_begun = False
    ProgressSlot(bench.process.progress_path).start()
    return bench


def test_a_pool_whose_workers_can_not_begin_ends_with_what_the_user_wrote_wrongly(bench: Bench) -> None:
    """Another start would find the same, and nobody reads a worker's own stderr."""
    refuse(restarted(bench))
    with pytest.raises(WorkersRefused) as raised:
        bench.looks_for(LOOK_S)
    assert str(raised.value) == "plug.py:3: plug.py\n  got:      NameError"
    assert raised.value.exit_code == EXIT_USER_INPUT
    (died,) = bench.voice.said
    assert typing.cast(WorkerDied, died).cause == str(raised.value)
    bench.pool.end()


def test_a_pool_that_has_worked_tries_again_when_a_worker_can_not_begin(bench: Bench) -> None:
    """The user may be editing the plug-in just now; until it is whole again, the cause says what is wrong."""
    bench.process.exitcode = -signal.SIGKILL
    bench.looks_for(1.0)
    refuse(bench)
    bench.looks_for(1.0)
    assert "NameError" in typing.cast(WorkerDied, bench.voice.said[-1]).cause
    assert bench.current().exitcode is None


def test_a_transform_that_ends_its_process_with_code_2_does_not_end_the_pool(bench: Bench) -> None:
    """Only a worker's own words count."""
    restarted(bench).process.exitcode = EXIT_USER_INPUT
    bench.looks_for(1.0)
    assert typing.cast(WorkerDied, bench.voice.said[0]).cause == "ended with exit code 2"


def test_a_signal_without_a_name_is_told_by_its_number(bench: Bench) -> None:
    """Real-time signals have none; they must not end the pool."""
    bench.process.exitcode = -40
    bench.looks_for(LOOK_S)
    assert typing.cast(WorkerDied, bench.voice.said[0]).cause == "killed by signal 40"


def test_a_pool_whose_directory_was_removed_ends(bench: Bench) -> None:
    """It could never start a worker again; whoever watches it starts it anew, with another."""
    shutil.rmtree(bench.pool.config.directory)
    bench.process.exitcode = -signal.SIGKILL
    with pytest.raises(RunFailed, match="was removed"):
        bench.looks_for(1.0)
