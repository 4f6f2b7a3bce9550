"""Whether a study's claims hold: decided by counting pairs of runs, never by what anybody expects.

In:  the study's fields, the records of its runs.
Out: for each claim a `Judgement`: its pairs, the numbers, the verdict and the rule that gave it.
No torch, no pictures, no text that is not made of the numbers.

A pair is two runs with equal seeds and equal settings on every axis but the claim's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from pipeline.study import ClaimSection, StudyConfig
from trainer.study_records import Depth, Judged, RunRecord

Answer = Literal["holds", "does not hold", "mixed", "not tested"]

HOLDS_FROM = 0.9
"""Share of pairs that must be cured for `holds`; a tenth may be accidents of a seed."""
FAILS_BELOW = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same run without and with the remedy."""

    before: RunRecord
    after: RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What became of a claim."""

    claim: ClaimSection
    answer: Answer
    rule: str
    """How the answer follows from the numbers."""
    finding: str
    """The numbers, as a sentence."""
    pairs: tuple[Pair, ...]
    """Those that count: where there was something to cure."""
    num_compared: int
    """All pairs of the claim."""


def judge(study: StudyConfig, claim: ClaimSection, records: Sequence[RunRecord], chance_loss: float) -> Judgement:
    """The claim's answer; `not tested` where no pair had anything to cure."""
    pairs = list(pairs_of(claim, records))
    if claim.kind == "cures_vanishing":
        words = _vanishing_words(study, claim)
        return _cured(claim, pairs, lambda run: has_vanished(run, study, claim.at), words)
    if claim.kind == "cures_explosion":
        return _cured(claim, pairs, lambda run: has_blown_up(run, study, chance_loss), _explosion_words(study))
    return _generalises(study, claim, pairs)


def pairs_of(claim: ClaimSection, records: Sequence[RunRecord]) -> Iterator[Pair]:
    """Every pair of the claim, in the order of the records without the remedy."""
    by_place = {(_place(run), run.seed): run for run in records}
    for run in records:
        if run.cell[claim.axis] != claim.before:
            continue
        if any(run.cell[axis] not in names for axis, names in claim.where.items()):
            continue
        for name in claim.after:
            partner = by_place.get((_place(run, **{claim.axis: name}), run.seed))
            if partner is not None:
                yield Pair(before=run, after=partner)


def has_vanished(run: RunRecord, study: StudyConfig, at: Literal["first", "last"]) -> bool:
    """The backward signal falls steeper than the study's limit, or none arrives at all."""
    depth = measured(run, at)
    if depth is None:
        return False
    return gets_nothing(depth) or (depth.backward_slope is not None and depth.backward_slope < -study.vanishing_slope)


def gets_nothing(depth: Depth) -> bool:
    """The gradient is exactly zero in the first layer, though not in the last: it got lost on the way."""
    return bool(depth.delta_rms) and depth.delta_rms[0] == 0.0 and depth.delta_rms[-1] != 0.0


def has_blown_up(run: RunRecord, study: StudyConfig, chance_loss: float) -> bool:
    """A step was not finite, or the loss ended far above where it began and above a blind guess."""
    if run.num_skipped or run.first_loss is None or run.last_loss is None:
        return True
    return run.last_loss > study.blow_up_factor * max(run.first_loss, chance_loss)


def has_learned(run: RunRecord, study: StudyConfig) -> bool:
    return run.num_skipped == 0 and run.judged[-1].train_accuracy >= study.learned_accuracy


def measured(run: RunRecord, at: Literal["first", "last"]) -> Depth | None:
    """What was seen through all layers at the run's first or last measured step; None: it came to neither."""
    if not run.depths:
        return None
    return run.depths[0 if at == "first" else -1]


def gap(judged: Judged) -> float:
    """How much better the model is on images that it has learned from; both without augmentation."""
    return judged.train_accuracy - judged.held_out_accuracy


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation between the values); NaN where there are too few."""
    return (fmean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan)


def _place(run: RunRecord, **changed: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({**run.cell, **changed}.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    trouble: str
    """What a run does that has it, as a sentence."""
    rule: str
    """When a run has it."""


def _vanishing_words(study: StudyConfig, claim: ClaimSection) -> _Words:
    limit = study.vanishing_slope
    return _Words(
        trouble="the gradient vanishes",
        rule=(
            f"A gradient vanishes where the norm of the backward signal falls by more than {limit:g} decades a layer "
            f"(a factor of {10**-limit:.2f}) on its way to the input, or none arrives; seen at the {claim.at} step. "
        ),
    )


def _explosion_words(study: StudyConfig) -> _Words:
    return _Words(
        trouble="the run blows up",
        rule=(
            "A run blows up if a step has no finite gradient, or its loss ends above "
            f"{study.blow_up_factor:g} times its first one and above {study.blow_up_factor:g} times a blind guess's. "
        ),
    )


def _cured(
    claim: ClaimSection,
    pairs: Sequence[Pair],
    has_trouble: Callable[[RunRecord], bool],
    words: _Words,
) -> Judgement:
    troubled = tuple(pair for pair in pairs if has_trouble(pair.before))
    num_cured = sum(not has_trouble(pair.after) for pair in troubled)
    new = sum(has_trouble(pair.after) for pair in pairs if not has_trouble(pair.before))
    share = num_cured / len(troubled) if troubled else math.nan
    answer: Answer = "mixed"
    if not troubled:
        answer = "not tested"
    elif share >= HOLDS_FROM:
        answer = "holds"
    elif share <= FAILS_BELOW:
        answer = "does not hold"
    if troubled:
        before, after = (_mean_of(troubled, side, _held_out) for side in (_before, _after))
        finding = (
            f"In {len(troubled)} of {len(pairs)} pairs of runs {words.trouble} without it; in {num_cured} of those it "
            f"no longer does with it ({share:.0%}). Their held-out accuracy: {before:.0%} without it, {after:.0%} with "
            "it."
        )
    else:
        finding = f"In none of {len(pairs)} pairs of runs {words.trouble} without it."
    if new:
        finding += f" In {new} other{'s' if new > 1 else ''} it does only with it."
    rule = words.rule + (
        f"The claim holds if at least {HOLDS_FROM:.0%} of the pairs are cured, and does not hold if at most "
        f"{FAILS_BELOW:.0%} are."
    )
    return Judgement(claim=claim, answer=answer, rule=rule, finding=finding, pairs=troubled, num_compared=len(pairs))


def _generalises(study: StudyConfig, claim: ClaimSection, pairs: Sequence[Pair]) -> Judgement:
    """By seeds, since runs of one seed share their batches and are no independent evidence."""
    learned = tuple(pair for pair in pairs if has_learned(pair.before, study) and pair.after.num_skipped == 0)
    seeds = sorted({pair.before.seed for pair in learned})
    by_seed = [[pair for pair in learned if pair.before.seed == seed] for seed in seeds]
    gained = [_mean_of(one, _after, _held_out) - _mean_of(one, _before, _held_out) for one in by_seed]
    narrowed = [_mean_of(one, _before, gap) - _mean_of(one, _after, gap) for one in by_seed]
    answer: Answer = "mixed"
    if not learned:
        answer = "not tested"
    elif min(gained) > 0.0 and min(narrowed) > 0.0:
        answer = "holds"
    elif max(gained) <= 0.0:
        answer = "does not hold"
    finding = f"In none of {len(pairs)} pairs of runs the model learned its training images without it."
    if learned:
        finding = (
            f"In {len(learned)} of {len(pairs)} pairs of runs the model learned its training images without it. There, "
            f"held-out accuracy goes from {_mean_of(learned, _before, _held_out):.1%} to "
            f"{_mean_of(learned, _after, _held_out):.1%} ({_by_seed(gained)} by seed), and the gap between training "
            f"and held-out accuracy from {_mean_of(learned, _before, gap):.1%} to "
            f"{_mean_of(learned, _after, gap):.1%}."
        )
    rule = (
        f"Only runs count that get at least {study.learned_accuracy:.0%} of the training images right without it. The "
        "claim holds if, in every seed's mean, held-out accuracy rises and the gap narrows, and does not hold if "
        "held-out accuracy rises in none. Both accuracies are on images without augmentation."
    )
    return Judgement(claim=claim, answer=answer, rule=rule, finding=finding, pairs=learned, num_compared=len(pairs))


def _mean_of(pairs: Sequence[Pair], side: Callable[[Pair], Judged], value: Callable[[Judged], float]) -> float:
    return fmean(value(side(pair)) for pair in pairs)


def _before(pair: Pair) -> Judged:
    return pair.before.judged[-1]


def _after(pair: Pair) -> Judged:
    return pair.after.judged[-1]


def _held_out(judged: Judged) -> float:
    return judged.held_out_accuracy


def _by_seed(differences: Sequence[float]) -> str:
    return ", ".join(f"{100 * difference:+.1f}" for difference in differences) + " points"
