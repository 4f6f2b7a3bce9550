"""A resumed job that is not the run's: what may differ, what must not, and how that is told."""

import pytest

from pipeline.errors import ConfigError
from pipeline.job import JobConfig
from pipeline.resume_differences import job_differences, require_resumable

PLAIN = {
    "sources": {"photos": {"kind": "folder", "path": "/data/photos"}},
    "train": {"source": "photos", "chain": "strong.yaml", "epochs": 4},
}


def job(**fields):
    """`a__b=1` sets a.b."""
    plain = {name: dict(value) for name, value in PLAIN.items()}
    for path, value in fields.items():
        *above, name = path.split("__")
        section = plain
        for part in above:
            section[part] = dict(section.get(part, {}))
            section = section[part]
        section[name] = value
    return JobConfig.model_validate(plain)


def differences(num_epochs_begun=2, **fields):
    return job_differences(job(), job(**fields), num_epochs_begun=num_epochs_begun)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other"},
        {"workers": "auto"},
        {"min_workers": 2},
        {"max_workers": 9},
        {"window_batches": 3},
        {"window_nbytes": 1000},
        {"hang_s": 5.0},
        {"stall_timeout_s": 5.0},
        {"on_stall": "wait"},
        {"shape": "free"},
        {"checkpoint__keep": 9},
        {"checkpoint__keep_best": "held_out_loss"},
        {"slice_size": 3},
        {"max_bad_fraction": 0.5},
        {"sources__photos__path": "/mnt/photos"},
        {"sources__photos": {"kind": "folder", "path": "/mnt/photos"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_how_a_run_is_operated_may_change_freely(fields):
    (difference,) = differences(**fields)
    assert difference.verdict == "free"
    require_resumable([difference], "job.yaml", "runs/x", accept=False)


@pytest.mark.parametrize(
    "fields", [{"train__batch_size": 32}, {"train__epochs": 9}, {"train__epochs": 2}, {"train__chain": ["Blur"]}]
)
def test_what_holds_from_the_next_free_step_on_is_allowed_and_recorded(fields):
    (difference,) = differences(**fields)
    assert difference.verdict == "recorded"
    require_resumable([difference], "job.yaml", "runs/x", accept=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer__lr": 0.5},
        {"schedule__kind": "cosine"},
        {"clip__kind": "norm"},
        {"device": "cpu"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_changes_the_result_is_refused_with_both_sides_unless_it_is_accepted(fields):
    found = differences(**fields)
    with pytest.raises(ConfigError, match=r"as in runs/x/job\.yaml\n  got: .*\n  to go on: .*--accept-changes"):
        require_resumable(found, "job.yaml", "runs/x", accept=False)
    require_resumable(found, "job.yaml", "runs/x", accept=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"model__width": 64},
        {"train__shuffle": False},
        {"train__last_batch": "wrap"},
        {"optimizer__kind": "sgd"},
        {"train__epochs": 1},
        {"decode__depth": 16},
        {"decode__max_pixels": 1000},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_would_be_another_run_is_refused_though_it_is_accepted(fields):
    with pytest.raises(ConfigError, match="set it back"):
        require_resumable(differences(**fields), "job.yaml", "runs/x", accept=True)


def test_every_difference_is_told_at_once_with_both_sides():
    found = differences(seed=7, optimizer__lr=0.5, workers=5)
    with pytest.raises(ConfigError) as caught:
        require_resumable(found, "job.yaml", "runs/x", accept=False)
    assert [problem.path for problem in caught.value.problems] == ["seed", "optimizer.lr"]
    assert ["seed", "workers", "optimizer.lr"] == [difference.path for difference in found]
    assert "run:      2\n    this job: 5" in found[1].lines()


def test_equal_jobs_have_no_difference():
    assert differences() == []
