"""The loop and its checkpoint, on streams held in memory."""

import math

import msgspec
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.json_lines import read_lines
from pipeline.recipe import BatchSpec, FieldSpec, Finish
from tests.memory_streams import BATCH_SIZE, NUM_CLASSES, MemoryStreams, batches, make_job, run
from trainer.checkpoint import config_sha256, load_model, weights_sha256


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet"])
def test_a_run_learns_and_says_what_it_came_to(kind, tmp_path):
    job = make_job(tmp_path, model={"kind": kind, "width": 16, "depth": 1}, optimizer={"lr": 1e-2})
    seen = []
    summary = run(job, MemoryStreams(), tmp_path / "run", seen.append)
    assert (summary.num_steps, summary.num_samples, summary.skipped_steps) == (40, 40 * BATCH_SIZE, 0)
    assert summary.held_out_accuracy > 0.8
    assert summary.final_loss < math.log(NUM_CLASSES)
    assert summary.samples_per_s > 0
    assert 0 < summary.waited_fraction < 1
    assert summary.run_folder == tmp_path / "run"
    assert [progress.num_steps_done for progress in seen] == list(range(1, 41))
    assert seen[-1].num_steps == 40
    assert seen[9].maybe_evaluation is None
    assert seen[10].maybe_evaluation is not None


def test_equal_jobs_and_batches_give_equal_weights_whatever_torch_drew_before(tmp_path):
    digests = []
    for number in range(2):
        torch.rand(number)
        summary = run(make_job(tmp_path), MemoryStreams(), tmp_path / f"run{number}")
        digests.append(weights_sha256(load_model(summary.checkpoint)))
    other = run(make_job(tmp_path, seed=6), MemoryStreams(), tmp_path / "other")
    assert digests[0] == digests[1] != weights_sha256(load_model(other.checkpoint))


def test_how_often_a_run_is_judged_does_not_change_what_it_learns(tmp_path):
    summaries = [
        run(make_job(tmp_path, **fields), MemoryStreams(), tmp_path / name)
        for name, fields in {
            "often": {"every_steps": 3},
            "once": {"every_steps": 0},
            "never": {"has_eval": False},
        }.items()
    ]
    assert len({weights_sha256(load_model(summary.checkpoint)) for summary in summaries}) == 1
    assert summaries[2].held_out_accuracy is None


@pytest.mark.parametrize(
    ("every_steps", "steps"), [(0, [10, 20, 30, 40]), (15, [15, 30, 40]), (20, [20, 40]), (99, [40])]
)
def test_a_run_is_judged_every_so_many_steps_or_after_each_epoch_and_once_at_the_end(every_steps, steps, tmp_path):
    streams = MemoryStreams()
    run(make_job(tmp_path, every_steps=every_steps), streams, tmp_path / "run")
    events = read_lines(tmp_path / "run" / "journal.jsonl")
    assert [event["step"] for event in events if event["action"] == "evaluated"] == steps
    assert streams.num_evaluations == len(steps)


def test_every_step_has_a_line_with_its_batchs_coordinates_and_digest(tmp_path):
    run(make_job(tmp_path), MemoryStreams(), tmp_path / "run")
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    for line, batch in zip(lines, batches(4, 10, seed=1), strict=True):
        coordinates = {"step": batch.step, "position": batch.start, "epoch": batch.epoch}
        assert line.items() >= {**coordinates, "recipe": "abc", "digest": batch.digest, "skipped": False}.items()
        assert {"loss", "grad_norm", "lr"} <= line.keys()


def test_the_rate_of_each_step_is_the_schedules(tmp_path):
    job = make_job(tmp_path, schedule={"kind": "cosine", "warmup_steps": 4}, optimizer={"lr": 0.1})
    run(job, MemoryStreams(), tmp_path / "run")
    rates = [line["lr"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[-1] == pytest.approx(0.0)


def test_a_non_finite_batch_is_counted_and_written_down_and_the_run_goes_on(tmp_path):
    streams = MemoryStreams(poisoned_step=12)
    summary = run(make_job(tmp_path, model={"kind": "cnn", "width": 16, "depth": 1}), streams, tmp_path / "run")
    assert (summary.skipped_steps, summary.num_steps) == (1, 40)
    assert math.isfinite(summary.final_loss)
    line = read_lines(tmp_path / "run" / "metrics.jsonl")[12]
    assert (line["skipped"], line["loss"]) == (True, "nan")
    events = read_lines(tmp_path / "run" / "journal.jsonl")
    assert [event["step"] for event in events if event["action"] == "step_skipped"] == [12]
    assert all(tensor.isfinite().all() for tensor in load_model(summary.checkpoint).state_dict().values())


def test_the_final_model_comes_back_from_its_folder_alone(tmp_path):
    job = make_job(tmp_path, model={"kind": "cnn", "width": 8, "depth": 2, "activation": "gelu"})
    summary = run(job, MemoryStreams(), tmp_path / "run")
    model = load_model(str(summary.checkpoint))
    state = msgspec.json.decode((summary.checkpoint / "state.json").read_bytes())
    assert weights_sha256(model) == state["weights_sha256"]
    assert not model.training
    correct = sum((model(b.images).argmax(1) == b.labels).sum().item() for b in batches(1, 6, seed=2))
    assert correct / (6 * BATCH_SIZE) == summary.held_out_accuracy
    assert (state["step"], state["position"], state["epoch"]) == (40, 40 * BATCH_SIZE, 3)
    assert state["classes"] == ["a", "b", "c"]
    assert state["source_fingerprints"] == {"digits": "ff" * 32}
    assert state["config_sha256"] == config_sha256(job.config)
    assert state["files_sha256"].keys() == {"model.pt", "train.pt"}


def test_the_digest_of_weights_sees_values_names_and_shapes_and_not_memory_formats():
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3)
    digest = weights_sha256(model)
    assert weights_sha256(model.to(memory_format=torch.channels_last)) == digest
    assert weights_sha256(torch.nn.Sequential(model)) != digest
    with torch.no_grad():
        model.bias[0] += 1e-7
    assert weights_sha256(model) != digest


def test_an_interrupt_passes_through_and_the_steps_before_it_are_kept(tmp_path):
    def stop_at_seven(progress):
        if progress.num_steps_done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_job(tmp_path), MemoryStreams(), tmp_path / "run", stop_at_seven)
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 7
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("finish", "dtype", "got"),
    [
        (Finish(), "uint8", "uint8 NHWC"),
        (Finish(channels_first=True), "uint8", "uint8 NCHW"),
        (Finish(scale=(1.0,), shift=(0.0,)), "uint8", "float32 NHWC"),
    ],
)
def test_a_chain_whose_batches_no_model_can_take_is_refused_before_the_first_step(finish, dtype, got, tmp_path):
    spec = BatchSpec(fields=(FieldSpec(name="image", dtype=dtype, shape=(8, 8, 1)),), finish=finish)
    with pytest.raises(ConfigError, match=rf"chain\.yaml:4: chain\n.*\n  got:      {got}\n.*Normalize, ToTensorV2"):
        run(make_job(tmp_path), MemoryStreams(spec=spec), tmp_path / "run")


def test_images_that_are_float_on_the_wire_need_no_scale(tmp_path):
    spec = BatchSpec(
        fields=(FieldSpec(name="image", dtype="float32", shape=(8, 8, 1)),), finish=Finish(channels_first=True)
    )
    assert run(make_job(tmp_path), MemoryStreams(spec=spec), tmp_path / "run").num_steps == 40


def test_a_plateau_without_evaluations_is_refused(tmp_path):
    job = make_job(tmp_path, has_eval=False, schedule={"kind": "plateau"})
    with pytest.raises(ConfigError, match="an `eval` section"):
        run(job, MemoryStreams(), tmp_path / "run")
