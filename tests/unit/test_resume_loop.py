"""A run that is killed and resumed comes to what an undisturbed one comes to: the loop, on streams held in memory."""

import contextlib
import math
import random
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from pipeline.checkpoint_folder import checkpoint_steps, read_state
from pipeline.config import dump_job
from pipeline.errors import ConfigError, RunFailed
from pipeline.json_lines import encode_line, read_lines
from pipeline.resume import choose_checkpoint, stream_start
from pipeline.run_folder import RunFolder
from pipeline.run_history import read_metrics
from pipeline.user_code import PRIVATE_PREFIX, load_attribute, source_digest
from tests.memory_streams import IMAGE, SPEC, MemoryStreams, make_job
from trainer import checkpoint_writer
from trainer.checkpoint import load_model
from trainer.loop import train
from trainer.stopping import StopRequest

SHAPED_NET = """
from torch import nn

def make(input_shape, num_classes):
    '''As many weights as the first batch has pixels; takes images of any size.'''
    channels, height, width = input_shape
    pool = nn.AdaptiveAvgPool2d((height // 2, width // 2))
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(channels * (height // 2) * (width // 2), num_classes))
"""
NET = """
import random
import numpy as np
import torch
from torch import nn

class Noisy(nn.Module):
    '''Draws from every generator there is in each training step, and has buffers.'''

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(12, num_classes)

    def forward(self, images):
        scale = 1.0
        if self.training:
            scale += 0.1 * random.random() + 0.1 * float(np.random.random())
        return self.head(self.body(images)) * scale

def make(input_shape, num_classes):
    return Noisy(num_classes)
"""


class Killed(BaseException):
    """What SIGKILL is to a test in one process: nothing of ours runs after it."""


def noisy_job(folder, **fields):
    (folder / "net.py").write_text(NET)
    settings = {
        "model": {"kind": "factory", "factory": str(folder / "net.py") + ":make"},
        "optimizer": {"kind": "adamw", "lr": 0.02, "weight_decay": 0.01},
        "schedule": {"kind": "plateau", "patience": 0, "gamma": 0.5},
        "checkpoint": {"every_steps": 4, "keep": 2},
        "every_steps": 6,
        "torch_threads": 1,
    }
    return make_job(folder, **{**settings, **fields})


def attempt(job, path, *, until=None, stop_at=None, streams=None):
    """One attempt, new or resumed; killed after `until` steps, or asked to stop after `stop_at`."""
    random.seed()  # what other code draws between attempts must not matter
    torch.rand(3)
    stop = StopRequest()

    def on_progress(progress):
        if progress.num_steps_done == until:
            raise Killed
        if progress.num_steps_done == stop_at:
            stop.request("test")

    is_new = not path.exists()
    with RunFolder.create(path, dump_job(job.config)) if is_new else RunFolder.resume(path) as folder:
        resumed = None if is_new else choose_checkpoint(path)
        streams = streams or MemoryStreams(num_epochs=2, first_step=resumed.step if resumed else 0)
        return train(job, streams, folder, on_progress, resumed, stop)


def outcome(path):
    """All that must be equal: weights, every step's numbers, the evaluations, the schedule's state."""
    checkpoint = path / "checkpoints" / f"step-{checkpoint_steps(path / 'checkpoints')[-1]:08d}"
    state = read_state(checkpoint)
    steps = [
        {name: line[name] for name in ("step", "digest", "loss", "grad_norm", "lr", "num_correct")}
        for _, line in sorted(read_metrics(path).items())
    ]
    evaluations = {
        event["step"]: (event["loss"], event["accuracy"])
        for event in read_lines(path / "journal.jsonl")
        if event["action"] == "evaluated"
    }
    return state["weights_sha256"], steps, evaluations, state["schedule"], state["evaluation"], state["finished"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    attempt(noisy_job(folder), folder / "run")
    return outcome(folder / "run")


def test_a_run_killed_after_any_step_and_resumed_comes_to_the_same(tmp_path, calm):
    """Law 5, at every step: also those of checkpoints and evaluations, the first one and the last."""
    job = noisy_job(tmp_path)
    for step in range(1, 21):
        path = tmp_path / f"run{step}"
        with pytest.raises(Killed):
            attempt(job, path, until=step)
        summary = attempt(job, path)
        assert outcome(path) == calm, f"killed after step {step}"
        assert summary.num_steps == summary.planned_steps == 20
        assert summary.first_step <= step


def test_a_run_killed_again_and_again_comes_to_the_same(tmp_path, calm):
    """Each attempt begins where the newest checkpoint is, which may be where the last one began."""
    job, path = noisy_job(tmp_path), tmp_path / "run"
    for until in (3, 5, 5, 9, 14, 13, 20):
        with contextlib.suppress(Killed):
            attempt(job, path, until=until)
    attempt(job, path)
    assert outcome(path) == calm


def test_a_run_stopped_after_any_step_goes_on_from_that_step(tmp_path, calm):
    """A wish to stop loses nothing: no step is done twice."""
    job = noisy_job(tmp_path)
    for step in (1, 4, 6, 11, 20):
        path = tmp_path / f"run{step}"
        summary = attempt(job, path, stop_at=step)
        assert (summary.stopped_by, summary.num_steps) == ("test", step)
        assert read_lines(path / "journal.jsonl")[-1]["action"] == "stopped"
        assert attempt(job, path).first_step == step
        assert outcome(path) == calm
        assert len(read_lines(path / "metrics.jsonl")) == 20


def test_a_model_is_made_again_as_it_was_though_images_have_another_shape_by_now(tmp_path):
    """`shape: free`: a model that is made for the size of the first batches goes on after a larger size began."""
    (tmp_path / "shaped.py").write_text(SHAPED_NET)
    model = {"kind": "factory", "factory": str(tmp_path / "shaped.py") + ":make"}
    job = noisy_job(tmp_path, model=model, shape="free")
    attempt(job, tmp_path / "calm")
    with pytest.raises(Killed):
        attempt(job, tmp_path / "run", until=9)
    larger = msgspec.structs.replace(SPEC, fields=(msgspec.structs.replace(IMAGE, shape=(16, 16, 1)),))
    attempt(job, tmp_path / "run", streams=MemoryStreams(num_epochs=2, first_step=8, spec=larger))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")
    with contextlib.suppress(Killed):
        attempt(job, tmp_path / "unsaved", until=2)  # before its first checkpoint: the first batch is the first again
    attempt(job, tmp_path / "unsaved")
    assert outcome(tmp_path / "unsaved") == outcome(tmp_path / "calm")


def edit(file, old, new):
    """As between two attempts: what is loaded of it is forgotten."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    for name in [name for name in sys.modules if name.startswith(PRIVATE_PREFIX)]:
        del sys.modules[name]


def test_each_attempt_and_checkpoint_has_the_digest_of_the_factorys_source(tmp_path):
    """Before and after an edit that was accepted: of what it trained with itself."""
    job, path, expected = noisy_job(tmp_path), tmp_path / "run", []
    for until in (5, 9):
        expected.append(source_digest("net.py", tmp_path))
        with pytest.raises(Killed):
            attempt(job, path, until=until)
        assert choose_checkpoint(path).state["model"]["factory_sha256"] == expected[-1]
        edit(tmp_path / "net.py", "0.1", "0.11")
    events = [event for event in read_lines(path / "journal.jsonl") if event["action"] == "training_started"]
    assert [event["factory_sha256"] for event in events] == expected


@pytest.mark.parametrize(
    ("old", "new", "expected", "got"),
    [
        ("Linear(64, 12)", "Linear(64, 12, bias=False)", r"body\.1\.bias \(12,\)", r"body\.1\.bias \(absent\)"),
        ("Linear(12, num", "Linear(5, num", r"head\.weight \(3, 12\)", r"head\.weight \(3, 5\)"),
    ],
)
def test_a_factory_that_makes_another_model_by_now_is_refused_with_both_sides(old, new, expected, got, tmp_path):
    """Not a traceback out of torch: also where the model is loaded by itself."""
    job, path = noisy_job(tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        attempt(job, path, until=9)
    edit(tmp_path / "net.py", old, new)
    edit(tmp_path / "net.py", "self.body(images)", "self.body(images)[:, : self.head.in_features]")
    text = (
        rf"net\.py:make: model\n  expected: {expected}, as in .*step-00000008/model\.pt\n  got:      {got}\n  to go on"
    )
    with pytest.raises(ConfigError, match=text):
        attempt(job, path)
    with pytest.raises(ConfigError, match=text):
        load_model(path / "checkpoints/step-00000008", lambda input_shape, num_classes: made(tmp_path, num_classes))


def made(folder, num_classes):
    return load_attribute("net.py:make", folder)((1, 8, 8), num_classes)


@pytest.mark.parametrize(
    ("change", "expected", "got"),
    [
        ("net.head.requires_grad_(False)", r"6 trainable parameters, as in .*train\.pt", "4"),
        (
            "net.__delattr__('body') or setattr(net, 'body', body)",
            r"body\.1\.weight, .* in this order",
            r"head\.weight, ",
        ),
    ],
    ids=["one is frozen", "two have changed places"],
)
def test_what_an_optimizer_has_gathered_goes_to_no_other_parameter(change, expected, got, tmp_path):
    """All tensors fit by name; but it knows parameters by their place among those it trains."""
    job, path = noisy_job(tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        attempt(job, path, until=9)
    edit(
        tmp_path / "net.py",
        "return Noisy(num_classes)",
        f"net = Noisy(num_classes); body = net.body; {change}; return net",
    )
    with pytest.raises(ConfigError, match=rf"net\.py:make: model\n  expected: {expected}.*\n  got:      {got}"):
        attempt(job, path)


def test_a_wish_to_stop_in_the_middle_of_an_evaluation_leaves_no_trace_of_it(tmp_path, calm):
    """It is done again from its beginning; what it would have told the schedule is told once."""
    job, path, stop = noisy_job(tmp_path), tmp_path / "run", StopRequest()

    class Interrupted(MemoryStreams):
        def evaluate(self, step):
            for number, batch in enumerate(super().evaluate(step)):
                if number == 2:
                    stop.request("test")
                yield batch

    with RunFolder.create(path, dump_job(job.config)) as folder:
        summary = train(job, Interrupted(num_epochs=2), folder, lambda progress: None, None, stop)
    assert (summary.stopped_by, summary.num_steps) == ("test", 6)
    attempt(job, path)
    assert outcome(path) == calm


def test_a_wish_to_stop_before_the_first_step_is_an_interrupt_that_leaves_no_checkpoint(tmp_path):
    job, stop = noisy_job(tmp_path), StopRequest()
    stop.why = "test"
    with RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder, pytest.raises(KeyboardInterrupt):
        train(job, MemoryStreams(), folder, lambda progress: None, None, stop)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == []


def test_more_epochs_than_before_go_on_as_if_there_had_been_as_many_from_the_beginning(tmp_path):
    """The evaluation at the old end is the one after that epoch; it is not done twice."""
    job = noisy_job(tmp_path, every_steps=0, schedule={"kind": "plateau", "patience": 0})
    attempt(job, tmp_path / "long", streams=MemoryStreams(num_epochs=3))
    attempt(job, tmp_path / "run", streams=MemoryStreams(num_epochs=2))
    attempt(job, tmp_path / "run", streams=MemoryStreams(num_epochs=3, first_step=20))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "long")


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tmp_path, calm):
    job, path = noisy_job(tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        attempt(job, path, until=15)
    (path / "checkpoints/step-00000012/train.pt").unlink()
    resumed = choose_checkpoint(path)
    assert resumed.step == 8
    assert [step for step, _ in resumed.damaged] == [12]
    assert "train.pt" in resumed.damaged[0][1]
    attempt(job, path)
    assert outcome(path) == calm


def test_a_batch_that_comes_out_otherwise_than_before_ends_the_run_with_both_digests(tmp_path):
    job, path = noisy_job(tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        attempt(job, path, until=7)
    lines = read_lines(path / "metrics.jsonl")
    lines[5]["digest"] = "f" * 64
    (path / "metrics.jsonl").write_bytes(b"".join(encode_line({**line}) for line in lines))
    with pytest.raises(RunFailed, match=r"step 5, made again(.|\n)*ffff(.|\n)*--from STEP --branch"):
        attempt(job, path)


def test_only_the_newest_and_the_best_checkpoints_stay(tmp_path):
    """The best one however old it gets, and whatever step an evaluation falls on; nobody says which are healthy."""
    fields = {"checkpoint": {"every_steps": 4, "keep": 2, "keep_best": "held_out_loss"}, "every_steps": 6}
    fields["health"] = {"enabled": False}
    job = noisy_job(tmp_path, optimizer={"kind": "sgd", "lr": 1e3}, **fields)  # each step makes it worse
    attempt(job, tmp_path / "run")
    evaluated = [event for event in read_lines(tmp_path / "run/journal.jsonl") if event["action"] == "evaluated"]
    best = min(evaluated, key=lambda event: event["loss"] if math.isfinite(float(event["loss"])) else math.inf)
    expected = sorted({best["step"], 16, 20})
    assert checkpoint_steps(tmp_path / "run/checkpoints") == expected
    assert read_state(tmp_path / "run/checkpoints/step-00000020")["best"]["step"] == best["step"]


def test_each_checkpoint_tells_how_long_it_kept_the_loop(tmp_path):
    summary = attempt(noisy_job(tmp_path), tmp_path / "run")
    events = [event for event in read_lines(tmp_path / "run/journal.jsonl") if event["action"] == "checkpointed"]
    assert [event["step"] for event in events] == [4, 8, 12, 16, 20]
    assert summary.num_checkpoints == 5
    assert summary.stall_s == pytest.approx(sum(event["stall_s"] for event in events), abs=1e-4)
    assert all(event["wrote_s"] > 0 for event in events)


def test_a_disk_that_fills_up_under_a_checkpoint_ends_the_run_and_leaves_what_was_there(tmp_path, monkeypatch, calm):
    """The failure of the writer's thread reaches the loop; the run goes on once there is room."""
    job, path = noisy_job(tmp_path), tmp_path / "run"
    real = type(path).open

    def open_on_full_disk(self, mode="r", **options):
        if str(self).endswith(".partial-step-00000012/train.pt"):
            return real(Path("/dev/full"), mode, buffering=0)
        return real(self, mode, **options)

    monkeypatch.setattr(type(path), "open", open_on_full_disk)
    with pytest.raises(RunFailed, match=r"step-00000012: the disk is full"):
        attempt(job, path)
    assert checkpoint_steps(path / "checkpoints") == [4, 8]
    assert sorted(each.name for each in (path / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
    monkeypatch.undo()
    attempt(job, path)
    assert outcome(path) == calm


def test_the_loop_goes_on_while_a_checkpoint_is_written_and_waits_only_for_the_one_before(tmp_path, monkeypatch):
    """At most one is in flight, and a later step must not change what is being written."""
    job, path = noisy_job(tmp_path), tmp_path / "run"
    steps_done, seen = [], []
    real = checkpoint_writer.CheckpointWriter._write

    def write(self, snapshot, *rest):
        while len(steps_done) < min(snapshot.step + 3, 20):  # three more steps are done before it writes
            pass
        seen.append(snapshot.step)
        real(self, snapshot, *rest)

    monkeypatch.setattr(checkpoint_writer.CheckpointWriter, "_write", write)
    with RunFolder.create(path, dump_job(job.config)) as folder:
        train(job, MemoryStreams(num_epochs=2), folder, lambda progress: steps_done.append(1))
    assert seen == [4, 8, 12, 16, 20]
    shutil.rmtree(path / "checkpoints/step-00000020")
    monkeypatch.undo()
    attempt(job, path)  # from 16, which was written three steps later


def test_a_run_whose_every_checkpoint_is_damaged_is_refused_with_each_reason_and_the_way_out_works(tmp_path, calm):
    job, path = noisy_job(tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        attempt(job, path, until=10)
    for step in (4, 8):
        (path / f"checkpoints/step-{step:08d}/state.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"step-00000008(.|\n)*step-00000004(.|\n)*move them out of .*checkpoints"):
        choose_checkpoint(path)
    for step in (4, 8):
        (path / f"checkpoints/step-{step:08d}").rename(tmp_path / f"moved-{step}")
    attempt(job, path)
    assert outcome(path) == calm


def test_a_resumed_run_has_the_counts_that_the_allowance_of_bad_samples_goes_on_from(tmp_path):
    """A run that has borne bad samples bears as many when it is resumed."""
    job, path = noisy_job(tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        attempt(job, path, until=11)
    resumed = choose_checkpoint(path)
    at = resumed.state["position"]
    with RunFolder.resume(path) as folder:
        for position in (0, 1, at - 1, at):
            folder.append_event("bad_sample", stream="train", index=position // 2, position=position)
    lines = [line for step, line in read_metrics(path).items() if step < resumed.step]
    num_samples = sum(line["num_samples"] for line in lines)
    start = stream_start(path, job, resumed, ())
    assert (start.num_delivered, start.bad.num, start.bad.num_met) == (num_samples, 2, 3)
    assert (start.told.num, start.told.num_met) == (3, 4)
