"""What a resumed run's job has otherwise than the run's own job.yaml, and whether the run can go on with it.

In:  two checked jobs' fields; the digests of their model factories' sources.
Out: `Difference`s with both sides; a ConfigError that lists those that can't be.
Pure. What a source or recipe is, is not judged here: fingerprints and digests do that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from pipeline.errors import ConfigError, Problem
from pipeline.job import JobConfig
from pipeline.located import describe

Verdict = Literal["free", "recorded", "refused", "never"]
"""`free`: how the run is operated, not what it makes. `recorded`: holds from the first step that was never done.
`refused`: only with --accept-changes. `never`: it would be another run."""

_RULES: tuple[tuple[str, Verdict, str], ...] = (
    ("name", "free", "a name"),
    ("workers", "free", "batches don't depend on how many make them"),
    ("min_workers", "free", "batches don't depend on how many make them"),
    ("max_workers", "free", "batches don't depend on how many make them"),
    ("slice_size", "free", "batches don't depend on how they are cut up"),
    ("window_*", "free", "batches don't depend on how many are in flight"),
    ("hang_s", "free", "a time limit"),
    ("stall_timeout_s", "free", "a time limit"),
    ("on_stall", "free", "what is done while nothing can be"),
    ("shape", "free", "what later swaps may do"),
    ("checkpoint.*", "free", "when the run is saved"),
    ("health.*", "free", "what is watched, and where it is told"),
    ("max_bad_fraction", "free", "a limit"),
    ("sources.*.path", "free", "where the samples lie; their fingerprint is compared"),
    ("sources.*.labels", "free", "where the labels lie; their fingerprint is compared"),
    ("plugins", "free", "where plug-ins lie; their digests are part of each recipe"),
    ("torch_threads", "free", "the result may differ in its last bits"),
    ("train.batch_size", "recorded", "from the first step that was never done"),
    ("train.chain", "recorded", "from the first step that was never done"),
    ("train.epochs", "recorded", "the run ends there"),
    ("eval.chain", "recorded", "evaluations from now on"),
    ("seed", "never", "it decides the order and every sample"),
    ("model.*", "never", "the weights are this model's"),
    ("train.source", "never", "positions are places in that source"),
    ("train.shuffle", "never", "positions are places in that order"),
    ("train.last_batch", "never", "positions are cut into batches by it"),
    ("decode.*", "never", "every recipe of the run is made of it"),
    ("optimizer.kind", "never", "what the optimizer has gathered is of that kind"),
)
"""The first pattern that fits a field's path decides; what no pattern fits is refused unless accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field that is not as it was."""

    path: str
    run: Any
    """As in the run's job.yaml; "(absent)" where it has no such field."""
    job: Any
    verdict: Verdict
    why: str
    place: str = "job.yaml"
    """Which file of the run's folder has its side."""

    def lines(self) -> str:
        """Both sides, and what comes of it."""
        outcome = {
            "free": "may change freely",
            "recorded": "allowed and recorded",
            "refused": "accepted (--accept-changes)",
            "never": "refused",
        }
        return (
            f"  {self.path}\n    run:      {describe(self.run)}\n    this job: {describe(self.job)}\n"
            f"    {outcome[self.verdict]}: {self.why}"
        )


def job_differences(run: JobConfig, job: JobConfig, *, num_epochs_begun: int) -> list[Difference]:
    """Every field in which the two differ, in the order of the job's fields."""
    found = []
    for path, old, new in _differing("", run.model_dump(mode="json"), job.model_dump(mode="json")):
        verdict, why = _verdict(path)
        if path == "train.epochs" and new < num_epochs_begun:
            verdict, why = "never", f"epoch {num_epochs_begun - 1} was begun already (epochs count from 0)"
        found.append(Difference(path=path, run=old, job=new, verdict=verdict, why=why))
    return found


def factory_difference(reference: str, run: str, job: str) -> list[Difference]:
    """None or one: the source of the model's factory, by its SHA-256; "" where it is not known."""
    if not run or not job or run == job:
        return []
    return [
        Difference(
            path=f"model.factory: source of {reference}",
            run=f"sha256 {run}",
            job=f"sha256 {job}",
            verdict="refused",
            why="the weights were trained as the model was then",
            place="journal.jsonl",
        )
    ]


def require_resumable(differences: Sequence[Difference], job_file: str, run_folder: str, *, accept: bool) -> None:
    """ConfigError with both sides of each difference that the run can't go on with."""
    problems = []
    for difference in differences:
        if difference.verdict == "never" or (difference.verdict == "refused" and not accept):
            way_out = f"set it back ({difference.why}), or begin a new run with --run-dir"
            if difference.verdict == "refused":
                way_out = "set it back, or take it over with --accept-changes, or begin a new run with --run-dir"
            problems.append(
                Problem(
                    file=job_file,
                    line=0,
                    path=difference.path,
                    expected=f"{describe(difference.run)}, as in {run_folder}/{difference.place}",
                    got=describe(difference.job),
                    way_out=way_out,
                )
            )
    if problems:
        raise ConfigError(problems)


def _verdict(path: str) -> tuple[Verdict, str]:
    for pattern, verdict, why in _RULES:
        if fnmatchcase(path, pattern):
            return verdict, why
    return "refused", "it changes what the run comes to"


def _differing(path: str, run: Any, job: Any) -> Iterator[tuple[str, Any, Any]]:
    if run == job:
        return
    is_leaf = path.endswith((".chain", "options"))  # the user's own values, to be shown whole
    if isinstance(run, Mapping) and isinstance(job, Mapping) and not is_leaf:
        for name in dict.fromkeys((*run, *job)):
            below = f"{path}.{name}" if path else name
            yield from _differing(below, run.get(name, "(absent)"), job.get(name, "(absent)"))
    else:
        yield path, run, job
