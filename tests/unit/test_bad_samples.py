"""The policies of a job's streams, as a run and its resumes open them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.bad_samples import BadSamples, StreamName
from pipeline.bad_count import BadCount, read_bad_counts
from pipeline.config import load_job
from pipeline.config_job import Job
from pipeline.errors import RunFailed
from pipeline.messages import Lost
from pipeline.plan import first_entries, open_job_source, plan_stream
from pipeline.quarantine import Quarantined
from pipeline.run_folder import RunFolder
from pipeline.slice_header import QUARANTINED, BadSample
from pipeline.stream_start import StreamStart
from trainer.policy import BadSamplePolicy

N = 40


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """40 samples in batches of 8, for five epochs."""
    np.savez(tmp_path / "arrays.npz", images=np.zeros((N, 4, 4, 3), np.uint8), labels=np.arange(N) % 2)
    section = {"source": "arrays", "chain": ["HorizontalFlip"], "batch_size": 8}
    job = {
        "sources": {"arrays": {"kind": "arrays", "path": "arrays.npz"}},
        "train": {**section, "epochs": 5},
        "eval": section,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    return load_job(tmp_path / "job.yaml")


def policy(bad_samples: BadSamples, job: Job, name: StreamName = "train", step: int = 0) -> BadSamplePolicy:
    source = open_job_source(job.config, str(job.path), 0, "arrays")
    of = "eval" if name == "eval" else "train"
    spec, timeline = plan_stream(job, of, source, "inproc://unused", first_entries(job, of, N))
    return bad_samples.policy(name, spec, source, timeline, step)


def bad(position: int, cause: str = "torn") -> BadSample:
    return BadSample(position=position, index=position, name=f"{position}.jpg", cause=cause, substitute=9)


def test_the_train_stream_of_a_resumed_run_goes_on_counting(job: Job) -> None:
    """Evaluations and looks are passes of their own; all that is met is told, by the look nothing."""
    count = BadCount()
    for index in (1, 2, 3, 1):
        count.meet(index, "arrays")
    bad_samples = BadSamples(job, None, StreamStart(head_step=6, num_delivered=48, bad=count, told=count))
    train = policy(bad_samples, job)
    assert (train.num_delivered, train.num_bad) == (48, 3)
    train.delivered(8, [bad(50)])
    for name in ("eval", "look"):
        other = policy(bad_samples, job, name)
        assert (other.num_delivered, other.num_bad) == (0, 0)
        other.delivered(8, [bad(3)])
    assert (train.num_bad, count.num) == (4, 3)
    assert (bad_samples.count.num, bad_samples.count.num_met) == (4, 6)


def test_a_resumed_run_counts_what_its_records_have_before_the_checkpoint(tmp_path: Path, job: Job) -> None:
    """Neither forgotten nor counted twice: what arrived ahead of it arrives again. Both streams have one source."""
    with RunFolder.create(tmp_path / "run", "") as folder:
        bad_samples = BadSamples(job, folder, StreamStart(quarantined={"train": [Quarantined(6, 1)]}))
        train, evaluation = policy(bad_samples, job), policy(bad_samples, job, "eval", 5)
        substitute = BadSample(position=2, index=30, name="30.jpg", cause="torn", substitute=9)
        train.delivered(8, [bad(2), substitute, bad(4)])
        train.lost([Lost(position=5, attempt=0, cause="I/O error"), Lost(position=6, attempt=1, cause="I/O error")])
        train.delivered(8, [msgspec.structs.replace(bad(42), index=2), bad(39), bad(41)])
        evaluation.delivered(8, [bad(4), bad(7)])
        before, told = read_bad_counts(folder.path, 40)
    assert (train.num_bad, before.num, before.num_met) == (5, 4, 4)
    assert (told.num, told.num_met) == (bad_samples.count.num, bad_samples.count.num_met) == (8, 10)


def test_a_sample_of_the_evaluation_counts_in_the_pass_that_lost_it(job: Job) -> None:
    """Also where that pass is done again; later passes only meet it."""
    start = StreamStart(quarantined={"eval": [Quarantined(3, 1, 5), Quarantined(4, 1, 10)]})
    made = policy(BadSamples(job, None, start), job, "eval", 10)
    made.delivered(8, [bad(3, QUARANTINED), bad(4, QUARANTINED)])
    assert made.num_bad == 1


@pytest.mark.parametrize(("position", "step"), [(32, 4), (39, 4), (55, 6), (56, None), (57, None)])
def test_what_an_earlier_attempt_trained_on_is_not_quarantined(position: int, step: int | None, job: Job) -> None:
    """Resumed before step 4, of a run that had done step 6."""
    bad_samples = BadSamples(job, None, StreamStart(head_step=4, free_from_step=7))
    made = policy(bad_samples, job)
    lost = [Lost(position=position, attempt=0, cause="I/O error")]
    if step is None:
        made.lost(lost)
        assert made.quarantined == {position: 1}
    else:
        with pytest.raises(RunFailed, match=f"step {step} can't be done again"):
            made.lost(lost)
        assert made.quarantined == {}
        evaluation = policy(bad_samples, job, "eval")
        evaluation.lost([Lost(position=39, attempt=0, cause="I/O error")])
        assert evaluation.quarantined == {39: 1}
