"""What a worker's own command line does not give it, it declines: other workers go on."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from pipeline import messages as m
from pipeline.errors import ConfigError, Problem
from pipeline.job import DigitsSource, SourceConfig
from tests.unit.test_worker import BATCH_SPEC, RECIPE, SPEC, Wire, lease
from workers import streams as streams_module
from workers.control import Control
from workers.streams import OpenStreams
from workers.worker import _guarded_probe, _make_and_send
from workers.worker_config import WorkerConfig

HERE = {"stream": "s", "incarnation": 1}


@pytest.fixture(name="control")
def _control(tmp_path: Path) -> typing.Iterator[Control]:
    config = WorkerConfig(
        name="w1", pool="p1", connect="ipc:///nowhere", sources={}, plugins=(), base=tmp_path,
        progress_path=tmp_path / "progress", trace_path=tmp_path / "trace",
    )  # fmt: skip
    control = Control(config, typing.cast(typing.Any, Wire()), "fingerprint")
    yield control
    control._waker.close()


def opened(tmp_path: Path, *sources: str) -> OpenStreams:
    streams = OpenStreams(dict.fromkeys(sources, DigitsSource()), (), tmp_path, "w1")
    streams.open(m.OpenStream(spec=SPEC, batch_specs={RECIPE.digest: BATCH_SPEC}, **HERE))
    return streams


def said(control: Control) -> list[m.AnyMessage]:
    messages = []
    while not control._outbox.empty():
        messages.append(control._outbox.get())
    return messages


def both_ways(control: Control, streams: OpenStreams) -> list[m.AnyMessage]:
    """What a lease and a probe of the stream lead to."""
    assert not _make_and_send(lease(0), control, streams, typing.cast(typing.Any, None))
    assert _guarded_probe(m.Probe(recipe=RECIPE.digest, **HERE), streams, control) is None
    return said(control)


def test_a_source_that_is_missing_or_another_one_is_declined_with_the_place(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pool with `--source photos=WRONG_DIR` must not end the jobs of all."""
    for declined in both_ways(control, opened(tmp_path, "paintings")):
        assert isinstance(declined, m.StreamDeclined)
        assert (declined.worker, declined.stream, declined.incarnation) == ("w1", "s", 1)
        assert [(problem.file, problem.path) for problem in declined.problems] == [("--source", "photos")]

    def nothing_there(config: SourceConfig, base: Path, wanted: str) -> typing.NoReturn:
        raise ConfigError(Problem(file="/photos", line=0, path="", expected="a folder", got="nothing there"))

    monkeypatch.setattr(streams_module, "open_source", nothing_there)
    declined, again = both_ways(control, opened(tmp_path, "photos"))
    assert isinstance(declined, m.StreamDeclined)
    assert declined.problems[0].got == "nothing there"
    assert declined == again
