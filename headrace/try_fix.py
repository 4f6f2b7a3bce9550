"""`headrace train --try-fix`: the job's first steps, as it is and with the recommended settings, side by side.

In:  a job file and its overrides, how many steps.
Out: a table on the terminal; the options that make the job the better one, if it is.
Trains nothing for real: no run folder, no checkpoint; the run that follows begins as if this had not been.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pipeline.config import load_job
from pipeline.errors import ConfigError, Problem
from pipeline.job import initial_workers

if TYPE_CHECKING:
    from headrace.embedded import Streams
    from pipeline.config_job import Job
    from trainer.lint_trial import Trial

DEFAULT_STEPS = 30
"""Enough for a loss to begin to fall, and for three looks at each layer; chosen."""
LOWER = 0.95
"""A loss below this share of another's, or of a guess's, is lower: means of a few batches differ by less. Chosen."""
MAX_SLOWER = 2
"""Times that B's own learning rate is lowered: a factor taken from ruined steps may fall short once. Chosen."""
LOUD = 1.5
"""Times a guess's loss: LOSS0's own first threshold."""
SPIKY = 5.0
"""A norm so many times the median is one that clipping is for."""


def require_try_alone(is_tried: bool, needing: Mapping[str, object], without: Mapping[str, object]) -> None:
    """ConfigError for options that mean nothing together: those that need --try-fix, and those that save a run."""
    wrong = [(option, "--try-fix beside it", "none") for option, value in needing.items() if value and not is_tried]
    wrong += [
        (option, "a training that is saved", "--try-fix") for option, value in without.items() if value and is_tried
    ]
    problems = [
        Problem(file="command line", line=0, path=option, expected=expected, got=got, way_out="leave one of them out")
        if got != "none"
        else Problem(file="command line", line=0, path=option, expected=expected, got=got, way_out="add --try-fix")
        for option, expected, got in wrong
    ]
    if problems:
        raise ConfigError(problems)


def try_fix(path: Path, overrides: Sequence[str], *, num_steps: int, connect: str | None, console: Console) -> None:
    """Prints both trainings of the run's first `num_steps` batches, and how to have the second one, if it is better.

    ConfigError for a wrong job.
    """
    from headrace.embedded import open_streams
    from trainer.trainable import require_trainable

    job = load_job(path, overrides)
    num_workers, automatic = initial_workers(job.config)
    with open_streams(job, num_workers, connect=connect, automatic=automatic) as streams:
        require_trainable(job, streams.train.spec, streams.train.classes)
        if streams.train.num_steps == 0:
            raise _no_batches(job)
        _say(console, f"A: {num_steps} steps of the job as it is ...")
        present = _run(job, streams, num_steps)
        better = recommended(job, present)
        if not better:
            print_trials([present], console)
            _say(console, "There is nothing to recommend: initial weights are `auto` already, and nothing was found.")
            return
        _say(console, f"B: the same {num_steps} batches with {', '.join(better)} ...")
        other = _run(load_job(path, [*overrides, *better]), streams, num_steps)
        for _ in range(MAX_SLOWER):
            slower = _rate(load_job(path, [*overrides, *better]), other)
            if not slower:
                break
            better = _joined(better, slower)
            _say(console, f"B again, whose steps were too large: with {', '.join(better)} ...")
            other = _run(load_job(path, [*overrides, *better]), streams, num_steps)
    print_trials([present, other], console)
    print_findings(present, console)
    _say(console, *conclusion(present, other))
    if not is_to_take(present, other):
        return
    _say(console, "To train B:")
    options = [part for one in _joined(overrides, better) for part in ("--set", one)]
    options += ["--connect", connect] if connect else []
    _say(console, f"  {shlex.join(['headrace', 'train', str(path), *options])}")


def _joined(overrides: Sequence[str], newer: Sequence[str]) -> tuple[str, ...]:
    """Each setting once, as the last one has it."""
    names = {one.partition("=")[0] for one in newer}
    return (*(one for one in overrides if one.partition("=")[0] not in names), *newer)


def recommended(job: Job, present: Trial) -> tuple[str, ...]:
    """Overrides by what lint and the first steps have shown; empty if the job has all of it already.

    Where nothing is wrong, `init: auto` is what to compare with.
    """
    overrides = list(present.lint.overrides)
    model = job.config.model
    if not overrides and model.init.law != "auto":
        overrides.append("model.init=auto")
    overrides = [one for one in overrides if one != "model.init=auto" or model.init.law != "auto"]
    is_changed = bool(present.lint.overrides)
    rate = () if is_changed else _rate(job, present)  # of other weights, the same step is another share
    return (*overrides, *rate, *_clip(job, present, is_changed=is_changed))


def _rate(job: Job, trial: Trial) -> tuple[str, ...]:
    """The learning rate that the verdict on too large steps asks for, a tenth where the loss ended as no number; empty
    if neither is so."""
    from trainer.health.rules_layer import GOOD_RATIO

    if math.isfinite(trial.first_loss) and not math.isfinite(trial.results[-1].loss):
        return (f"optimizer.lr={job.config.optimizer.lr / 10:.3g}",)
    for one in trial.verdicts:
        if (one.id, one.kind) == ("UPDATE_RATIO", "large"):
            factor = GOOD_RATIO / float(one.evidence["update/weight"])
            return (f"optimizer.lr={job.config.optimizer.lr * factor:.3g}",)
    return ()


def _clip(job: Job, present: Trial, *, is_changed: bool) -> tuple[str, ...]:
    """Clipping is for gradients that explode. Where the weights change, their norms do: `auto` then finds its bound."""
    from trainer.health.rules_step import LARGEST_CLIP

    clip, norms = job.config.clip, sorted(present.norms)
    if clip.kind == "auto" or clip.groups or not norms:
        return ("clip.kind=auto",) if not norms and clip.kind == "none" else ()
    names = {finding.id for finding in present.lint.warnings} | {verdict.id for verdict in present.verdicts}
    median = norms[len(norms) // 2]
    is_exploding = bool(names & {"EXPLODE", "EXPLODE_FWD", "NONFINITE"}) or norms[-1] > SPIKY * median > 0.0
    if clip.kind == "none" and is_exploding:
        is_auto = is_changed or present.p90 >= LARGEST_CLIP
        return ("clip.kind=auto",) if is_auto else ("clip.kind=norm", f"clip.threshold={present.p90:.3g}")
    is_throttled = present.num_clipped > 0.9 * len(present.results) and median > SPIKY * clip.threshold
    if clip.kind == "norm" and is_throttled and not is_changed:
        return (f"clip.threshold={present.p90:.3g}",)
    return ()


def print_trials(trials: Sequence[Trial], console: Console) -> None:
    """A row a quantity, a column a training; below it what the rows mean. At 80 columns no row's name is broken."""
    steps = len(trials[0].results)
    table = Table(title=f"The run's first {steps} steps; nothing was saved", title_justify="left")
    table.add_column("", no_wrap=True)
    for letter, _ in zip("AB", trials, strict=False):
        table.add_column(letter, overflow="fold")
    rows: list[tuple[str, Callable[[Trial], str]]] = [
        ("settings", lambda one: one.settings.replace(", ", "\n")),
        ("forward", lambda one: _slopes(one.first.forward, one.last.forward, one.lint.predicted.forward)),
        ("backward", lambda one: _slopes(one.first.backward, one.last.backward, one.lint.predicted.backward)),
        ("loss", lambda one: f"{_number(one.first_loss)}, {_number(one.last_loss)}"),
        ("gradient norm", _norms),
        ("clipped, skipped", lambda one: f"{one.num_clipped}, {one.num_skipped}"),
        ("update", lambda one: _number(one.update_ratio)),
        ("lint", lambda one: _titles([finding.title for finding in one.lint.warnings])),
        ("verdicts", lambda one: _titles([f"{each.severity.name} {each.id}" for each in one.verdicts])),
    ]
    for name, value in rows:
        table.add_row(name, *(value(one) for one in trials))
    console.print(table)
    _say(console, *(_wrapped(line, console.width, " " * 18) for line in _legend(trials[0])))


def _legend(one: Trial) -> Iterator[str]:
    guess = f" (a guess has {_number(one.lint.guess)})" if math.isfinite(one.lint.guess) else ""
    meanings = {
        "forward": "decades a layer towards the output: at the first step, at the last; in brackets as foretold "
        "from the weights",
        "backward": "the same of the gradient, towards the input",
        "loss": f"of the first step, mean of the last 5{guess}",
        "gradient norm": "before clipping: at the first step, at the last; its 90th percentile",
        "clipped, skipped": "steps",
        "update": "of a weight in the last step, in shares of itself; median over the layers",
        "lint": "found before the first step",
        "verdicts": "open after the last",
    }
    for name, meaning in meanings.items():
        yield f"{name:<16}  {meaning}"


def print_findings(present: Trial, console: Console) -> None:
    """What stands behind lint's row of the table: where, by which numbers, and what to do."""
    if present.lint.warnings:
        _say(console, "What lint found in A:")
        _say(console, *(_wrapped(line, console.width, " " * 14) for line in present.lint.warning_lines()))


def conclusion(present: Trial, other: Trial) -> tuple[str, ...]:
    """What the numbers say, in words: of the losses, and of what lint finds."""
    lines = [f"In these steps {_course('A', present)}, and {_course('B', other)}."]
    guessing = [name for name, one in (("A", present), ("B", other)) if _is_guessing(one)]
    if guessing:
        text = f"No better than a guess (a loss of {_number(present.lint.guess)}) by then: {' and '.join(guessing)}."
        lines.append(text)
    if gone := _found(present) - _found(other):
        lines.append(f"With B's settings lint no longer finds: {', '.join(sorted(gone))}.")
    if left := [one.title for one in other.lint.warnings]:
        lines.append(f"B still has: {', '.join(left)}; no setting of model.init, model.activation or clip cures that.")
    if not is_to_take(present, other):
        lines.append("B is no better than A, by these steps: not worth taking. --try-steps takes more of them.")
    elif not _has_lower_loss(present, other):
        lines.append("So few steps of losses don't decide; by what lint finds, B is the one that can learn.")
    return tuple(lines)


def is_to_take(present: Trial, other: Trial) -> bool:
    """B ends with a loss lower than by chance; or A has learned nothing, and B has no longer what keeps it from it."""
    if _has_lower_loss(present, other):
        return True
    is_quiet = other.last_loss < LOUD * other.lint.guess
    return _is_guessing(present) and is_quiet and _found(other) < _found(present)


def _has_lower_loss(present: Trial, other: Trial) -> bool:
    is_lost = math.isfinite(other.last_loss) and not math.isfinite(present.last_loss)
    return is_lost or other.last_loss < LOWER * present.last_loss


def _is_guessing(one: Trial) -> bool:
    """False where nobody knows what a guess has."""
    return one.last_loss > LOWER * one.lint.guess


def _found(one: Trial) -> set[str]:
    return {finding.title for finding in one.lint.warnings}


def _course(name: str, one: Trial) -> str:
    """Such as `A's loss fell by 0.277 to 1.1`."""
    fall = one.first_loss - one.last_loss
    if not math.isfinite(fall):
        return f"{name}'s loss did not stay finite"
    return f"{name}'s loss {'fell' if fall >= 0.0 else 'rose'} by {abs(fall):.3g} to {_number(one.last_loss)}"


def _run(job: Job, streams: Streams, num_steps: int) -> Trial:
    from trainer.lint_trial import run_trial

    train = streams.train
    return run_trial(
        job,
        streams.look(num_steps),
        spec=train.spec,
        num_classes=len(train.classes),
        num_planned_steps=train.num_steps,
    )


def _no_batches(job: Job) -> ConfigError:
    return ConfigError(
        Problem(file=str(job.path), line=0, path="train", expected="at least one batch to try", got="none")
    )


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _wrapped(line: str, width: int, indent: str) -> str:
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _slopes(first: float, last: float, foretold: float) -> str:
    if not math.isfinite(first):
        return "too few layers in a row"
    brackets = f" ({foretold:+.2f})" if math.isfinite(foretold) else ""
    return f"{first:+.2f}, {last:+.2f}{brackets}" if math.isfinite(last) else f"{first:+.2f}, none{brackets}"


def _norms(one: Trial) -> str:
    return f"{_number(one.results[0].grad_norm)}, {_number(one.results[-1].grad_norm)}; {_number(one.p90)}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _titles(titles: Sequence[str]) -> str:
    return "\n".join(dict.fromkeys(titles)) or "none"
