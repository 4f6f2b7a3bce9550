"""swap, scale, stop, status: what they ask for, what they refuse before they ask, what they print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from headrace import operating
from headrace.commands.scale import scale
from headrace.commands.status import status
from headrace.commands.stop import stop
from headrace.commands.swap import swap
from pipeline.config import load_job
from pipeline.errors import ConfigError, PeerUnreachable, Problem
from pipeline.going_on import resume_command
from pipeline.json_lines import JsonLines
from pipeline.operator import ChainRefused, OperationRefused
from pipeline.run_end import note_finished, note_stop
from pipeline.run_folder import RunFolder
from pipeline.run_lock import LiveRun
from pipeline.service_messages import AskScale, AskStop, AskSwap, OperatorMessage, Status, StreamStatus
from tests.unit.test_status_screen import make_report, make_status, make_stream

ENDPOINT = "ipc:///run/d"


class FakeOperator:
    """Remembers what was asked, and answers as it was told to."""

    def __init__(self) -> None:
        self.targets: list[operating.Target] = []
        self.asked: list[Any] = []
        self.answer: str | Exception = "done"
        self.seen = make_status()

    def __enter__(self) -> FakeOperator:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def done(self, question: OperatorMessage, on_waiting: Callable[[], None]) -> str:
        self.asked.append(question)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def status(self) -> Status:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.seen


@pytest.fixture(name="operator")
def _operator(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOperator]:
    fake = FakeOperator()

    def of(target: operating.Target) -> FakeOperator:
        fake.targets.append(target)
        return fake

    monkeypatch.setattr(operating.Target, "operator", of)
    return fake


def run(command: Callable[..., None], *arguments: object) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(command: Callable[..., None], *arguments: object) -> Problem:
    with pytest.raises(ConfigError) as caught:
        run(command, *arguments)
    (problem,) = caught.value.problems
    return problem


@pytest.fixture(name="chain")
def _chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("weak.yaml").write_text("- HorizontalFlip\n")
    return Path("weak.yaml")


def test_swap_sends_the_chain_with_its_whole_path_and_prints_the_boundary(operator: FakeOperator, chain: Path) -> None:
    """The job may run in another folder, and an edit of the same file is to be known as such."""
    operator.answer = "from step 12 (position 384) on: recipe 00ff, weak.yaml"
    assert run(swap, chain, "--connect", ENDPOINT, "--stream", "a/train", "--at", 12) == operator.answer + "\n"
    (question,) = operator.asked
    assert isinstance(question, AskSwap)
    assert (question.stream, question.at_step) == ("a/train", 12)
    assert question.chain is not None
    assert question.chain.file == str(chain.absolute())
    assert [node.name for node in question.chain.nodes] == ["HorizontalFlip"]


def test_swap_back_names_no_chain(operator: FakeOperator) -> None:
    run(swap, "--to", "previous", "--connect", ENDPOINT)
    assert operator.asked[0].chain is None


def test_a_bad_chain_is_refused_before_anybody_is_asked(operator: FakeOperator, chain: Path) -> None:
    chain.write_text("- HorizontalFlip: 1\n")
    problem = refused(swap, chain, "--connect", ENDPOINT)
    assert (problem.file, problem.line, problem.path) == ("weak.yaml", 1, "chain[0].HorizontalFlip")
    assert operator.asked == []


def test_what_the_workers_refuse_is_located_in_the_file_as_it_was_named(operator: FakeOperator, chain: Path) -> None:
    """As `headrace check` would have said it."""
    place = Problem(file=str(chain.absolute()), line=1, path="chain[0].HorizontalFlop", expected="a", got="b")
    operator.answer = ChainRefused("refused; the present chain goes on", [place])
    assert str(refused(swap, chain, "--connect", ENDPOINT)).startswith("weak.yaml:1: chain[0].HorizontalFlop")


@pytest.mark.parametrize(
    "arguments", [[], ["weak.yaml", "--to", "previous"], ["--to", "strong.yaml"], ["weak.yaml", "--run-dir", "."]]
)
def test_swap_wants_one_chain_and_one_service(operator: FakeOperator, chain: Path, arguments: list[str]) -> None:
    assert refused(swap, *arguments, "--connect", ENDPOINT).file == "command line"
    assert operator.asked == []


@pytest.mark.parametrize(("num", "expected"), [("4", (4, False)), ("auto", (0, True))])
def test_scale_asks_for_a_number_or_for_as_many_as_are_needed(
    operator: FakeOperator, num: str, expected: tuple[int, bool]
) -> None:
    run(scale, num, "--connect", ENDPOINT, "--pool", "p")
    (question,) = operator.asked
    assert isinstance(question, AskScale)
    assert (question.pool, (question.num_workers, question.automatic)) == ("p", expected)


@pytest.mark.parametrize(("limit", "is_told"), [("window", True), ("workers", False)])
def test_scale_says_which_jobs_gain_nothing_by_more_workers(operator: FakeOperator, limit: str, is_told: bool) -> None:
    operator.seen = make_status(streams=(make_stream(report=make_report(limit=limit)),))
    printed = run(scale, 9, "--connect", ENDPOINT)
    assert is_told == ("is limited by the window: a larger one may help, more workers would not" in printed)


@pytest.mark.parametrize("num", ["0", "many", "1.5", "٣", "99999999999"])
def test_scale_refuses_what_is_no_number_of_workers(operator: FakeOperator, num: str) -> None:
    assert refused(scale, num, "--connect", ENDPOINT).got == num


def test_what_the_service_refuses_ends_with_the_exit_code_of_wrong_input(operator: FakeOperator) -> None:
    operator.answer = OperationRefused("at most 8 workers")
    with pytest.raises(OperationRefused, match="at most 8") as caught:
        run(scale, 9, "--connect", ENDPOINT)
    assert caught.value.exit_code == 2


def test_a_run_folder_leads_to_its_dispatcher_and_stream(
    operator: FakeOperator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_lock = LiveRun(pid=7, endpoint=ENDPOINT, stream="abc/train")
    monkeypatch.setattr("pipeline.run_lock.live_run", lambda *_: run_lock)
    run(stop, "--run-dir", tmp_path)
    assert isinstance(operator.asked[0], AskStop)
    assert operator.asked[0].stream == "abc/train"
    assert operator.targets[0].endpoint == ENDPOINT
    assert operator.targets[0].is_run


def test_without_an_address_the_users_standing_dispatcher_is_meant(
    operator: FakeOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runtime_dir.default_endpoint", lambda: "ipc:///run/standing")
    run(scale, 3)
    assert operator.targets[0].endpoint == "ipc:///run/standing"


def test_a_run_that_is_just_starting_is_told_apart_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run_lock.live_run", lambda *_: LiveRun(pid=7, endpoint="", stream=""))
    with pytest.raises(PeerUnreachable, match="has no dispatcher yet"):
        run(stop, "--run-dir", tmp_path)
    monkeypatch.undo()
    assert refused(stop, "--run-dir", tmp_path).expected == "a run that is going on"
    assert refused(status, "--run-dir", tmp_path).expected == "a run that is going on"


def test_who_stops_a_run_that_has_ended_is_told_the_whole_command_that_goes_on_with_it(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", "name: tiny\n") as folder:
        note_stop(folder, "SIGTERM", 3)
    problem = refused(stop, "--run-dir", tmp_path / "run")
    assert (problem.got, problem.way_out) == ("a run that has ended", resume_command(tmp_path / "run"))
    with RunFolder.resume(tmp_path / "run") as folder:
        note_finished(folder, 9)
    assert refused(stop, "--run-dir", tmp_path / "run").way_out == "nothing: it has finished"


def test_status_prints_a_screen_and_the_same_as_json(operator: FakeOperator) -> None:
    assert "812 samples/s" in run(status, "--connect", ENDPOINT)
    told = json.loads(run(status, "--connect", ENDPOINT, "--json"))
    assert told["is_running"] is True
    assert msgspec.convert(told["streams"], tuple[StreamStatus, ...]) == make_status().streams


def test_a_run_whose_dispatcher_is_away_is_read_from_its_files_and_can_be_stopped_by_a_signal(
    operator: FakeOperator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, for a standing dispatcher that nobody started, or for its own one that is started again."""
    (tmp_path / "job.yaml").write_text("name: tiny\n")
    journal = JsonLines(tmp_path / "journal.jsonl", attempt=1, is_synced=False)
    journal.append({"action": "stall", "note": "no worker has source 'photos'"})
    journal.append({"action": "checkpointed"})
    journal.close()
    run_lock = LiveRun(pid=4711, endpoint=ENDPOINT, stream="abc/train")
    monkeypatch.setattr("pipeline.run_lock.live_run", lambda *_: run_lock)
    operator.answer = PeerUnreachable("no dispatcher answers")
    screen = run(status, "--run-dir", tmp_path)
    for part in ("going on", ENDPOINT, "no worker has source 'photos'", "kill -TERM 4711"):
        assert part in screen
    assert "not going on" not in screen
    assert json.loads(run(status, "--run-dir", tmp_path, "--json"))["is_running"] is True
    with pytest.raises(PeerUnreachable, match="kill -TERM 4711"):
        run(stop, "--run-dir", tmp_path)
    with pytest.raises(PeerUnreachable):
        run(status, "--connect", ENDPOINT)


@pytest.mark.parametrize("spelled", ["strong.yaml", "../jobs/strong.yaml", "../link/strong.yaml", "{}/strong.yaml"])
def test_a_chain_file_has_one_name_for_the_job_and_for_the_operator(
    spelled: str, operator: FakeOperator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap to the job's own file must leave it to the file's edits, however both have spelled it."""
    jobs, link = tmp_path / "jobs", tmp_path / "link"
    (jobs / "run").mkdir(parents=True)
    link.symlink_to("jobs")
    (jobs / "shared.yaml").write_text("[HorizontalFlip]")
    (jobs / "strong.yaml").symlink_to("shared.yaml")  # a link that is the file may be pointed elsewhere: an edit
    spelled = spelled.format(link)
    monkeypatch.chdir(jobs)
    run(swap, spelled, "--connect", ENDPOINT)
    (question,) = operator.asked
    for folder in (jobs, link):
        sources = {"digits": {"kind": "digits"}}
        for chain in (spelled, [{"from_epoch": 0, "use": spelled}]):
            job = {"sources": sources, "train": {"source": "digits", "chain": chain}}
            (jobs / "job.yaml").write_text(json.dumps(job))
            loaded = load_job(folder / "job.yaml")
            assert question.chain.file == loaded.train_file == str(jobs / "strong.yaml")
            held = loaded.config.train.chain
            assert str(jobs / "strong.yaml") == (held if isinstance(held, str) else held[0]["use"])
