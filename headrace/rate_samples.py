"""What a learning-rate search looks at: a job's first samples, to train on and to be judged on.

In:  a job, how many workers, how many samples are wanted.
Out: both kinds of samples, in memory, and lines that say what they are.
The streams are this search's own, without a run folder; they and their services are gone when it has its samples.

Trained on: the job's train stream from its first batch on, under its first chain, for as many epochs as are needed.
Judged on: the same source's samples in the order of the first epoch, under the chain of the job's `eval` section, so
not augmented. A job without that section is judged on augmented samples, those of its train stream's first epoch.
The held-out source itself is not touched: a rate that was chosen on it would flatter every later evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headrace.embedded import open_streams
from pipeline.errors import ConfigError
from trainer.likeness import model_likeness
from trainer.rate_finding_samples import Samples, collect

if TYPE_CHECKING:
    from pipeline.config_job import Job

MAX_TRAINED_NBYTES = 512 << 20
"""Of samples to train on; where it holds fewer than the steps take, they are gone through again. Chosen."""
MAX_JUDGED_NBYTES = 256 << 20
MAX_JUDGED = 2048
"""Samples to be judged on: an accuracy over so many is known to about a percent."""

OnProgress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is to do)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSamples:
    """Both kinds."""

    trained: Samples
    judged: Samples
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    """Lines for the terminal that say what they are."""


def collect_samples(job: Job, num_workers: int, num_wanted: int, on_progress: OnProgress) -> SearchSamples:
    """ConfigError if a chain is refused, or the judged samples can't be shown to the model that is trained."""
    # Every epoch has at least one sample, so there are enough of them; none is made before it is asked for.
    longer = _changed(job, epochs=max(job.config.train.epochs, num_wanted))
    with open_streams(longer, num_workers) as streams:
        classes, num_in_source = streams.train.classes, streams.timeline.num_samples
        trained = collect(streams.train, num_wanted, MAX_TRAINED_NBYTES, _named(on_progress, "collecting samples"))
    source = job.config.train.source
    judging = _changed(job if job.eval is None else _under_eval_chain(job), epochs=1, last_batch="keep")
    with open_streams(judging, num_workers) as streams:
        judged = collect(
            streams.train, MAX_JUDGED, MAX_JUDGED_NBYTES, _named(on_progress, "collecting held-out samples")
        )
    if problems := model_likeness(job).problems(judging.train, judged.spec, trained.spec):
        raise ConfigError(problems)
    how = "under the eval chain" if job.eval is not None else "augmented: the job has no eval chain"
    notes = (
        f"trained on: {described(trained, source, num_in_source)}, under the train chain",
        f"judged on:  {described(judged, source, num_in_source)}, {how}",
    )
    return SearchSamples(trained=trained, judged=judged, classes=classes, notes=notes)


def described(samples: Samples, source: str, num_in_source: int) -> str:
    """How many of the source's samples these are, and how many images where a sample gave several."""
    num_distinct = len(set(samples.sample_ids_N.tolist()))
    which = f"all {num_distinct}" if num_distinct == num_in_source else f"{num_distinct} of the {num_in_source}"
    images = f"{len(samples)} images made of " if len(samples) > num_distinct else ""
    return f"{images}{which} samples of {source}"


def _under_eval_chain(job: Job) -> Job:
    assert job.eval is not None
    return replace(job, train=job.eval, train_file=job.eval_file)


def _changed(job: Job, **train: Any) -> Job:
    """The job with other settings of its train stream, no evaluation, and its first chain only."""
    section = job.config.train.model_copy(update=train)
    config = job.config.model_copy(update={"train": section, "eval": None})
    return replace(job, config=config, later=(), eval=None)


def _named(on_progress: OnProgress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(what, done, total)
