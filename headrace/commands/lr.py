"""`headrace lr JOB.yaml`: finds a learning rate, and says why that one.

In:  a job file; maybe the bounds of the range test, the number of folds, the candidates.
Out: a table of candidates with mean and standard deviation over the folds; the recommended one with its reason, and
     the `--set` that takes it; a picture, written over an earlier one of that name; maybe a JSON file.
Never touches a run folder. Equal jobs and options print equal numbers, whatever the number of workers (for equal
numbers of torch threads).

Two parts. A range test (trainer/rate_finding.py) finds which rates are worth a trial. K-fold cross-validation
(trainer/rate_finding_folds.py) compares them: each sample belongs to the fold that a hash of its id says, so that no
augmented copy of a sample that a model is judged on was trained on. headrace/rate_samples.py says which samples.
"""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import ConfigError, Problem, RunFailed
from pipeline.extras import REPORT, TRAINER, WORKERS, require_extras

if TYPE_CHECKING:
    from headrace.rate_samples import OnProgress
    from pipeline.config_job import Job
    from trainer.rate_finding import Marks, RangeTest
    from trainer.rate_finding_folds import Recommendation, Score
    from trainer.rate_finding_picture import Search
    from trainer.rate_finding_trials import Trials

_LARGEST_RATE = 1e6
"""Nobody means a larger one."""
_MAX_FURTHER = 3
"""Rates that are tried beyond the candidates, while the recommended one has no neighbour on one side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What was asked for, checked."""

    lr_min: float
    lr_max: float
    range_steps: int
    folds: int
    steps: int
    candidates: tuple[float, ...]
    """Empty: those that the range test suggests."""

    def num_samples(self, batch_size: int) -> int:
        """So many that neither part sees one twice, if the memory holds them."""
        trained_share = (self.folds - 1) / self.folds
        return batch_size * max(self.range_steps, math.ceil(self.steps / trained_share) + 1)


def lr(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    lr_min: Annotated[float, typer.Option(help="Where the range test begins.")] = 1e-6,
    lr_max: Annotated[float, typer.Option(help="Where it ends, unless the loss diverges before.")] = 10.0,
    range_steps: Annotated[int, typer.Option(min=20, help="Steps of the range test.")] = 150,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation, from 2.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training in it.")] = 60,
    candidates: Annotated[
        str, typer.Option(metavar="LR,LR,...", help="Rates to compare; those the range test suggests if not given.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="The picture; lr-NAME.png if not given.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; the job's number if not given.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field, as in optimizer.kind=sgd.")] = None,
) -> None:
    """Find a learning rate: a range test, then k-fold cross-validation of what it suggests."""
    from pipeline.config import load_job

    loaded = load_job(job, set_ or [])
    picture = out or Path(f"lr-{loaded.config.name}.png")
    plan = _checked(lr_min, lr_max, folds, candidates, range_steps=range_steps, steps=steps, files=(picture, json))
    console = Console()
    search = _search(loaded, plan, workers, console)
    from trainer.figures import write_png
    from trainer.rate_finding_picture import as_plain, draw

    write_png(draw(search), picture)
    console.print(f"wrote {picture}", soft_wrap=True, highlight=False, markup=False)
    if json is not None:
        json.write_text(json_module.dumps(as_plain(search), indent=1, allow_nan=False) + "\n")
    if search.maybe_recommendation is None:
        raise RunFailed(search.why_none)
    _tell(search.maybe_recommendation, console)


def _search(job: Job, plan: _Plan, workers: int | None, console: Console) -> Search:
    """Prints what each part found as soon as it is known."""
    from headrace.rate_samples import collect_samples
    from pipeline.job import initial_workers
    from trainer.rate_finding import candidate_rates, exponential_rates, marks_of
    from trainer.rate_finding_folds import recommend, why_none
    from trainer.rate_finding_picture import Search
    from trainer.rate_finding_trials import Trials

    num_workers = initial_workers(job.config)[0] if workers is None else workers
    num_wanted = plan.num_samples(job.config.train.batch_size)
    with _progress(console) as on_progress:
        samples = collect_samples(job, num_workers, num_wanted, on_progress)
        for note in (*samples.notes, *_schedule_note(job)):
            console.print(note, highlight=False, markup=False)
        trials = Trials(job, samples.trained, samples.judged, samples.classes)
        trials.require_folds(plan.folds)
        rates = exponential_rates(plan.lr_min, plan.lr_max, plan.range_steps)
        test = trials.range_test(rates, _counter(on_progress, "range test", plan.range_steps))
        if not test.losses:
            raise RunFailed(
                f"the loss is not finite at {plan.lr_min:g} already: is it the data, or the initial weights?"
            )
        marks = marks_of(test)
        console.print(_range_table(test, marks, plan))
        own_lr = job.config.optimizer.lr
        scores = _scores(trials, plan, plan.candidates or candidate_rates(marks, own_lr), samples.classes, on_progress)
    maybe_recommendation = recommend(scores, len(samples.classes))
    console.print(_score_table(scores, maybe_recommendation, own_lr, plan))
    return Search(
        job=job.config.name,
        own_lr=own_lr,
        test=test,
        marks=marks,
        scores=scores,
        maybe_recommendation=maybe_recommendation,
        why_none="" if maybe_recommendation else why_none(scores, len(samples.classes)),
    )


def _scores(
    trials: Trials, plan: _Plan, candidates: tuple[float, ...], classes: tuple[str, ...], on_progress: OnProgress
) -> tuple[Score, ...]:
    """Of the candidates, and of further rates until the leading one lies between two others; by rising rate."""
    from trainer.rate_finding import further_rate
    from trainer.rate_finding_folds import leading_rate

    def score(rate: float) -> Score:
        count = _counter(on_progress, f"{plan.folds} folds at {rate:g}", plan.folds * plan.steps)
        return trials.score(rate, plan.folds, plan.steps, count)

    scores = [score(rate) for rate in candidates]
    # Whoever names candidates wants these; the others want to know which rate is good.
    for _ in range(0 if plan.candidates else _MAX_FURTHER):
        further = further_rate([score.lr for score in scores], leading_rate(scores, len(classes)))
        if further is None:
            break
        scores.append(score(further))
    return tuple(sorted(scores, key=lambda score: score.lr))


def _schedule_note(job: Job) -> tuple[str, ...]:
    """Rates are constant here, as the table says."""
    schedule = job.config.schedule
    parts: list[str] = [schedule.kind] if schedule.kind != "constant" else []
    parts += [f"{schedule.warmup_steps} steps of warm-up"] if schedule.warmup_steps else []
    return (f"left out:   the job's schedule ({', '.join(parts)})",) if parts else ()


def _checked(
    lr_min: float,
    lr_max: float,
    folds: int,
    candidates: str,
    *,
    range_steps: int,
    steps: int,
    files: tuple[Path | None, ...],
) -> _Plan:
    """ConfigError with everything that is wrong with the options, before anything is started."""
    problems = []
    if not 0.0 < lr_min < lr_max <= _LARGEST_RATE:
        expected = f"0 < --lr-min < --lr-max <= {_LARGEST_RATE:g}"
        problems.append(_problem("--lr-min, --lr-max", expected, f"{lr_min:g} and {lr_max:g}", "raise --lr-max"))
    if folds < 2:
        problems.append(_problem("--folds", "at least 2: one to be judged on, the rest to train on", str(folds)))
    rates = []
    for text in candidates.split(",") if candidates else []:
        try:
            rates.append(float(text))
        except ValueError:
            rates.append(math.nan)
        if not 0.0 < rates[-1] <= _LARGEST_RATE:
            way_out = "write them as 1e-3,3e-3,1e-2"
            expected = f"rates above 0 and at most {_LARGEST_RATE:g}, separated by commas"
            problems.append(_problem("--candidates", expected, repr(text), way_out))
    problems += [
        _problem(str(file), "a folder that exists", str(file.absolute().parent), "make it first")
        for file in files
        if file is not None and not file.absolute().parent.is_dir()
    ]
    require_extras("headrace lr", WORKERS, TRAINER, REPORT)
    if problems:
        raise ConfigError(problems)
    tried = tuple(sorted(set(rates)))
    return _Plan(lr_min=lr_min, lr_max=lr_max, range_steps=range_steps, folds=folds, steps=steps, candidates=tried)


def _range_table(test: RangeTest, marks: Marks, plan: _Plan) -> Table:
    title = f"Range test, {len(test.lrs)} steps from {plan.lr_min:g} to {test.lrs[-1]:.2g}"
    table = Table(title=title, title_justify="left")
    for column in ("the loss", "learning rate", "smoothed loss"):
        table.add_column(column)
    if marks.maybe_steepest_lr is None:
        table.add_row("falls fastest", "nowhere by more than its noise", "")
    else:
        table.add_row("falls fastest", f"{marks.maybe_steepest_lr:.2g}", f"{_near(test, marks.maybe_steepest_lr):.3f}")
    table.add_row("is lowest", f"{marks.lowest_lr:.2g}", f"{_near(test, marks.lowest_lr):.3f}")
    edges = {"rises again": "rises again", "diverged": "has diverged", "not finite": "is not finite"}
    if (edge := edges.get(marks.edge)) is not None:
        loss = "" if marks.edge == "not finite" else f"{_near(test, marks.edge_lr):.3f}"
        table.add_row(edge, f"{marks.edge_lr:.2g}", loss)
    below = marks.below_edge_lr
    table.add_row("a decade below that", f"{below:.2g}", f"{_near(test, below):.3f}" if below >= plan.lr_min else "")
    return table


def _near(test: RangeTest, rate: float) -> float:
    place = min(range(len(test.lrs)), key=lambda step: abs(math.log(test.lrs[step] / rate)))
    return test.smoothed[place]


def _score_table(
    scores: tuple[Score, ...], maybe_recommendation: Recommendation | None, own_lr: float, plan: _Plan
) -> Table:
    title = f"Cross-validation, {plan.folds} folds, {plan.steps} steps at a constant rate: mean ± std"
    table = Table(title=title, title_justify="left")
    table.add_column("lr", justify="right", no_wrap=True)
    for column in ("held-out loss", "accuracy"):
        table.add_column(column, no_wrap=True)
    table.add_column("")
    for score in scores:
        notes = []
        if maybe_recommendation is not None:
            notes += ["recommended"] if score is maybe_recommendation.chosen else []
            notes += ["lowest loss"] if score is maybe_recommendation.best else []
        notes += ["the job's"] if math.isclose(score.lr, own_lr, rel_tol=1e-9) else []
        if score.num_diverged:
            loss, accuracy = "inf", ""
            notes.insert(0, f"diverged in {score.num_diverged} of {plan.folds}")
        else:
            loss = f"{score.mean_loss:.4f} ± {score.std_loss:.4f}"
            accuracy = f"{100 * score.mean_accuracy:.1f} ± {100 * score.std_accuracy:.1f} %"
        style = "bold" if "recommended" in notes else None
        table.add_row(f"{score.lr:g}", loss, accuracy, ", ".join(notes), style=style)
    return table


def _tell(found: Recommendation, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    say(f"Recommended: {found.reason}.")
    for doubt in found.doubts:
        say(f"But: {doubt}.")
    say(f"  --set optimizer.lr={found.chosen.lr:g}")


@contextmanager
def _progress(console: Console) -> Iterator[OnProgress]:
    """A bar while it lasts, on a terminal; nothing elsewhere."""
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update


def _counter(on_progress: OnProgress, what: str, total: int) -> Callable[[], None]:
    num_done = 0

    def count() -> None:
        nonlocal num_done
        num_done += 1
        on_progress(what, num_done, total)

    return count


def _problem(path: str, expected: str, got: str, way_out: str = "") -> Problem:
    return Problem(file="command line", line=0, path=path, expected=expected, got=got, way_out=way_out)
