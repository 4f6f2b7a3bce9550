"""Progress: what a worker was doing can be read after its death."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.lease_events import IDLE
from workers.progress import Progress, ProgressSlot


def test_the_reader_sees_what_the_writer_wrote_last(tmp_path: Path) -> None:
    """Two mappings of one file, as a worker's and its pool's; in the life of one slice."""
    writer, reader = ProgressSlot(tmp_path / "w.progress"), ProgressSlot(tmp_path / "w.progress")
    writer.start()
    assert reader.read() == Progress(counter=0, position=IDLE, num_delivered=0, stream="", incarnation=0)

    writer.begin_slice("run/train", 7)
    writer.begin_sample(40)
    writer.begin_sample(41)
    held = Progress(counter=2, position=41, num_delivered=0, stream="run/train", incarnation=7)
    assert reader.read() == held
    writer.begin_sample(41, attempt=1)
    assert reader.read() == replace(held, counter=3, attempt=1)

    writer.end_slice(delivered=True)
    assert reader.read() == Progress(counter=4, position=IDLE, num_delivered=1, stream="run/train", incarnation=7)

    writer.begin_slice("run/train", 7, probed="0123456789abcdef")
    assert reader.read().probed == "0123456789abcdef"
    writer.begin_slice("run/train", 7)
    assert reader.read().probed == ""


def test_every_sign_of_life_raises_the_counter(tmp_path: Path) -> None:
    """A slice that fails is progress too; only a counter that stands still means a hang."""
    slot = ProgressSlot(tmp_path / "w.progress")
    slot.start()
    counters = [slot.read().counter]
    for step in (lambda: slot.begin_sample(5), lambda: slot.begin_sample(5), lambda: slot.end_slice(delivered=False)):
        step()
        counters.append(slot.read().counter)
    assert counters == [0, 1, 2, 3]
    assert slot.read().num_delivered == 0


def test_a_file_that_its_worker_never_wrote_to_reads_as_no_delivery(tmp_path: Path) -> None:
    """A worker may die before its first line; its pool reads the file all the same."""
    assert ProgressSlot(tmp_path / "w.progress").read().num_delivered == 0


def test_a_long_stream_name_is_cut_not_refused(tmp_path: Path) -> None:
    """The file has one size; names of ours are short, a peer's may be anything, also in several bytes a letter."""
    slot = ProgressSlot(tmp_path / "w.progress")
    slot.begin_slice("ü" * 1000, 2**62)
    read = slot.read()
    assert "ü" * 1000 != read.stream
    assert ("ü" * 1000).startswith(read.stream.rstrip("�"))
    assert read.incarnation == 2**62
