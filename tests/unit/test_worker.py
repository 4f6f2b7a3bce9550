"""A worker's loop: which leases it holds, and what it gives back."""

from __future__ import annotations

import errno
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from pipeline import messages as m
from pipeline.job import SourceConfig
from pipeline.recipe import BatchSpec, Chain, FieldSpec, Recipe
from pipeline.timeline import TimelineEntry
from pipeline.wire import encode_message
from workers import streams as streams_module
from workers.produce import ReadFailed
from workers.streams import OpenStreams
from workers.worker import Control, _guarded_probe
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
    """A context and its dealer in one, without sockets."""

    def dealer(self, endpoint: str, identity: str) -> Wire:
        return self

    def send(self, frame: bytes) -> None:
        pass


@pytest.fixture(name="control")
def _control(tmp_path: Path) -> typing.Iterator[Control]:
    config = WorkerConfig(
        name="w1", connect="ipc:///nowhere", sources={}, plugins=(), base=tmp_path,
        progress_path=tmp_path / "progress", trace_path=tmp_path / "trace",
    )  # fmt: skip
    control = Control(config, typing.cast(typing.Any, Wire()), "fingerprint")
    yield control
    control._waker.close()


def lease(start: int) -> m.Lease:
    return m.Lease(number=1, stream="s", incarnation=1, start=start, stop=start + 4, recipe=RECIPE.digest)


def test_a_void_lease_does_not_take_the_place_of_the_new_one_with_its_number(control: Control) -> None:
    """A dispatcher that lost the worker counts from 1 again, while leases from before wait in the inbox."""
    control._handle(encode_message(m.Granted(lease=lease(0))))
    control._handle(encode_message(m.JoinAgain(worker="w1")))
    control._handle(encode_message(m.Granted(lease=lease(4))))
    void, new = control.inbox.get(), control.inbox.get()
    assert isinstance(void, m.Lease)
    assert isinstance(new, m.Lease)

    assert not control.holds(void)
    control.let_go(void)
    assert control.holds(new)
    control.let_go(new)
    assert not control.holds(new)


@pytest.fixture(name="unreadable")
def _unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStreams:
    """The streams of a worker whose source can't be opened just now."""

    def open_source(config: SourceConfig, wanted: str) -> typing.NoReturn:
        raise OSError(errno.ESTALE, "stale file handle")

    monkeypatch.setattr(streams_module, "open_source", open_source)
    streams = OpenStreams({"photos": typing.cast(typing.Any, None)}, (), tmp_path, "w1")
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

    def no_memory(config: SourceConfig, wanted: str) -> typing.NoReturn:
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
from workers.worker import Control
from workers.worker_config import WorkerConfig

class Wire:
    def dealer(self, endpoint, identity):
        return self

here = Path()
config = WorkerConfig(
    name="w", connect="", sources={}, plugins=(), base=here, progress_path=here, trace_path=here
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
