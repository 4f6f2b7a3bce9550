"""A study's runs are trained as jobs are, and what goes wrong in them is a result."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.job import JobConfig, ModelSection
from trainer.batch import Batch
from trainer.models import Factory, build_model
from trainer.study_claims import has_blown_up
from trainer.study_records import RunRecord
from trainer.study_training import Images, Plan, StudyRun, draw_by_formula

PLAN = Plan(num_steps=6, measured_steps=(0, 3, 5), evaluate_every=3, stop_after_skipped=3)


def batch(step: int, seed: int = 0) -> Batch:
    """Labels that the image's mean tells."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    labels = torch.arange(24) % 3
    images = torch.randn(24, 1, 6, 6, generator=generator) + (labels.float() - 1.0).reshape(-1, 1, 1, 1)
    return Batch(
        step=step, epoch=0, start=24 * step, stop=24 * step + 24, recipe="", digest="",
        images=images, labels=labels, sample_ids=torch.arange(24),
    )  # fmt: skip


IMAGES = Images(train=[batch(0)], held_out=[batch(0, seed=9)], num_classes=3)


def config(
    init: object = "kaiming_normal", activation: str = "relu", clip: str = "none", lr: float = 0.01
) -> JobConfig:
    return JobConfig.model_validate(
        {
            "sources": {"any": {"kind": "digits"}},
            "train": {"source": "any", "chain": []},
            "model": {"kind": "mlp", "width": 16, "depth": 6, "init": init, "activation": activation},
            "optimizer": {"kind": "sgd", "lr": lr},
            "clip": {"kind": clip},
        }
    )


class Drawing(nn.Module):
    """Draws from all three generators in every training step."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 16), nn.Dropout(0.5))
        self.head = nn.Linear(16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        factor = random.random() + np.random.random() if self.training else 1.0
        return self.head(factor * self.layers(images))  # type: ignore[no-any-return]


def trained(
    job: JobConfig,
    *,
    weights_std: str = "",
    neighbours: tuple[JobConfig, ...] = (),
    factory: Factory | None = None,
    plan: Plan = PLAN,
) -> RunRecord:
    runs = [StudyRun(one, {}, plan, IMAGES, weights_std=weights_std, factory=factory) for one in (job, *neighbours)]
    for step in range(PLAN.num_steps):
        for run in runs:
            run.step(batch(step))
    assert runs[0].is_over
    return runs[0].record()


def without_time(record: RunRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__ if name != "cpu_s"}


def test_equal_runs_have_equal_records_whatever_trains_beside_them() -> None:
    alone = trained(config())
    beside = trained(config(), neighbours=(config(lr=100.0),))
    assert without_time(alone) == without_time(beside)
    assert [0, 3, 5] == [depth.step for depth in alone.depths]
    assert [0, 3, 6] == [judged.step for judged in alone.judged]
    assert all(len(depth.delta_rms) == 7 for depth in alone.depths)


def test_what_a_model_draws_does_not_depend_on_who_trains_beside_it() -> None:
    """Dropout, and a model that asks Python's or NumPy's generators: each run goes on with its own numbers. Nor does
    it depend on how often the run is judged."""
    job = config().model_copy(update={"model": ModelSection(kind="factory", factory="user:Drawing")})
    alone = trained(job, factory=Drawing)
    beside = trained(job, neighbours=(job.model_copy(update={"seed": 5}),), factory=Drawing)
    assert without_time(alone) == without_time(beside)
    judged_more = trained(job, factory=Drawing, plan=replace(PLAN, evaluate_every=1))
    assert alone.last_loss == judged_more.last_loss


def test_lsuv_scales_a_runs_weights_on_its_first_batch() -> None:
    """Before anything is judged or measured; weights by formula are nobody else's business."""
    lsuv, orthogonal = trained(config("lsuv")), trained(config("orthogonal"))
    assert lsuv.depths[0].forward_std == pytest.approx([1.0] * 7, abs=0.11)
    assert orthogonal.depths[0].forward_std != pytest.approx([1.0] * 7, abs=0.11)
    assert lsuv.judged[0].train_loss != orthogonal.judged[0].train_loss
    by_formula = trained(config("lsuv"), weights_std="0.01")
    assert by_formula.depths[0] == trained(config("orthogonal"), weights_std="0.01").depths[0]


def test_a_first_batch_that_lsuv_cannot_scale_by_is_refused_by_name() -> None:
    spoiled = replace(batch(0), images=torch.full_like(batch(0).images, math.nan))
    run = StudyRun(config("lsuv"), {}, PLAN, IMAGES, file="job.yaml")
    with pytest.raises(ConfigError, match=r"^job\.yaml: model\.init\n  expected: for lsuv, at least two images"):
        run.step(spoiled)


def test_slopes_tell_right_weights_from_small_and_large_ones() -> None:
    right, small, large = (
        trained(config(init)).depths[0].backward_slope
        for init in ("kaiming_normal", {"law": "normal", "std": 0.01}, {"law": "normal", "std": 1.0})
    )
    assert right is not None
    assert small is not None
    assert large is not None
    assert abs(right) < 0.12
    # A ReLU layer of 16 units multiplies the gradient's norm by std * sqrt(16 / 2).
    assert small == pytest.approx(math.log10(0.01 * math.sqrt(8)), abs=0.15)
    assert large == pytest.approx(math.log10(math.sqrt(8)), abs=0.15)


def test_zero_weights_are_a_result_without_slope() -> None:
    record = trained(config("zeros"))
    assert (0.0, None) == (record.depths[0].delta_rms[0], record.depths[0].backward_slope)
    assert "SYMMETRY" in record.verdicts


def test_a_run_that_blows_up_is_given_up_and_recorded() -> None:
    study = type("Study", (), {"blow_up_factor": 2.0})()
    record = trained(config({"law": "normal", "std": 30.0}, lr=1e6))
    assert (record.num_skipped, record.last_loss) == (PLAN.stop_after_skipped, None)
    assert record.num_steps < PLAN.num_steps
    assert has_blown_up(record, study, math.log(3))
    assert "NONFINITE" in record.verdicts


def test_clipping_changes_the_steps_and_not_what_was_measured_before_them() -> None:
    plain, clipped = trained(config(lr=0.1)), trained(config(clip="norm", lr=0.1))
    assert plain.depths[0] == clipped.depths[0]
    assert plain.clipped_share == 0.0
    assert clipped.clipped_share > 0.0
    assert plain.last_loss != clipped.last_loss


def test_weights_by_formula_have_its_standard_deviation() -> None:
    section = config().model.model_copy(update={"width": 400, "depth": 2})
    torch.manual_seed(0)
    model = build_model(section, (1, 20, 20), 3)
    draw_by_formula(model, "sqrt(6) / (fan_in + fan_out)")
    assert isinstance(model, torch.nn.Sequential)
    for layer in (model[1], model[3]):
        assert isinstance(layer, torch.nn.Linear)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(6) / 800, rel=0.02)
        assert not layer.bias.any()


def test_a_nan_in_the_images_ends_a_run_and_no_other() -> None:
    spoiled = replace(batch(0), images=torch.full_like(batch(0).images, math.nan))
    run = StudyRun(config(), {}, PLAN, IMAGES)
    for _ in range(PLAN.num_steps):
        run.step(spoiled)
    record = run.record()
    assert (3, 3, 0, None) == (record.num_steps, record.num_skipped, record.first_skipped, record.first_loss)
