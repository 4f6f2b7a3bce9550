"""A worker's loop: which leases it holds, and what it gives back."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from pipeline import messages as m
from pipeline.job import DigitsSource, SourceConfig
from pipeline.recipe import BatchSpec, Chain, FieldSpec, Recipe
from pipeline.timeline import TimelineEntry
from pipeline.wire import decode_message, encode_message
from workers import control as control_module
from workers import streams as streams_module
from workers.control import DRAIN_S, STALE_S, Control
from workers.produce import ReadFailed
from workers.streams import OpenStreams
from workers.worker import _guarded_probe
from workers.worker_config import WorkerConfig

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(chain=Chain(file="chain.yaml", nodes=()))
SPEC = m.StreamSpec(
    source="photos", source_fingerprint="ff", num_samples=64, seed=0, shuffle=True, last_batch="drop",
    end_position=64, slice_size=4, recipes=(RECIPE,), endpoint="ipc:///nowhere",
    timeline=(TimelineEntry(start=0, step=0, recipe=RECIPE.digest, batch_size=8),),
)  # fmt: skip
BATCH_SPEC = BatchSpec(fields=(FieldSpec(name="image", dtype="uint8", shape=(2, 2, 3)),))


class Wire:
    """A context and its dealer in one, without sockets; keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[m.AnyMessage] = []

    def dealer(self, endpoint: str, identity: str) -> Wire:
        return self

    def send(self, frame: bytes) -> None:
        self.sent.append(decode_message(frame))

    def num_sent(self, kind: type[m.AnyMessage]) -> int:
        return sum(isinstance(message, kind) for message in self.sent)


@pytest.fixture(name="wire")
def _wire() -> Wire:
    return Wire()


@pytest.fixture(name="control")
def _control(tmp_path: Path, wire: Wire) -> typing.Iterator[Control]:
    config = WorkerConfig(
        name="w1", pool="p1", connect="ipc:///nowhere", sources={}, plugins=(), base=tmp_path,
        progress_path=tmp_path / "progress", trace_path=tmp_path / "trace",
    )  # fmt: skip
    control = Control(config, typing.cast(typing.Any, wire), "fingerprint")
    yield control
    control._waker.close()


def lease(start: int) -> m.Lease:
    return m.Lease(number=1, stream="s", incarnation=1, start=start, stop=start + 4, recipe=RECIPE.digest)


def hear(control: Control, *messages: m.AnyMessage) -> None:
    for message in messages:
        control._handle(encode_message(message))


def test_a_void_lease_does_not_take_the_place_of_the_new_one_with_its_number(control: Control) -> None:
    """A dispatcher that lost the worker counts from 1 again, while leases from before wait in the inbox."""
    hear(control, m.Granted(lease=lease(0)), m.JoinAgain(worker="w1"))
    hear(control, m.Granted(lease=lease(4)))
    void, new = control.inbox.get(), control.inbox.get()
    assert isinstance(void, m.Lease)
    assert isinstance(new, m.Lease)

    assert not control.holds(void)
    control.let_go(void)
    assert control.holds(new)
    control.let_go(new)
    assert not control.holds(new)


def test_beats_that_waited_for_a_dispatcher_make_a_worker_join_once(control: Control, wire: Wire) -> None:
    """Each of them is answered with JoinAgain, and each further Join would take back what was leased since."""
    for _ in range(30):
        control._beat(0.0)
    hear(control, *[m.JoinAgain(worker="w1")] * 30)
    assert wire.num_sent(m.Join) == 1
    control._beat(1.0)  # which this dispatcher does not know either, if the Join was lost
    hear(control, m.JoinAgain(worker="w1"))
    assert wire.num_sent(m.Join) == 2
    assert wire.sent[-1] == m.Join(
        worker="w1", pool="p1", host=socket.gethostname(), pid=os.getpid(), fingerprint="fingerprint", sources=()
    )


def test_a_leaving_worker_says_so_until_it_is_dismissed_and_does_what_it_has_first(
    control: Control, wire: Wire
) -> None:
    """A Leaving may be lost, and what was leased before must not be made twice."""
    hear(control, m.Granted(lease=lease(0)))
    control._leave(0.0)
    control._beat(1.0)
    assert wire.num_sent(m.Leaving) == 2
    held = control.inbox.get()
    assert isinstance(held, m.Lease)
    assert control.holds(held)
    assert not control._dismissed
    hear(control, m.Dismissed(worker="w1"))
    assert control._dismissed


def test_a_dismissal_that_was_not_asked_for_changes_nothing(control: Control) -> None:
    """It is an old one."""
    hear(control, m.Dismissed(worker="w1"))
    assert not control._dismissed


def test_a_leaving_worker_that_a_new_dispatcher_asks_to_join_says_at_once_that_it_leaves(
    control: Control, wire: Wire
) -> None:
    """The dispatcher that knew of its leaving is gone."""
    control._leave(0.0)
    control._beat(1.0)
    hear(control, m.JoinAgain(worker="w1"))
    assert [type(message) for message in wire.sent[-2:]] == [m.Join, m.Leaving]


def test_a_leaving_worker_that_nobody_dismisses_ends_all_the_same(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no dispatcher there is nobody to wait for."""
    ended: list[int] = []
    monkeypatch.setattr(control_module.os, "_exit", ended.append)
    control._leave(5.0)
    control._beat(5.0 + DRAIN_S - 0.1)
    assert ended == []
    control._beat(5.0 + DRAIN_S)
    assert ended == [0]


def test_streams_of_a_dispatcher_that_is_gone_are_closed_unless_the_new_one_speaks_of_them(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would ever close those that ended meanwhile: their sockets would look for their trainer for ever."""
    monkeypatch.setattr(control_module.time, "monotonic", lambda: 100.0)
    hear(control, *(m.OpenStream(stream=name, incarnation=1, spec=SPEC) for name in ("ended", "going on")))
    hear(control, m.JoinAgain(worker="w1"), m.OpenStream(stream="going on", incarnation=1, spec=SPEC))
    while not control.inbox.empty():
        control.inbox.get()
    control._beat(100.0 + STALE_S - 0.1)
    assert control.inbox.empty()
    control._beat(100.0 + STALE_S)
    control._beat(100.0 + 2 * STALE_S)
    assert control.inbox.get() == m.CloseStream(stream="ended", incarnation=1)
    assert control.inbox.empty()


@pytest.fixture(name="unreadable")
def _unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStreams:
    """The streams of a worker whose source can't be opened just now."""

    def open_source(config: SourceConfig, base: Path, wanted: str) -> typing.NoReturn:
        raise OSError(errno.ESTALE, "stale file handle")

    monkeypatch.setattr(streams_module, "open_source", open_source)
    streams = OpenStreams({"photos": DigitsSource()}, (), tmp_path, "w1")
    streams.open(m.OpenStream(stream="s", incarnation=1, spec=SPEC, batch_specs={RECIPE.digest: BATCH_SPEC}))
    return streams


def test_a_source_that_can_not_be_opened_now_gives_the_lease_back(unreadable: OpenStreams) -> None:
    """Another worker may well reach it: not the end of the stream."""
    with pytest.raises(ReadFailed, match="stale") as failed:
        unreadable.make(lease(8))
    assert failed.value.position == 8


def test_memory_that_runs_out_before_a_sample_gives_the_lease_back(
    unreadable: OpenStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slice's own array is the largest that a worker asks for."""

    def no_memory(config: SourceConfig, base: Path, wanted: str) -> typing.NoReturn:
        raise MemoryError

    monkeypatch.setattr(streams_module, "open_source", no_memory)
    with pytest.raises(ReadFailed, match="MemoryError"):
        unreadable.make(lease(8))


def test_a_source_that_can_not_be_opened_now_gives_the_probe_back(unreadable: OpenStreams, control: Control) -> None:
    """A refusal would end the job for one machine's stale handle."""
    answer = _guarded_probe(m.Probe(stream="s", incarnation=1, recipe=RECIPE.digest), unreadable, control)
    assert isinstance(answer, m.ProbeFailed)
    assert (answer.worker, answer.recipe) == ("w1", RECIPE.digest)
    assert "stale" in answer.cause


DEAF = """
import sys, threading
from pathlib import Path
from workers.control import Control
from workers.worker_config import WorkerConfig

class Wire:
    def dealer(self, endpoint, identity):
        return self

here = Path()
config = WorkerConfig(
    name="w", pool="", connect="", sources={}, plugins=(), base=here, progress_path=here, trace_path=here
)
Control(config, Wire(), "fingerprint").start()
threading.Event().wait(60)
"""


def test_a_worker_whose_control_thread_dies_ends_and_says_why() -> None:
    """Deaf, it would hang for ever without a word; dead, its pool reports and replaces it."""
    ended = subprocess.run(
        [sys.executable, "-c", DEAF], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50
    )
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
