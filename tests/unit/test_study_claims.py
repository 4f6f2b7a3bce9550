"""Claims are decided by counting pairs; the page says what was counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest

from pipeline.study import StudyConfig
from trainer.study_claims import Judgement, has_blown_up, judge, pairs_of
from trainer.study_page import study_page
from trainer.study_records import Depth, Judged, RunRecord, to_line

CHANCE_LOSS = math.log(6)


def study(**claim: object) -> StudyConfig:
    values = {
        "job": "job.yaml",
        "axes": {"init": {"bad": {}, "good": {}}, "clip": {"none": {}, "norm": {"label": "by <norm>"}}},
        "seeds": [0, 1],
        "steps": 10,
        "claims": [{"says": "It <helps>.", "axis": "init", "before": "bad", "after": ["good"], **claim}],
    }
    return StudyConfig.model_validate(values)


def run(
    init: str,
    clip: str = "none",
    seed: int = 0,
    *,
    slope: float | None = 0.0,
    delta: Sequence[float | None] = (1e-3, 1e-3, 1e-3),
    losses: tuple[float | None, float | None] = (1.8, 0.1),
    accuracies: tuple[float, float] = (1.0, 0.6),
    num_skipped: int = 0,
) -> RunRecord:
    depth = Depth(
        step=0, grad_norm=1.0, forward_std=(1.0,) * 3, delta_rms=tuple(delta), forward_slope=0.0, backward_slope=slope
    )
    train, held_out = accuracies
    ends = [
        Judged(step=step, train_loss=1.0, train_accuracy=train, held_out_loss=None, held_out_accuracy=held_out)
        for step in (0, 10)
    ]
    return RunRecord(
        cell={"init": init, "clip": clip},
        seed=seed,
        first_loss=losses[0],
        last_loss=losses[1],
        depths=(depth,),
        judged=tuple(ends),
        num_steps=10,
        num_skipped=num_skipped,
        first_skipped=0 if num_skipped else None,
        clipped_share=0.5,
        max_grad_norm=None,
        verdicts=("VANISH_BWD",),
        num_classes=6,
        num_train_images=360,
        num_held_out_images=360,
        cpu_s=1.0,
    )


def judged(config: StudyConfig, records: Sequence[RunRecord]) -> Judgement:
    return judge(config, config.claims[0], records, CHANCE_LOSS)


def matrix(bad: dict[str, object], good: dict[str, object]) -> list[RunRecord]:
    places = [(clip, seed) for clip in ("none", "norm") for seed in (0, 1)]
    return [run(init, *at, **how) for init, how in (("bad", bad), ("good", good)) for at in places]  # type: ignore[arg-type]


def test_a_pair_differs_in_the_claims_axis_alone() -> None:
    config = study(kind="cures_vanishing", where={"clip": ["norm"]})
    pairs = list(pairs_of(config.claims[0], matrix({}, {})))
    assert 2 == len(pairs)
    for pair in pairs:
        assert (pair.before.cell, pair.after.cell) == (
            {"init": "bad", "clip": "norm"},
            {"init": "good", "clip": "norm"},
        )
        assert pair.before.seed == pair.after.seed


@pytest.mark.parametrize(
    ("bad", "good", "answer"),
    [
        ({"slope": -0.5}, {"slope": -0.1}, "holds"),
        ({"slope": -0.5}, {"slope": -0.4}, "does not hold"),
        ({"slope": -0.1}, {"slope": 0.0}, "not tested"),
        ({"slope": None, "delta": (0.0, 0.0, 1e-3)}, {"slope": 0.0}, "holds"),
        ({"slope": -0.5}, {"slope": None, "delta": (0.0, 0.0, 1e-3)}, "does not hold"),
        ({"slope": None, "delta": (0.0, 0.0, 0.0)}, {"slope": 0.0}, "not tested"),
    ],
)
def test_vanishing_is_cured_where_the_slope_is(bad: dict[str, object], good: dict[str, object], answer: str) -> None:
    assert answer == judged(study(kind="cures_vanishing"), matrix(bad, good)).answer


def test_a_half_cure_is_mixed_and_new_trouble_is_told() -> None:
    records = matrix({"slope": -0.5}, {"slope": -0.5})
    records[4:6] = [run("good", "none", seed) for seed in (0, 1)]
    one = judged(study(kind="cures_vanishing"), records)
    assert ("mixed", 4) == (one.answer, len(one.pairs))
    assert "in 2 of those it no longer does with it (50%)" in one.finding
    one = judged(study(kind="cures_vanishing"), [run("bad"), run("good", slope=-0.5)])
    assert one.answer == "not tested"
    assert "In 1 other it does only with it." in one.finding


def test_a_run_blows_up_by_a_step_that_is_not_finite_or_a_loss_that_grew() -> None:
    config = study(kind="cures_explosion")
    for losses, num_skipped, expected in [
        ((1.8, 0.1), 0, False), ((1.8, 0.1), 1, True), ((1.8, None), 0, True), ((None, None), 5, True),
        ((1.8, 3.5), 0, False), ((1.8, 3.7), 0, True), ((1e9, 1e7), 0, False), ((1e-3, 1.8), 0, False),
    ]:  # fmt: skip
        assert expected == has_blown_up(run("bad", losses=losses, num_skipped=num_skipped), config, CHANCE_LOSS), losses
    assert "holds" == judged(config, matrix({"losses": (1.8, None), "num_skipped": 5}, {})).answer
    assert "does not hold" == judged(config, matrix({"losses": (1.8, 50.0)}, {"losses": (1.8, 40.0)})).answer


@pytest.mark.parametrize(
    ("bad", "good", "answer"),
    [
        ((1.0, 0.6), (0.9, 0.7), "holds"),
        ((1.0, 0.6), (0.8, 0.6), "does not hold"),
        ((1.0, 0.6), (1.0, 0.5), "does not hold"),
        ((0.7, 0.3), (0.7, 0.6), "not tested"),
    ],
)
def test_generalisation_is_held_out_accuracy_and_gap_in_every_seed(
    bad: tuple[float, float], good: tuple[float, float], answer: str
) -> None:
    one = judged(study(kind="helps_generalisation"), matrix({"accuracies": bad}, {"accuracies": good}))
    assert answer == one.answer


def test_generalisation_that_depends_on_the_seed_is_mixed() -> None:
    records = [run("bad", seed=seed) for seed in (0, 1)]
    records += [run("good", seed=seed, accuracies=(1.0, 0.5 + 0.2 * seed)) for seed in (0, 1)]
    one = judged(study(kind="helps_generalisation"), records)
    assert one.answer == "mixed"
    assert "-10.0, +10.0 points by seed" in one.finding


@pytest.mark.parametrize("is_all_lost", [False, True], ids=["some lost", "all lost"])
def test_the_page_can_show_any_result(is_all_lost: bool) -> None:
    """Runs of which nothing finite is known are results like others, and names are text, not markup."""
    lost = {
        "slope": None,
        "delta": (None, None, None),
        "losses": (None, None),
        "num_skipped": 5,
        "accuracies": (0.1, 0.1),
    }
    records = matrix(lost, lost if is_all_lost else {})
    configs = [study(kind=kind) for kind in ("cures_vanishing", "cures_explosion", "helps_generalisation")]
    judgements = [judged(config, records) for config in configs]
    page = study_page(configs[0], records, judgements, facts="", details=[], chance_loss=CHANCE_LOSS)
    assert 3 <= page.count("It &lt;helps&gt;.")
    assert "by &lt;norm&gt;" in page
    assert "by <norm>" not in page
    assert "In 4 of 4 pairs of runs the run blows up without it" in page
    assert 2 + 3 == page.count("<svg")


def test_a_record_is_a_line_and_back() -> None:
    record = run("bad", slope=None, delta=(None, 0.0, 1e-300))
    assert record == msgspec.json.decode(to_line(record), type=RunRecord)
    assert b"NaN" not in to_line(record)
