"""The loop and its checkpoint, on streams held in memory."""

import hashlib
import math
from pathlib import Path

import msgspec
import pytest
import torch

from pipeline.config import dump_job
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.job import JobConfig
from pipeline.json_lines import read_lines
from pipeline.recipe import BatchSpec, Chain, FieldSpec, Finish, Recipe
from pipeline.run_folder import RunFolder
from trainer.batch import Batch
from trainer.checkpoint import config_sha256, load_model, weights_sha256
from trainer.loop import train

NUM_CLASSES = 3
BATCH_SIZE = 16
IMAGE = FieldSpec(name="image", dtype="uint8", shape=(8, 8, 1))
SPEC = BatchSpec(fields=(IMAGE,), finish=Finish(scale=(1.0,), shift=(0.0,), channels_first=True))


def batches(num_epochs, steps_per_epoch, seed):
    """A class is a level of brightness under noise, so there is something to learn, for each kind of model."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(num_epochs * steps_per_epoch):
        labels = torch.randint(0, NUM_CLASSES, (BATCH_SIZE,), generator=generator)
        images = torch.randn(BATCH_SIZE, 1, 8, 8, generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image += label - 1
        yield Batch(
            step=step,
            epoch=step // steps_per_epoch,
            start=step * BATCH_SIZE,
            stop=(step + 1) * BATCH_SIZE,
            recipe="abc",
            digest=hashlib.sha256(str(step).encode()).hexdigest(),
            images=images,
            labels=labels,
            sample_ids=torch.arange(BATCH_SIZE),
        )


class MemoryTrainBatches:
    def __init__(self, num_epochs, steps_per_epoch, spec, poisoned_step):
        self.num_steps = num_epochs * steps_per_epoch
        self.spec = spec
        self.classes = tuple("abc")
        self.waited_s = 0.0
        self._shape = (num_epochs, steps_per_epoch)
        self._poisoned_step = poisoned_step

    def __iter__(self):
        for batch in batches(*self._shape, seed=1):
            self.waited_s += 1e-6
            if batch.step == self._poisoned_step:
                batch.images[3] = math.nan
            yield batch


class MemoryStreams:
    def __init__(self, num_epochs=4, steps_per_epoch=10, spec=SPEC, poisoned_step=None):
        self.train = MemoryTrainBatches(num_epochs, steps_per_epoch, spec, poisoned_step)
        self.fingerprints = {"digits": "ff" * 32}
        self.num_evaluations = 0

    def evaluate(self):
        self.num_evaluations += 1
        yield from batches(1, 6, seed=2)


def make_job(folder: Path, *, has_eval=True, **fields) -> Job:
    stream = {"source": "digits", "chain": []}
    eval_fields = {"eval": {**stream, "every_steps": fields.pop("every_steps", 0)}} if has_eval else {}
    config = JobConfig.model_validate(
        {
            "seed": 5,
            "sources": {"digits": {"kind": "digits"}},
            "train": {**stream, "epochs": 4},
            **eval_fields,
            **fields,
        }
    )
    chain = Chain(file="chain.yaml", nodes=(), line=4)
    return Job(path=folder / "job.yaml", config=config, train=Recipe(chain=chain), eval=Recipe(chain=chain))


def run(job, streams, path, on_progress=lambda progress: None):
    with RunFolder.create(path, dump_job(job.config)) as folder:
        return train(job, streams, folder, on_progress)


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
    assert state["files_sha256"].keys() == {"model.pt"}


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
