"""A source's settings are the job's, its place is the worker's: `--source NAME=DIR` serves a job with a split."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_job
from pipeline.errors import ConfigError
from pipeline.job import (
    ArraysSource,
    DigitsSource,
    FolderSource,
    ManifestSource,
    PluginSource,
    SourceConfig,
    SplitByHash,
)
from pipeline.plan import first_entries, open_job_source, plan_stream
from pipeline.sources import open_source, parse_source_argument
from pipeline.sources.settings import other_argument, settings_of, with_settings
from tests.processes import write_job
from tests.unit.test_wire import PLAIN

SPLIT = SplitByHash(part="train", held_out=0.3, salt="it's")
JOBS = [
    FolderSource(path=Path("/job/photos"), split=SPLIT, content=True),
    ManifestSource(path=Path("/job/list.csv"), path_column="file", label_column="class", split=SPLIT),
    ArraysSource(path=Path("/job/x.npz"), classes=("cat", "dog"), split=SPLIT),
    DigitsSource(split=SPLIT),
]
PLACES = ["photos=/here", "photos=/here/list.csv", "photos=/here/x.npz", "photos=digits"]


def job_of_place(job: SourceConfig, place: SourceConfig) -> SourceConfig:
    return job.model_copy(update={"path": place.path} if hasattr(place, "path") else {})  # type: ignore[attr-defined]


@pytest.mark.parametrize(("job", "place"), list(zip(JOBS, PLACES, strict=True)))
def test_a_worker_that_was_given_a_place_alone_reads_it_as_the_job_does(job: SourceConfig, place: str) -> None:
    _, own = parse_source_argument(place)
    assert with_settings(own, settings_of(job)) == job_of_place(job, own)


@pytest.mark.parametrize(("job", "place"), list(zip(JOBS, PLACES, strict=True)))
def test_the_argument_that_is_named_as_the_way_out_is_the_jobs_source_here(job: SourceConfig, place: str) -> None:
    """What a worker's own command line says stays; so it is told what to write instead, ready for a shell."""
    _, own = parse_source_argument(place)
    given = own.model_copy(update={"split": SplitByHash(part="held_out")})
    here = with_settings(given, settings_of(job))
    assert here.split == given.split  # type: ignore[union-attr]
    option, argument = shlex.split(other_argument("photos", here, settings_of(job)))
    assert (option, parse_source_argument(argument)) == ("--source", ("photos", job_of_place(job, own)))
    assert other_argument("photos", job, settings_of(job)) == ""


def test_a_stream_tells_its_workers_what_the_job_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos/cats").mkdir(parents=True)
    for number in range(20):
        (tmp_path / f"photos/cats/{number}.jpg").write_bytes(b"never decoded")
    source = {"kind": "folder", "path": "photos", "split": {"part": "train"}}
    train = {"source": "photos", "chain": ["ToTensorV2"], "batch_size": 2}
    job = load_job(write_job(tmp_path, sources={"photos": source}, train=train))
    opened = open_job_source(job.config, str(job.path), 0, "photos")
    spec, _ = plan_stream(job, "train", opened, "ipc:///nowhere", first_entries(job, "train", len(opened)))
    here = with_settings(FolderSource(path=tmp_path / "photos"), spec.source_settings)
    assert open_source(here, tmp_path).fingerprint == spec.source_fingerprint


def test_a_peer_names_nothing_to_open_and_nothing_to_import() -> None:
    evil = {"kind": "plugin", "path": "/etc", "labels": "/etc/passwd", "factory": "os:abort", "options": {"a": 1}}
    for own in (*JOBS, PluginSource(factory="mine:open")):
        assert with_settings(own, evil) == own
    assert settings_of(PluginSource(factory="mine:open", options={"password": "secret"})) == {}


@given(st.dictionaries(st.sampled_from(["split", "content", "path_column", "classes", "path", "x"]), PLAIN))
def test_whatever_a_peer_sends_is_taken_or_refused(settings: dict[str, object]) -> None:
    for place in PLACES:
        _, own = parse_source_argument(place)
        try:
            here = with_settings(own, settings)
        except ConfigError:
            continue
        assert getattr(here, "path", None) == getattr(own, "path", None)
        other_argument("photos", here, settings)
