"""A job and its streams held in memory, for tests of the training loop: no process, no socket, no file but the run's.

In:  how many epochs of how many steps; the step to begin with.
Out: batches that a small model can learn from.
"""

from __future__ import annotations

import hashlib
import math
from itertools import islice
from pathlib import Path

import torch

from pipeline.config import dump_job
from pipeline.config_job import Job
from pipeline.job import JobConfig
from pipeline.recipe import BatchSpec, Chain, FieldSpec, Finish, Recipe
from pipeline.run_folder import RunFolder
from trainer.batch import Batch
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
    def __init__(self, num_epochs, steps_per_epoch, spec, poisoned_step, first_step):
        self.num_steps = num_epochs * steps_per_epoch
        self.spec = spec
        self.classes = tuple("abc")
        self.waited_s = 0.0
        self._shape = (num_epochs, steps_per_epoch)
        self._poisoned_step = poisoned_step
        self._first_step = first_step

    def __iter__(self):
        for batch in batches(*self._shape, seed=1):
            if batch.step < self._first_step:
                continue
            self.waited_s += 1e-6
            if batch.step == self._poisoned_step:
                batch.images[3] = math.nan
            yield batch


class MemoryStreams:
    worker_fingerprint = "some libraries"

    def __init__(self, num_epochs=4, steps_per_epoch=10, spec=SPEC, poisoned_step=None, first_step=0):
        self.train = MemoryTrainBatches(num_epochs, steps_per_epoch, spec, poisoned_step, first_step)
        self.fingerprints = {"digits": "ff" * 32}
        self.num_evaluations = 0

    def evaluate(self, step):
        self.num_evaluations += 1
        yield from batches(1, 6, seed=2)

    def look(self, num_batches):
        yield from islice(batches(1, 10, seed=1), num_batches)


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
