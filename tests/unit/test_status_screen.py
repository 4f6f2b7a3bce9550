"""The status screen: it fits, it says what limits the rate, and a run that is not going on is read from its files."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.run_summary import read_run, read_verdicts, summary_lines
from headrace.status_screen import duration, screen, timeline_rows
from headrace.stream_report import describe_stream
from pipeline.bad_count import BadCount
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.json_lines import JsonLines
from pipeline.messages import StreamBeat
from pipeline.service_messages import PoolStatus, Status, StreamReport, StreamStatus, WorkerStatus
from pipeline.timeline import Timeline, TimelineChange, TimelineEntry
from pipeline.wire import encode_message
from tests.sizes import cases
from trainer.report_rates import Rates

MAX_LINES = 36


def make_entries(*steps: int) -> tuple[TimelineEntry, ...]:
    return tuple(
        TimelineEntry(start=step * 32, step=step, recipe=f"{step:016x}", batch_size=32, file=f"/chains/{step}.yaml")
        for step in steps
    )


def make_worker(number: int, **changes: Any) -> WorkerStatus:
    worker = WorkerStatus(
        worker=f"w{number}",
        pool="p",
        host=f"host-{number % 12}",
        pid=100 + number,
        sources=("photos",),
        num_in_hand=2,
        num_delivered=40,
        slices_per_s=1.5,
        silent_s=0.25,
    )
    return msgspec.structs.replace(worker, **changes)


def make_report(**changes: Any) -> StreamReport:
    report = StreamReport(
        job="quickstart",
        run_folder="/runs/quickstart",
        num_steps=400,
        epoch=3,
        position=3200,
        samples_per_s=812.0,
        waited_fraction=0.123,
        limit="workers",
        recipe=f"{50:016x}",
        chain="/chains/50.yaml",
        timeline=make_entries(0, 50, 200),
        num_bad_samples=2,
        num_bad_met=38,
        notes=("a swap was refused",),
    )
    return msgspec.structs.replace(report, **changes)


def make_stream(name: str = "abc/train", **changes: Any) -> StreamStatus:
    stream = StreamStatus(
        stream=name,
        incarnation=1,
        source="photos",
        head_step=100,
        window=8,
        num_waiting=3,
        num_leased=5,
        num_hedged=1,
        silent_s=0.1,
        report=make_report(),
    )
    return msgspec.structs.replace(stream, **changes)


def make_pool(number: int = 0, **changes: Any) -> PoolStatus:
    pool = PoolStatus(
        pool=f"p{number}",
        host="host",
        pid=9,
        size=4,
        num_running=4,
        min_workers=1,
        max_workers=8,
        automatic=True,
        num_restarts=2,
        silent_s=0.5,
    )
    return msgspec.structs.replace(pool, **changes)


def make_status(**changes: Any) -> Status:
    status = Status(
        operation="o",
        pid=1,
        up_s=60.0,
        num_refused_messages=0,
        note="worker w3 died: SIGKILL",
        workers=tuple(map(make_worker, range(3))),
        pools=(make_pool(),),
        streams=(make_stream(),),
    )
    return msgspec.structs.replace(status, **changes)


def shown(status: Status, stream: str = "", verdicts: tuple[str, ...] = ()) -> str:
    return "\n".join(line.plain for line in screen(status, stream, verdicts))


def test_one_job_is_shown_in_detail() -> None:
    text = shown(make_status(), verdicts=("vanishing gradients, layer 3",))
    for part in (
        "quickstart   /runs/quickstart",
        "step 100 of 400 (25 %)   epoch 3   position 3200",
        "812 samples/s   waited for data 12 %",
        "the workers: more of them would help",
        "8 batches; slices: 5 with workers, 3 waiting, 1 hedged so far",
        "2 replaced by others (38 times)",
        "a swap was refused",
        "4 (auto, 1 to 8)",
        "worker w3 died: SIGKILL",
        "vanishing gradients",
    ):
        assert part in text


def test_the_timeline_shows_what_was_what_is_and_what_comes() -> None:
    report = make_report(timeline=make_entries(0, 20, 50, 200, 300, 350))
    lines = shown(make_status(streams=(make_stream(report=report),))).splitlines()
    shown_entries = [line[14:].split() for line in lines if "from step" in line]
    assert [(words[0], words[3]) for words in shown_entries] == [
        ("before", "20"),
        ("now", "50"),
        ("next", "200"),
        ("next", "300"),
    ]
    assert any("and 2 more in" in line for line in lines)


def test_a_report_has_of_a_long_timeline_what_is_shown_and_how_much_is_not() -> None:
    """It is told each second, for days."""
    timeline = Timeline(make_entries(*range(1000)), num_samples=100_000, last_batch="drop", end_position=100_000)
    job = SimpleNamespace(config=SimpleNamespace(name="pets"), path="pets.yaml")
    report = describe_stream(
        typing.cast(Job, job), "", timeline, 500, rates=Rates(), service=None, bad=BadCount(), notes=()
    )
    beat = StreamBeat(stream="s", incarnation=1, number=1, head_step=500, arrived=b"", window=8, report=report)
    assert len(encode_message(beat)) < 2000
    assert [entry.step for entry in report.timeline][:4] == [499, 500, 501, 502]
    assert timeline_rows(report.timeline, 500, report.num_entries) == timeline_rows(timeline.entries, 500)


def test_the_window_as_a_limit_is_told_as_such() -> None:
    """More workers would change nothing then, and the user should not be left to find out."""
    report = make_report(limit="window")
    assert "more workers would not" in shown(make_status(streams=(make_stream(report=report),)))


def test_several_jobs_have_a_line_each_and_one_can_be_named() -> None:
    status = make_status(
        streams=(make_stream("a/train"), make_stream("b/train"), make_stream("b/eval"), make_stream("b/look"))
    )
    assert shown(status).count("100/400") == 2
    assert "step 100 of 400" in shown(status, "b/train")
    assert "no job here has a stream called c/train" in shown(status, "c/train")


def test_nothing_at_all_is_told_in_words() -> None:
    text = shown(make_status(workers=(), pools=(), streams=()))
    for part in ("no training job", "no pool", "no worker"):
        assert part in text


def test_a_stream_without_a_report_and_a_silent_trainer_are_named() -> None:
    text = shown(make_status(streams=(make_stream(report=None, silent_s=12.0, window=0),)))
    assert "its trainer has not reported yet" in text
    assert "silent for 12 s" in text
    assert "being tried on a worker" in text


texts = st.text(max_size=200)


@settings(max_examples=cases(50))
@given(
    num_workers=st.integers(0, 300),
    num_pools=st.integers(0, 20),
    num_jobs=st.integers(0, 20),
    long=st.sampled_from(["x" * 300, "/a/path/" * 40, "words and words " * 20]),
)
@example(num_workers=7, num_pools=5, num_jobs=1, long="x" * 300)
def test_it_fits_on_a_screen_whatever_there_is(num_workers: int, num_pools: int, num_jobs: int, long: str) -> None:
    """80 columns, and not more lines than a terminal of a good size has."""
    report = make_report(job=long, run_folder=long, chain=long, notes=(long,) * 9)
    status = make_status(
        workers=tuple(make_worker(number, worker=long, host=long) for number in range(num_workers)),
        pools=tuple(make_pool(number, pool=long, host=long) for number in range(num_pools)),
        streams=tuple(make_stream(f"{number}/train", report=report) for number in range(num_jobs)),
    )
    lines = shown(status).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) <= MAX_LINES


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.9, "59 s"), (60, "1 min"), (3700, "1 h 1 min"), (200000, "2 d 7 h")]
)
def test_durations_are_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture(name="run_folder")
def _run_folder(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text("name: small\n")
    (tmp_path / "checkpoints" / "step-00000020").mkdir(parents=True)
    change = TimelineChange(from_step=0, entries=make_entries(0, 10), why="start")
    met = [
        {"time_s": 0.0, "action": "bad_sample", "stream": stream, "source": source, "index": 3}
        for stream, source in (("train", "photos"), ("train", "photos"), ("eval", "photos"), ("eval", "held_out"))
    ]
    records: dict[str, list[Any]] = {
        "metrics": [{"step": step, "epoch": step // 8, "position": step * 32} for step in range(25)],
        "journal": [*met, {"time_s": 1.0, "action": "training_ended", "step": 25}],
        "timeline": [change],
    }
    for name, lines in records.items():
        writer = JsonLines(tmp_path / f"{name}.jsonl", attempt=2, is_synced=False)
        for line in lines:
            writer.append(line)
        writer.close()
    return tmp_path


def test_a_run_that_is_not_going_on_is_read_from_its_files(run_folder: Path) -> None:
    run = read_run(run_folder)
    text = "\n".join(line.plain for line in summary_lines(run))
    assert (run.num_steps_done, run.attempts, run.num_bad_samples, run.num_bad_met) == (25, 2, 2, 4)
    for part in (
        "not going on",
        "25 steps done   the last in epoch 3, from position ",
        "training_ended (step 25)",
        "2 replaced by others (4 times)",
        "checkpoints/step-00000020",
        "now",
    ):
        assert part in text
    assert "to go on" not in text
    assert msgspec.json.decode(msgspec.json.encode(run))["is_running"] is False


def test_a_run_that_did_not_come_to_its_end_is_told_with_the_command_that_goes_on(run_folder: Path) -> None:
    (run_folder / "journal.jsonl").unlink()
    run = read_run(run_folder)
    command = f"headrace train {run_folder}/job.yaml --run-dir {run_folder} --resume"
    assert run.to_go_on == command
    assert summary_lines(run)[-1].plain == f"to go on: {command}", "on one line, to be copied"


@pytest.mark.parametrize(
    ("lines", "told", "is_over"),
    [
        ([("training_ended", {"step": 25})], "finished at step 25", True),
        ([("training_ended", {"step": 25}), ("verdict", {})], "finished at step 25", True),
        ([("stopped", {"step": 7, "why": "SIGTERM"})], "stopped by SIGTERM at step 7", False),
        ([("failed", {"step": 7, "reason": "the disk is full"})], "failed at step 7: the disk is full", False),
        ([("checkpointed", {"step": 20})], "ended without a word (killed?)", False),
    ],
)
def test_a_run_that_is_not_going_on_says_how_it_ended(
    run_folder: Path, lines: list[tuple[str, dict[str, Any]]], told: str, is_over: bool
) -> None:
    """What an earlier attempt said of its end is no word on the last one."""
    (run_folder / "journal.jsonl").unlink()
    earlier = JsonLines(run_folder / "journal.jsonl", attempt=1, is_synced=False)
    earlier.append({"time_s": 0.0, "action": "failed", "step": 3, "reason": "long ago"})
    earlier.close()
    journal = JsonLines(run_folder / "journal.jsonl", attempt=2, is_synced=False)
    for action, fields in [("resumed", {}), *lines]:
        journal.append({"time_s": 1.0, "action": action, **fields})
    journal.close()
    run = read_run(run_folder)
    shown = [line.plain for line in summary_lines(run)]
    assert f"ended         {told}" in shown
    assert (str(run.ended), run.to_go_on == "") == (told, is_over)


def test_a_run_that_was_killed_at_once_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("")
    text = "\n".join(line.plain for line in summary_lines(read_run(tmp_path)))
    assert "0 steps done" in text
    assert "nothing was written down" in text


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder without one"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["{", "7", '{"verdicts": 3}', "{}"])
def test_a_health_file_of_another_form_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "health.json").write_text(content)
    assert read_verdicts(tmp_path) == ()


def test_open_verdicts_that_matter_are_a_line_each(tmp_path: Path) -> None:
    verdict = {
        "id": "EXPLODE",
        "kind": "spike",
        "severity": "WARN",
        "first_step": 7,
        "fix": "clip",
        "resolved_at": None,
    }
    verdicts = [verdict, {**verdict, "resolved_at": 9}, {**verdict, "severity": "INFO"}]
    (tmp_path / "health.json").write_text(json.dumps({"verdicts": verdicts}))
    assert read_verdicts(tmp_path) == ("WARN EXPLODE/spike since step 7: clip",)


def test_of_several_jobs_each_that_waits_says_why() -> None:
    """Nobody should have to ask for each of them by name."""
    note = "waiting: no worker has source 'photos'"
    stuck = make_report(job="stuck", samples_per_s=0.0, notes=("an edit was refused", note))
    streams = (make_stream("a/train"), make_stream("b/train", report=stuck), make_stream("c/train", report=None))
    text = shown(make_status(streams=streams))
    assert f"stuck         {note}" in text
    assert "a swap was refused" not in text, "that job goes on"
    assert "an edit was refused" not in text
