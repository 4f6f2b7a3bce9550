"""Watching chain files: an edit is told once, when it stands whole; no sleep, but for the thread's own test."""

from __future__ import annotations

import queue
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import content_digest, load_job
from pipeline.watch import ChainWatcher, Watched

OLD, NEW = b"- Blur\n", b"- HorizontalFlip\n"


def told(known: bytes | None, *looks: bytes | None) -> list[bytes | None]:
    """The contents that were told, look by look."""
    watched = Watched(content_digest(known) if known is not None else None)
    return [content for content in looks if watched.look(content)]


def test_an_edit_is_told_at_its_second_look_and_only_once() -> None:
    assert told(OLD, OLD, OLD, NEW) == []
    assert told(OLD, OLD, OLD, NEW, NEW, NEW, NEW) == [NEW]


def test_a_file_that_is_touched_or_rewritten_alike_is_no_edit() -> None:
    assert told(OLD, OLD, None, OLD, OLD, b"", OLD, OLD) == []


def test_the_way_back_is_an_edit_too() -> None:
    assert told(OLD, NEW, NEW, OLD, OLD) == [NEW, OLD]
    assert told(OLD, NEW, OLD, OLD) == []


@pytest.mark.parametrize("moment", [None, b"", b" \n\t\n", NEW[:5]])
def test_what_a_save_leaves_for_a_moment_is_not_told(moment: bytes | None) -> None:
    """A missing, empty or half-written file between two saves."""
    assert told(OLD, OLD, moment, NEW, NEW) == [NEW]


def test_a_file_that_stays_away_or_empty_is_waited_for() -> None:
    assert told(OLD, None, None, None) == []
    assert told(OLD, b"", b"", b"") == []
    assert told(OLD, b"\n", b"\n", NEW, NEW) == [NEW]


def test_an_edit_between_loading_and_watching_is_told() -> None:
    assert told(OLD, NEW, NEW) == [NEW]
    assert told(None, OLD, OLD) == [OLD]


@given(edits=st.lists(st.sampled_from([None, b"", b"a", b"b", b"c"]), max_size=30), last=st.sampled_from([b"a", b"d"]))
def test_whatever_happens_the_last_complete_content_is_told_last(edits: list[bytes | None], last: bytes) -> None:
    """Twenty edits in two seconds, in any order; no two tellings in a row are of the same content."""
    heard = told(OLD, *edits, last, last)
    assert heard[-1] == last
    assert all(before != after for before, after in pairwise(heard))


def into(heard: queue.Queue[tuple[Path, bytes]]) -> Callable[[Path, bytes], None]:
    return lambda path, content: heard.put((path, content))


def test_the_watcher_calls_with_the_file_that_was_edited_and_what_it_saw_there(tmp_path: Path) -> None:
    """By rename, as editors save, and for one of two files; the other one never changed."""
    (tmp_path / "weak.yaml").write_bytes(OLD)
    (tmp_path / "strong.yaml").write_bytes(OLD)
    heard: queue.Queue[tuple[Path, bytes]] = queue.Queue()
    watcher = ChainWatcher([tmp_path / "weak.yaml", tmp_path / "strong.yaml"], into(heard), interval_s=0.01)
    watcher.start()
    try:
        (tmp_path / "weak.yaml.new").write_bytes(NEW)
        (tmp_path / "weak.yaml.new").rename(tmp_path / "weak.yaml")
        assert heard.get(timeout=60) == (tmp_path / "weak.yaml", NEW)
        (tmp_path / "weak.yaml").unlink()
        (tmp_path / "weak.yaml").write_bytes(OLD)
        assert heard.get(timeout=60) == (tmp_path / "weak.yaml", OLD)
    finally:
        watcher.stop()
        watcher.stop()
    assert heard.empty()


def test_a_call_that_fails_ends_no_watching(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "weak.yaml"
    file.write_bytes(OLD)
    heard: queue.Queue[bytes] = queue.Queue()

    def on_change(path: Path, content: bytes) -> None:
        heard.put(content)
        raise ValueError("a defect")

    watcher = ChainWatcher([file, file], on_change, interval_s=0.01)
    watcher.start()
    try:
        for content in (NEW, OLD):
            file.write_bytes(content)
            assert heard.get(timeout=60) == content
    finally:
        watcher.stop()
    assert "edit_not_handled" in caplog.text


def test_what_a_job_has_loaded_is_known_and_what_came_since_is_told(tmp_path: Path) -> None:
    """Seconds pass between reading a job and watching its files: the workers start meanwhile."""
    (tmp_path / "strong.yaml").write_bytes(OLD)
    (tmp_path / "job.yaml").write_text(
        "sources: {digits: {kind: digits}}\ntrain: {source: digits, chain: strong.yaml}\n"
    )
    job = load_job(tmp_path / "job.yaml")
    heard: queue.Queue[tuple[Path, bytes]] = queue.Queue()
    (tmp_path / "strong.yaml").write_bytes(NEW)
    watcher = ChainWatcher([Path(job.train_file)], into(heard), interval_s=0.01, known=job.file_digests)
    watcher.start()
    try:
        assert heard.get(timeout=60) == (tmp_path / "strong.yaml", NEW)
    finally:
        watcher.stop()


def test_a_watcher_that_was_never_started_can_be_stopped(tmp_path: Path) -> None:
    ChainWatcher([tmp_path / "absent.yaml"], lambda path, content: None).stop()
