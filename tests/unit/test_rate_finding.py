"""Finding a learning rate: the range test's curve, the folds, the one-standard-error rule, and trials in memory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trainer.rate_finding_trials
from headrace.rate_samples import described
from pipeline.errors import ConfigError
from pipeline.recipe import BatchSpec, Finish
from tests.memory_streams import NUM_CLASSES, SPEC, make_job
from tests.sizes import cases
from trainer.rate_finding import (
    Marks,
    Smoother,
    candidate_rates,
    exponential_rates,
    further_rate,
    marks_of,
    run_range_test,
)
from trainer.rate_finding_folds import Score, folds_of, leading_rate, recommend, split_into_folds, why_none
from trainer.rate_finding_samples import Samples
from trainer.rate_finding_trials import Trials

RATES = exponential_rates(1e-6, 10.0, 150)


def falling_at(centre, noise=0.0, seed=0):
    """A loss that falls from 2 to 1 around the rate `centre`, fastest there, within about a decade."""
    generator = np.random.default_rng(seed)

    def loss_at(lr):
        return 1.0 + 1.0 / (1.0 + (lr / centre) ** 3) + noise * generator.standard_normal()

    return loss_at


# --- the range test ---------------------------------------------------------------------------------------------


def test_rates_rise_by_one_factor_from_the_lowest_to_the_highest():
    assert RATES[0] == 1e-6
    assert RATES[-1] == 10.0
    assert np.diff(np.log(RATES)) == pytest.approx(math.log(1e7) / 149)


@given(loss=st.floats(-1e6, 1e6), num_losses=st.integers(1, 50))
def test_equal_losses_are_smoothed_to_themselves_from_the_first_on(loss, num_losses):
    """Without the correction the first would be a tenth of it, and every curve would begin by rising."""
    smoother = Smoother(num_losses)
    assert [smoother.add(loss) for _ in range(num_losses)] == pytest.approx([loss] * num_losses)


def test_a_test_ends_where_the_loss_diverges_or_is_no_number():
    """Everything after that is a model that was thrown out."""
    diverging = run_range_test(RATES, lambda lr: 1.0 if lr < 1e-2 else 100.0)
    assert (diverging.ending, diverging.losses[-1]) == ("diverged", 100.0)
    assert diverging.maybe_ended_lr == diverging.lrs[-1] == next(lr for lr in RATES if lr >= 1e-2)

    broken = run_range_test(RATES, lambda lr: 1.0 if lr < 1e-2 else math.nan)
    assert (broken.ending, broken.maybe_ended_lr) == ("not finite", next(lr for lr in RATES if lr >= 1e-2))
    assert all(math.isfinite(loss) for loss in broken.losses)
    assert broken.lrs[-1] < broken.maybe_ended_lr

    assert run_range_test(RATES, falling_at(1e-3)).ending == "the highest rate"


def test_four_times_almost_nothing_is_no_divergence():
    """A model that has learned its few samples by heart has a loss of 1e-6; then 1e-4 is still a good one."""
    learned = run_range_test(RATES, lambda lr: 2.0 if lr < 1e-4 else 1e-6 if lr < 1e-3 else 0.5)
    assert learned.ending == "the highest rate"


@pytest.mark.parametrize("centre", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_steepest_point_is_where_the_loss_falls_fastest(centre, noise):
    """Within a third of a decade, also under noise: finer than candidates are apart."""
    test = run_range_test(RATES, falling_at(centre, noise))
    found = marks_of(test).maybe_steepest_lr
    assert found is not None
    assert abs(math.log10(found / centre)) < 1 / 3


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_falls_nowhere(seed):
    """A curve without a fall must not suggest the place where chance was kindest."""
    generator = np.random.default_rng(seed)
    test = run_range_test(RATES, lambda lr: 2.0 + 0.1 * generator.standard_normal())
    assert marks_of(test).maybe_steepest_lr is None


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_what_comes_after_the_loss_has_risen_again_says_nothing(noise):
    """A model that is thrown out and comes back falls more steeply, and maybe lower, than it ever did by learning."""
    learning = falling_at(1e-3, noise)

    def loss_at(lr):
        return learning(lr) if lr < 0.1 else max(0.5, 3.5 - 2.0 * math.log10(lr / 0.1))

    marks = marks_of(run_range_test(RATES, loss_at))
    assert marks.edge == "rises again"
    assert 0.1 <= marks.edge_lr < 0.3
    assert marks.lowest_lr < 0.11
    assert abs(math.log10(marks.maybe_steepest_lr / 1e-3)) < 1 / 3
    assert marks.below_edge_lr == pytest.approx(marks.edge_lr / 10)


@pytest.mark.parametrize("seed", range(8))
def test_the_noise_of_a_large_loss_is_no_rise(seed):
    """An untrained model's loss of 16 may scatter by more than all that a trained one's of 2 ever moves."""
    generator, falling = np.random.default_rng(seed), falling_at(1e-3)
    test = run_range_test(RATES, lambda lr: (14.0 * falling(lr) - 12.0) * (1.0 + 0.1 * generator.standard_normal()))
    marks = marks_of(test)
    assert marks.edge == "lowest"
    assert abs(math.log10(marks.maybe_steepest_lr / 1e-3)) < 0.5


def test_the_edge_is_where_the_test_ended_or_else_where_the_loss_is_lowest():
    broken = marks_of(run_range_test(RATES, lambda lr: falling_at(1e-3)(lr) if lr < 0.1 else math.inf))
    assert (broken.edge, broken.edge_lr) == ("not finite", next(lr for lr in RATES if lr >= 0.1))
    whole = marks_of(run_range_test(RATES, falling_at(1e-3)))
    assert (whole.edge, whole.edge_lr) == ("lowest", whole.lowest_lr)


# --- candidates -------------------------------------------------------------------------------------------------

RATE = st.floats(-6.0, 1.0).map(lambda exponent: 10.0**exponent)


@given(steepest=st.none() | RATE, lowest=RATE, edge=RATE, own=RATE)
def test_candidates_rise_stay_below_the_edge_and_have_the_jobs_own(steepest, lowest, edge, own):
    marks = Marks(maybe_steepest_lr=steepest, lowest_lr=lowest, edge_lr=edge, edge="diverged")
    rates = candidate_rates(marks, own)
    assert list(rates) == sorted(set(rates))
    assert 4 <= len(rates) <= 5
    assert all(lr < edge for lr in rates if lr != own)
    assert any(math.isclose(lr, own, rel_tol=0.05) for lr in rates)


def test_candidates_lie_around_what_the_curve_suggests():
    marks = Marks(maybe_steepest_lr=1e-3, lowest_lr=0.1, edge_lr=0.1, edge="rises again")
    assert candidate_rates(marks, 3e-3) == (1e-3, 3e-3, 1e-2, 3e-2)
    assert candidate_rates(marks, 0.5) == (1e-3, 3e-3, 1e-2, 3e-2, 0.5)


def test_a_further_rate_is_asked_for_until_the_leading_one_has_neighbours():
    lrs = (1e-3, 3e-3, 1e-2)
    assert further_rate(lrs, 3e-3) is None
    assert further_rate(lrs, 1e-2) == 3e-2
    assert further_rate(lrs, 1e-3) == 3e-4
    assert further_rate(lrs, None) == 3e-4, "all diverged"
    assert further_rate((1e-3, 0.029), 0.029) == 0.1, "0.03 would tell nothing new"
    assert further_rate((3e-4, 1e-3, 0.1, 0.3), 1e-3) == 3e-3, "two decades without a trial"
    assert further_rate((1e-5, 1e-2, 3e-2), 1e-2) == 3e-3


# --- folds ------------------------------------------------------------------------------------------------------

IDS = st.lists(st.integers(0, 2**62), min_size=1, max_size=60)


@given(ids=IDS, num_folds=st.integers(2, 10))
def test_a_samples_fold_is_a_function_of_its_id(ids, num_folds):
    """Not of its neighbours, its place or how often it occurs: its copies of other epochs are with it."""
    folds = folds_of(np.array(ids), num_folds)
    assert [int(folds_of(np.array([one]), num_folds)[0]) for one in ids] == folds.tolist()
    assert 0 <= folds.min() <= folds.max() < num_folds


@given(trained=IDS, judged=IDS, num_folds=st.integers(2, 6))
def test_no_fold_is_judged_on_what_its_model_was_trained_on(trained, judged, num_folds):
    """And each id is judged once in all, each training sample left out once in all."""
    trained_ids, judged_ids = np.array(trained), np.array(judged)
    folds = split_into_folds(trained_ids, judged_ids, num_folds)
    for fold in folds:
        assert not set(trained_ids[fold.trained_rows]) & set(judged_ids[fold.judged_rows])
    seen = np.concatenate([judged_ids[fold.judged_rows] for fold in folds])
    assert sorted(seen) == sorted(set(judged))
    assert sum(len(fold.trained_rows) for fold in folds) == (num_folds - 1) * len(trained)


@pytest.mark.parametrize("num_folds", [2, 3, 5, 10])
def test_neighbouring_ids_spread_evenly_over_the_folds(num_folds):
    """A source lists its samples class by class; chi-square, at a level that chance passes 999 times in 1,000."""
    counts = np.bincount(folds_of(np.arange(5000), num_folds), minlength=num_folds)
    expected = 5000 / num_folds
    critical = {2: 10.8, 3: 13.8, 5: 18.5, 10: 27.9}[num_folds]
    assert ((counts - expected) ** 2 / expected).sum() < critical


# --- the one-standard-error rule --------------------------------------------------------------------------------


def score(lr, *losses):
    return Score(lr=lr, losses=losses, accuracies=tuple(0.5 for _ in losses))


def test_mean_and_standard_deviation_are_over_the_folds():
    of_three = score(0.1, 1.0, 2.0, 3.0)
    assert (of_three.mean_loss, of_three.std_loss) == (2.0, 1.0)
    assert of_three.standard_error == pytest.approx(1.0 / math.sqrt(3.0))


def test_the_largest_rate_within_one_standard_error_of_the_best_is_chosen():
    """0.01 has the lowest mean, 0.50 with a standard error of 0.058: 0.03 is within it, 0.1 is not."""
    scores = [score(1e-3, 0.9, 1.0, 1.1), score(0.01, 0.4, 0.5, 0.6), score(0.03, 0.45, 0.55, 0.65)]
    scores.append(score(0.1, 0.46, 0.56, 0.66))
    found = recommend(scores, num_classes=10)
    assert (found.chosen.lr, found.best.lr) == (0.03, 0.01)
    assert found.reason == (
        "0.03 is the largest rate whose mean loss (0.55) is within one standard error (0.058) of the lowest "
        "(0.5, at 0.01)"
    )
    assert found.doubts == ()


def test_a_rate_that_diverged_in_one_fold_is_never_recommended():
    """Its other folds may be the best of all."""
    scores = [score(1e-3, 0.9, 1.0), score(0.1, 0.01, math.inf)]
    assert recommend(scores, num_classes=10).chosen.lr == 1e-3
    assert (scores[1].num_diverged, scores[1].mean_loss) == (1, math.inf)
    assert recommend(scores[1:], num_classes=10) is None


def test_what_is_no_better_than_guessing_is_not_recommended():
    """ln 10 = 2.303: where all units have died every rate is there, and the largest would win."""
    dead = [score(1e4, 2.31, 2.32), score(1e5, 2.31, 2.32)]
    assert recommend(dead, num_classes=10) is None
    assert "no candidate is better than guessing, whose loss is ln 10 = 2.3\n  to go on:" in why_none(dead, 10)
    assert leading_rate(dead, num_classes=10) == 1e4
    diverged = [score(1e4, 2.0, math.inf)]
    assert leading_rate(diverged, num_classes=10) is None
    assert "every candidate diverged\n  to go on:" in why_none(diverged, 10)


def test_a_recommendation_says_what_to_doubt():
    ends = [score(1e-3, 1.0, 1.1), score(1e-2, 0.5, 0.6)]
    assert "largest rate that was tried" in recommend(ends, num_classes=10).doubts[0]
    assert "smallest rate that was tried" in recommend([score(0.1, 2.0, 2.1), ends[0]], num_classes=10).doubts[0]


LOSSES = st.lists(st.floats(0.0, 2.0) | st.just(math.inf), min_size=3, max_size=3)


@given(table=st.dictionaries(RATE, LOSSES, min_size=1, max_size=6))
def test_the_rule_itself(table):
    scores = [score(lr, *losses) for lr, losses in table.items()]
    found = recommend(scores, num_classes=3)
    usable = [one for one in scores if sum(one.losses) / 3 < math.log(3)]
    assert (found is None) == (not usable)
    if found is not None:
        assert found.best.mean_loss == min(one.mean_loss for one in usable)
        bound = found.best.mean_loss + found.best.standard_error
        assert found.chosen.lr == max(one.lr for one in usable if one.mean_loss <= bound)


# --- trials -----------------------------------------------------------------------------------------------------


def make_samples(num_samples=240, seed=1):
    """A class is a level of brightness under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (num_samples,), generator=generator)
    noise = torch.randint(0, 40, (num_samples, 8, 8, 1), generator=generator)
    images = ((noise + 30 * labels[:, None, None, None]) // 16).to(torch.uint8)
    spec = BatchSpec(fields=SPEC.fields, finish=Finish(scale=(0.5,), shift=(-1.5,), channels_first=True))
    return Samples(images_NHWC=images, labels_N=labels, sample_ids_N=torch.arange(num_samples) % 200, spec=spec)


def make_trials(tmp_path, samples=None, init="kaiming_normal", **fields):
    fields = {"optimizer": {"kind": "sgd", "momentum": 0.0}, "device": "cpu", "torch_threads": 1, **fields}
    job = make_job(tmp_path, model={"kind": "mlp", "width": 16, "depth": 1, "init": init}, **fields)
    config = job.config.model_copy(update={"train": job.config.train.model_copy(update={"batch_size": 16})})
    job = type(job)(path=job.path, config=config, train=job.train, eval=job.eval)
    samples = samples or make_samples()
    return Trials(job, samples, samples, tuple("abc"))


def test_a_good_rate_learns_a_tiny_one_does_not_and_a_huge_one_diverges(tmp_path):
    trials = make_trials(tmp_path)
    good, tiny, huge = (trials.score(lr, 2, 30) for lr in (0.1, 1e-7, 1e9))
    assert good.mean_accuracy > 0.9 > 0.6 > tiny.mean_accuracy
    assert good.mean_loss < tiny.mean_loss
    assert (huge.num_diverged, huge.mean_loss) == (2, math.inf)


def test_a_search_repeats_itself_and_leaves_the_random_generators_alone(tmp_path):
    """What a trial draws (weights, dropout) may depend on the job's seed only, not on the trials before it."""
    trials = make_trials(tmp_path)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    first = trials.score(0.03, 2, 5)
    curve = trials.range_test(RATES[::5])
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert trials.range_test(RATES[::5]) == curve
    assert trials.score(0.03, 2, 5) == first


def test_trials_clip_as_the_job_does(tmp_path):
    """With a bound of 1e-12 nothing can move: every rate is as good as a tiny one."""
    clipped = make_trials(tmp_path, clip={"kind": "norm", "threshold": 1e-12})
    assert clipped.score(1.0, 2, 5).losses == pytest.approx(clipped.score(1e-9, 2, 5).losses, rel=1e-6)
    free = make_trials(tmp_path)
    assert free.score(0.1, 2, 5).losses != pytest.approx(free.score(1e-9, 2, 5).losses, rel=1e-3)


def test_folds_too_small_and_batches_too_large_are_refused(tmp_path):
    """Before a minute of training, with a way out."""
    few = make_trials(tmp_path, make_samples(num_samples=12))
    with pytest.raises(ConfigError, match=r"folds of at least 10 samples, of the 12 .*\n.*\n.*lower --folds"):
        few.require_folds(3)
    with pytest.raises(ConfigError, match=r"train.batch_size\n.*at most 12, the samples in memory for a range test"):
        few.range_test(RATES)
    make_trials(tmp_path).require_folds(3)


def test_a_model_that_begins_by_lsuv_is_shown_its_samples(tmp_path, monkeypatch):
    """The law looks at images, here at those that the model will be trained on."""
    scaled = []
    real = trainer.rate_finding_trials.scale_to_unit
    monkeypatch.setattr(
        trainer.rate_finding_trials,
        "scale_to_unit",
        lambda *arguments, **options: scaled.append(real(*arguments, **options)),
    )
    make_trials(tmp_path, init="lsuv").score(0.03, 2, 1)
    assert len(scaled) == 2
    assert all(layer.std_after == pytest.approx(1.0, abs=0.1) for layers in scaled for layer in layers)


@settings(max_examples=cases(25))
@given(num_rows=st.integers(1, 40), batch_size=st.integers(1, 40))
def test_batches_are_the_rows_in_their_order(num_rows, batch_size):
    """One pass has each row once; an endless one has full batches only, over and over."""
    samples = make_samples(50)
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:num_rows]
    seen = list(samples.batches(rows, batch_size, torch.device("cpu")))
    assert torch.cat([batch.sample_ids for batch in seen]).tolist() == rows.tolist()
    if num_rows >= batch_size:
        full = num_rows // batch_size
        endless = samples.endless(rows, batch_size, torch.device("cpu"))
        twice = [next(endless).sample_ids.tolist() for _ in range(2 * full)]
        assert twice[:full] == twice[full:] == rows[: full * batch_size].view(full, batch_size).tolist()


def test_what_is_said_of_the_samples_counts_samples_and_not_their_images():
    """Several epochs give several images of each; only the source's own size means something to a user."""
    assert described(make_samples(500), "photos", 200) == "500 images made of all 200 samples of photos"
    assert described(make_samples(200), "photos", 200) == "all 200 samples of photos"
    assert described(make_samples(90), "photos", 200) == "90 of the 200 samples of photos"
