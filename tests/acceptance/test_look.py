"""The look stream: the run's first batches for what looks at data before training, which then never notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.embedded import first_batches, open_streams
from pipeline.config import dump_job, load_job
from pipeline.run_folder import RunFolder
from pipeline.timeline import Timeline, TimelineEntry
from tests.processes import lines_of, write_job

CHAIN: list[Any] = ["HorizontalFlip", "Normalize", "ToTensorV2"]
NUM_LOOKED_AT = 7


def job_of(folder: Path, arrays: Path, **fields: Any) -> Path:
    """Five steps an epoch; from the second epoch on another chain, which a look never comes to."""
    for name, first in (("one", "HorizontalFlip"), ("other", "VerticalFlip")):
        (folder / f"{name}.yaml").write_text(f"- {first}\n- Normalize\n- ToTensorV2\n")
    schedule = [{"from_epoch": 0, "use": "one.yaml"}, {"from_epoch": 1, "use": "other.yaml"}]
    return write_job(
        folder,
        name="looked-at",
        sources={"arrays": {"kind": "arrays", "path": str(arrays)}},
        train={"source": "arrays", "chain": schedule, "batch_size": 20, "epochs": 2},
        **{"model": {"kind": "mlp", "width": 8, "depth": 1}, "device": "cpu", "torch_threads": 1, **fields},
    )


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_look_shows_the_first_batches_and_leaves_the_train_stream_as_it_is(
    tmp_path: Path, arrays: Path, num_workers: int
) -> None:
    """Before its first batch or amid it, cut short or not; the look stays with the first recipe."""
    job = load_job(job_of(tmp_path, arrays))
    with open_streams(job, num_workers) as streams:
        alone = [batch.digest for batch in streams.train]
    assert len(alone) == 10
    with RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder:
        with open_streams(job, num_workers, folder) as streams:
            looked = [(batch.step, batch.digest) for batch in streams.look(NUM_LOOKED_AT)]
            cut_short = streams.look(3)
            assert next(cut_short).digest == alone[0]
            cut_short.close()
            assert len(streams._opened) == 1, "only the train stream is open"
            trained = []
            for batch in streams.train:
                trained.append(batch.digest)
                if batch.step == 2:
                    assert [again.digest for again in streams.look(2)] == alone[:2]
        assert len(lines_of(folder.path / "timeline.jsonl")) == 1
    assert trained == alone
    assert [step for step, _ in looked] == list(range(NUM_LOOKED_AT))
    assert [digest for _, digest in looked][:5] == alone[:5]
    assert {digest for _, digest in looked[5:]}.isdisjoint(alone), "the second epoch's chain is another"


def test_the_first_batches_of_a_timeline_are_its_own_under_its_first_recipe() -> None:
    """Whatever becomes of an epoch's last batch; and never more than there are."""
    for last_batch in ("drop", "keep", "wrap"):
        for size in (4, 7, 10):
            first = TimelineEntry(start=0, step=0, recipe="a", batch_size=size)
            whole = Timeline([first], num_samples=10, last_batch=last_batch, end_position=30)
            later = TimelineEntry(start=20, step=whole.step_from(20), recipe="b", batch_size=3)
            both = Timeline([first, later], num_samples=10, last_batch=last_batch, end_position=30)
            for num_batches in range(whole.num_steps + 3):
                looked = first_batches(both, num_batches)
                expected = [whole.batch(step) for step in range(min(num_batches, whole.num_steps))]
                assert [looked.batch(step) for step in range(looked.num_steps)] == expected
