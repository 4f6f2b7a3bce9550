"""`headrace train` from a job file to its summary, on streams held in memory."""

import io
import signal
import sys
import threading
import types
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from rich.console import Console

from headrace import beginning, report_process
from headrace.commands import train as command
from headrace.run_summary import read_run
from pipeline.bad_count import BadCount
from pipeline.config import load_job
from pipeline.errors import EXIT_USER_INPUT, ConfigError, PeerUnreachable, RunFailed, Stopped
from pipeline.going_on import resume_command
from pipeline.json_lines import read_lines
from pipeline.plan import open_job_source
from pipeline.recipe import BatchSpec, FieldSpec, Finish
from pipeline.run_end import MAX_REASON, read_run_end, reason_of
from pipeline.run_folder import RunFolder
from pipeline.user_code import PRIVATE_PREFIX
from trainer.batch import Batch
from trainer.checkpoint import load_model
from trainer.record import Progress, Summary

JOB = """
name: tiny
sources: {digits: {kind: digits}}
train: {source: digits, chain: [Normalize, ToTensorV2], epochs: 2}
eval: {source: digits, chain: [Normalize, ToTensorV2]}
model: {kind: mlp, width: 4, depth: 1}
"""
NET = """
from torch import nn

def make(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, num_classes))
"""


def random_batches(num_steps):
    for step in range(num_steps):
        yield Batch(
            step=step,
            epoch=step,
            start=4 * step,
            stop=4 * step + 4,
            recipe="abc",
            digest="ff",
            images=torch.randn(4, 1, 8, 8),
            labels=torch.tensor([0, 1, 0, 1]),
            sample_ids=torch.arange(4),
        )


class TwoSteps:
    """A stream of two random batches, judged on one of them."""

    num_steps = 2
    classes = ("a", "b")
    waited_s = 0.25
    fingerprints = {"digits": "ff" * 32}  # noqa: RUF012
    bad_samples = BadCount()
    worker_fingerprint = "some libraries"

    def __init__(self, finish):
        self.spec = BatchSpec(fields=(FieldSpec(name="image", dtype="uint8", shape=(8, 8, 1)),), finish=finish)
        self.train = self

    def __iter__(self):
        yield from random_batches(self.num_steps)

    def evaluate(self, step):
        yield next(iter(self))

    def look(self, num_batches):
        yield from islice(random_batches(self.num_steps), num_batches)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The command's streams; says with how many workers they were opened."""
    calls = {"finish": Finish(scale=(1.0,), shift=(0.0,), channels_first=True)}

    @contextmanager
    def open_streams(job, num_workers, run_folder, **options):
        calls["num_workers"] = num_workers
        if calls.get("is_stopped_at_once"):
            options["on_stop"]()
            threading.Event().wait(10.0)
        yield TwoSteps(calls["finish"])

    embedded = types.ModuleType("headrace.embedded")
    embedded.open_streams = open_streams
    monkeypatch.setitem(sys.modules, "headrace.embedded", embedded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    return calls


def test_a_job_is_trained_into_runs_name_and_its_model_can_be_loaded_as_printed(opened, tmp_path, capsys):
    command.train(tmp_path / "job.yaml", workers="3", set_=["model.width=6"])
    run = tmp_path / "runs" / "tiny"
    printed = capsys.readouterr().out
    assert opened["num_workers"] == 3
    assert "held-out accuracy" in printed
    assert "step 2/2" in printed
    (load,) = [line for line in printed.splitlines() if "load_model(" in line]
    namespace = {}
    exec(load.strip(), namespace)
    assert namespace["model"](torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert len(read_lines(run / "metrics.jsonl")) == 2
    assert load_model(run / "checkpoints" / "step-00000002")[1].out_features == 6


def test_a_model_of_the_users_own_can_be_loaded_as_printed_from_any_folder(opened, tmp_path, monkeypatch, capsys):
    """By the name of its factory, which the line has; without it the error has it."""
    (tmp_path / "net.py").write_text(NET)
    own = JOB.replace("{kind: mlp, width: 4, depth: 1}", "{kind: factory, factory: net.py:make}")
    (tmp_path / "job.yaml").write_text(own)
    command.train(tmp_path / "job.yaml")
    (load,) = [line for line in capsys.readouterr().out.splitlines() if "load_model(" in line]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    namespace = {}
    exec(load.strip(), namespace)
    assert namespace["model"](torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    with pytest.raises(ConfigError, match=r'to go on: load_model\(…, factory=".*net\.py:make"\)'):
        load_model(tmp_path / "runs/tiny/checkpoints/step-00000002")


def test_the_folders_job_file_is_the_job_as_it_ran(opened, tmp_path):
    """Overrides included, and independent of where it lies."""
    command.train(tmp_path / "job.yaml", run_dir=tmp_path / "elsewhere", set_=["model.width=6", "workers=1"])
    again = load_job(tmp_path / "elsewhere" / "job.yaml")
    original = load_job(tmp_path / "job.yaml", ["model.width=6", "workers=1"])
    assert again.config == original.config
    assert again.train.digest == original.train.digest
    assert opened["num_workers"] == 1
    assert (tmp_path / "elsewhere" / "chains" / f"{again.train.digest}.yaml").exists()


def test_a_job_refused_before_its_first_step_leaves_no_folder_in_the_way(opened, tmp_path):
    good, opened["finish"] = opened["finish"], Finish()
    with pytest.raises(ConfigError, match="Normalize, ToTensorV2"):
        command.train(tmp_path / "job.yaml")
    assert not (tmp_path / "runs" / "tiny").exists()
    opened["finish"] = good
    command.train(tmp_path / "job.yaml")
    with pytest.raises(ConfigError, match="the folder of an earlier run"):
        command.train(tmp_path / "job.yaml")


def test_without_a_terminal_there_is_a_line_every_few_seconds_and_one_for_the_last_step():
    now_s = 100.0
    output = io.StringIO()
    update = command._line_printer(Console(file=output), lambda: now_s)
    for step in range(1, 10):
        now_s += 2.0
        update(
            Progress(
                num_steps_done=step,
                num_steps=9,
                epoch=0,
                loss=1.0,
                samples_per_s=400.0,
                waited_fraction=0.5,
                maybe_evaluation=None,
            )
        )
    steps = [line.split()[1] for line in output.getvalue().splitlines()]
    assert steps == ["1/9", "4/9", "7/9", "9/9"]


def summary_of(folder, **changes):
    """What is printed of a run of nine steps."""
    plain = Summary(
        num_steps=9,
        num_samples=90,
        skipped_steps=2,
        samples_per_s=400.0,
        waited_s=1.0,
        waited_fraction=0.1,
        final_loss=0.5,
        held_out_loss=None,
        held_out_accuracy=None,
        run_folder=folder,
        checkpoint=folder / "checkpoints" / "step-00000009",
    )
    output = io.StringIO()
    command.print_summary(replace(plain, **changes), Console(file=output, width=100))
    return output.getvalue()


def test_a_summary_says_when_steps_were_skipped(tmp_path):
    printed = summary_of(tmp_path)
    assert "skipped steps" in printed
    assert "held-out" not in printed


def test_a_summary_says_how_the_gradients_are_and_where_to_read_on(tmp_path):
    """A loss that stands still says nothing of why; and of a layer's name nothing is lost as markup."""
    worst = "CRITICAL VANISH_BWD (confirmed, step 2..39) in blocks[0], and 1 more"
    printed = summary_of(tmp_path, gradients=worst, num_open_verdicts=2).splitlines()
    (row,) = [line for line in printed if "gradients  " in line]
    assert worst in row
    assert printed[printed.index("What is wrong with its gradients, and what mends it:") + 1] == (
        f"  headrace health {tmp_path}"
    )


def test_a_summary_of_healthy_gradients_is_a_word_and_of_unwatched_ones_none(tmp_path):
    healthy, unwatched = summary_of(tmp_path, gradients="healthy"), summary_of(tmp_path)
    assert "healthy" in healthy
    assert "headrace health" not in healthy
    assert "gradients" not in unwatched


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"branch": True}, "--branch\n  expected: --from STEP beside it"),
        ({"from_step": 4}, "--from\n  expected: --resume beside it"),
        ({"accept_changes": True}, "--accept-changes\n  expected: --resume beside it"),
        ({"timeline": "timeline.jsonl", "resume": True}, "--timeline\n  expected: a new run"),
        ({"try_fix": True, "from_step": 0}, "--from\n  expected: a training that is saved"),
        ({"try_fix": True, "branch": True}, "--branch\n  expected: a training that is saved"),
        ({"try_fix": True, "accept_changes": True}, "--accept-changes\n  expected: a training that is saved"),
        ({"workers": "many"}, "--workers\n  expected: a number of worker processes from 0, or auto"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, expected, opened, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        command.train(tmp_path / "job.yaml", **options)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_was_stopped_is_resumable_and_says_how(opened, tmp_path, monkeypatch):
    """Exit code 4, and the very command that goes on."""
    real = TwoSteps.__iter__

    def stopped_after_one(self):
        yield next(real(self))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TwoSteps, "__iter__", stopped_after_one)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM after step 1 of 2, .*step-00000001") as caught:
        command.train(tmp_path / "job.yaml", set_=["model.width=6"])
    assert f"headrace train {tmp_path}/job.yaml --run-dir runs/tiny --resume --set model.width=6" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_run_that_an_operator_stopped_before_its_first_step_is_resumable(opened, tmp_path):
    """It was promised so; Ctrl-C there leaves nothing in the way."""
    opened["is_stopped_at_once"] = True
    with pytest.raises(Stopped, match=r"stopped by headrace stop before its next step\n  to go on: .*--resume"):
        command.train(tmp_path / "job.yaml")
    opened["is_stopped_at_once"] = False
    command.train(tmp_path / "job.yaml", resume=True)
    assert len(read_lines(tmp_path / "runs/tiny/metrics.jsonl")) == 2


def test_a_resumed_run_that_is_stopped_while_it_waits_for_its_first_batch_is_resumable(opened, tmp_path, monkeypatch):
    """It has no checkpoint, but its folder stays, and exit code 4 says so."""
    give_digits(tmp_path / "job.yaml", monkeypatch)

    def stopped(self):
        signal.raise_signal(signal.SIGTERM)
        yield

    def died(self):
        raise RunFailed("the disk is full")
        yield

    monkeypatch.setattr(TwoSteps, "__iter__", died)
    with pytest.raises(RunFailed):
        command.train(tmp_path / "job.yaml")
    monkeypatch.setattr(TwoSteps, "__iter__", stopped)
    with pytest.raises(Stopped, match="--resume") as caught:
        command.train(tmp_path / "job.yaml", resume=True)
    assert caught.value.exit_code == 4


def test_an_edited_model_factory_is_told_with_both_sides_and_trained_on_only_if_it_is_accepted(
    opened, tmp_path, monkeypatch, capsys
):
    """The job's text is the same, and so are the shapes: only its source tells that it is another model."""
    give_digits(tmp_path / "job.yaml", monkeypatch)
    net = tmp_path / "net.py"
    net.write_text(NET)
    (tmp_path / "job.yaml").write_text(
        JOB.replace("{kind: mlp, width: 4, depth: 1}", "{kind: factory, factory: net.py:make}")
    )

    def died(self):
        raise RunFailed("the disk is full")
        yield

    real = TwoSteps.__iter__
    monkeypatch.setattr(TwoSteps, "__iter__", died)
    with pytest.raises(RunFailed):
        command.train(tmp_path / "job.yaml")
    monkeypatch.setattr(TwoSteps, "__iter__", real)
    edit(net, NET.replace("ReLU", "Tanh"))
    both = (
        r"job\.yaml: model\.factory: source of .*net\.py:make\n  expected: 'sha256 \w{64}', as in .*/journal\.jsonl\n"
    )
    with pytest.raises(ConfigError, match=both + r"  got:      'sha256 \w{64}'\n  to go on: .*--accept-changes"):
        command.train(tmp_path / "job.yaml", resume=True)
    capsys.readouterr()
    command.train(tmp_path / "job.yaml", resume=True, accept_changes=True)
    assert "accepted (--accept-changes)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "reason", "exit_code"),
    [
        (RunFailed("11 bad samples\n  to go on: mend them"), "11 bad samples", 1),
        (RunFailed("no slice for 25 s\n  no worker is connected"), "no slice for 25 s; no worker is connected", 1),
        (PeerUnreachable("no dispatcher"), "no dispatcher", 3),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero", 1),
    ],
)
def test_a_run_that_fails_says_so_in_its_journal(opened, tmp_path, monkeypatch, error, reason, exit_code):
    """Who looks a day later has the folder, not the terminal."""
    real = TwoSteps.__iter__

    def fails_after_one(self):
        yield next(real(self))
        raise error

    monkeypatch.setattr(TwoSteps, "__iter__", fails_after_one)
    with pytest.raises(type(error)):
        command.train(tmp_path / "job.yaml")
    last = read_lines(tmp_path / "runs/tiny/journal.jsonl")[-1]
    assert (last["action"], last["step"], last["reason"], last["exit_code"]) == ("failed", 1, reason, exit_code)


def test_of_a_long_reason_both_ends_are_kept():
    """A service's log ends in what it died of."""
    reason = reason_of(RunFailed("headrace workers ended with exit code 2\n" + "starting\n" * 99 + "no such plug-in"))
    assert reason.startswith("headrace workers ended with exit code 2; starting")
    assert reason.endswith("starting; no such plug-in")
    assert len(reason) < MAX_REASON


def test_services_that_the_users_input_ends_leave_no_folder_in_the_way(opened, tmp_path, monkeypatch):
    """Once mended, the same command works."""

    def ended(self):
        error = RunFailed("headrace workers ended with exit code 2")
        error.exit_code = EXIT_USER_INPUT
        raise error
        yield

    monkeypatch.setattr(TwoSteps, "__iter__", ended)
    with pytest.raises(RunFailed):
        command.train(tmp_path / "job.yaml")
    assert not (tmp_path / "runs/tiny").exists()


def test_a_finished_run_stays_finished_when_it_is_resumed(opened, tmp_path, monkeypatch, capsys):
    """A container that is started again does just that."""
    give_digits(tmp_path / "job.yaml", monkeypatch)
    monkeypatch.setattr(beginning, "_is_finished", lambda *_: True)
    command.train(tmp_path / "job.yaml", set_=["health.report=false"])
    command.train(tmp_path / "job.yaml", resume=True, set_=["health.report=false"])
    assert "it is finished already" in capsys.readouterr().out
    assert read_run_end(tmp_path / "runs/tiny").how == "finished"


def test_a_ctrl_c_while_the_page_is_drawn_leaves_a_finished_run(opened, tmp_path, monkeypatch, capsys):
    def interrupted(folder, base):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(report_process, "make_report", interrupted)
    command.train(tmp_path / "job.yaml", set_=["health.report=true"])
    assert f"(interrupted); headrace report {tmp_path}/runs/tiny tries again" in capsys.readouterr().out
    assert read_run_end(tmp_path / "runs/tiny").how == "finished"


def test_the_command_that_goes_on_has_the_job_and_options_that_were_asked_for(opened, tmp_path, monkeypatch):
    """Plug-ins and factories lie beside the user's own file; without it, the run's copy must do."""
    real = TwoSteps.__iter__

    def fails_after_one(self):
        yield next(real(self))
        raise RunFailed("the disk is full")

    monkeypatch.setattr(TwoSteps, "__iter__", fails_after_one)
    with pytest.raises(RunFailed):
        command.train(Path("job.yaml"), connect="ipc:///d", set_=["model.width=6"])
    run = Path("runs/tiny")
    options = "--run-dir runs/tiny --resume"
    asked = f"headrace train {tmp_path}/job.yaml {options} --set model.width=6 --connect ipc:///d"
    assert (resume_command(run), read_run(run).to_go_on) == (asked, asked)
    (tmp_path / "job.yaml").unlink()
    assert resume_command(run, ["--from", "1"]) == (
        f"headrace train runs/tiny/job.yaml {options} --connect ipc:///d --from 1"
    )


def test_a_failure_that_the_disk_has_no_room_for_is_told_on_the_terminal_all_the_same(opened, tmp_path, monkeypatch):
    """The run's own error, not that of its journal."""

    def fails(self):
        monkeypatch.setattr(RunFolder, "append_event", full)
        raise RunFailed("the workers are gone")
        yield

    def full(self, action, **fields):
        raise RunFailed("the disk is full")

    monkeypatch.setattr(TwoSteps, "__iter__", fails)
    with pytest.raises(RunFailed, match="the workers are gone"):
        command.train(tmp_path / "job.yaml")


def test_a_run_that_a_second_ctrl_c_ended_says_what_stopped_it(opened, tmp_path, monkeypatch):
    real = TwoSteps.__iter__

    def interrupted(self):
        yield next(real(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(TwoSteps, "__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.train(tmp_path / "job.yaml")
    assert str(read_run_end(tmp_path / "runs/tiny")) == "stopped at step 1"


def give_digits(job, monkeypatch):
    """The streams are of the job's own source, as a resumed run must find."""
    digits = open_job_source(load_job(job).config, "job.yaml", 0, "digits")
    monkeypatch.setattr(TwoSteps, "fingerprints", {"digits": digits.fingerprint})
    monkeypatch.setattr(TwoSteps, "classes", digits.classes)


def edit(file, text):
    """As between two commands: what is loaded of it is forgotten."""
    file.write_text(text)
    for name in [name for name in sys.modules if name.startswith(PRIVATE_PREFIX)]:
        del sys.modules[name]
