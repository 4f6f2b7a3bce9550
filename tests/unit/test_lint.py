"""Lint: theory and one batch agree, faults are found before the first step, and nothing is left behind."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.job import ModelSection
from trainer.health.detectors import HealthConfig
from trainer.health.records import Severity
from trainer.health.suite import begin, digits, one_thread
from trainer.health.suite_healthy import healthy
from trainer.lint import MAX_SAMPLES, lint
from trainer.lint_predict import predict
from trainer.lint_report import LintReport, slopes_of
from trainer.models import build_model

CONFIG = HealthConfig(num_classes=10)
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def mlp(depth: int, width: int, activation: str, init: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    section = {"kind": "mlp", "depth": depth, "width": width, "activation": activation, "init": init}
    return build_model(ModelSection.model_validate(section), SHAPE, 10)


def drawn(std_of: Any) -> nn.Module:
    """12 x 128 ReLU; `std_of` gives a weight's deviation from its fans."""
    model = mlp(12, 128, "relu", "kaiming_normal")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=std_of(module.in_features, module.out_features))
    return model


def batch(num_samples: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_samples, *SHAPE, generator=generator)
    return images, torch.randint(0, 10, (num_samples,), generator=generator)


def linted(model: nn.Module, scale: float = 1.0, **options: Any) -> LintReport:
    images, labels = batch()
    return lint(model, images * scale, labels, config=CONFIG, **options)


@pytest.mark.parametrize(
    ("model", "forward", "backward"),
    [
        # Each layer halves the mean square and has weights of variance 1 / (3 fan_in): 1/6 a layer, both ways.
        (lambda: mlp(12, 128, "relu", "default"), None, 0.5 * math.log10(1 / 6)),
        (lambda: mlp(12, 128, "relu", "kaiming_normal"), None, 0.0),
        # The published wrong formula, std sqrt(6) / (fan_in + fan_out): 128 * 6 / 256^2 / 2 a layer.
        (lambda: drawn(lambda i, o: math.sqrt(6) / (i + o)), None, 0.5 * math.log10(128 * 6 / 256**2 / 2)),
        (lambda: drawn(lambda i, o: 1.0), None, 0.5 * math.log10(128 / 2)),
        # notes of the 12 x 128 probe: sigmoid with Xavier -0.63, tanh with four times Xavier +0.19
        (lambda: mlp(12, 128, "sigmoid", "xavier_normal"), -0.63, -0.63),
        (lambda: mlp(12, 128, "tanh", {"law": "xavier_normal", "gain": 4.0}), 0.0, 0.19),
    ],
)
def test_a_prediction_is_what_theory_says_of_known_nets(model: Any, forward: float | None, backward: float) -> None:
    """To 0.02 decades a layer: weights of a drawn net differ a little from their law."""
    deep = predict(model(), torch.zeros(2, *SHAPE)).deep
    slopes = slopes_of(deep)
    assert slopes.backward == pytest.approx(backward, abs=0.02)
    assert forward is None or slopes.forward == pytest.approx(forward, abs=0.02)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish"])
@pytest.mark.parametrize("init", ["xavier_normal", "auto", {"law": "normal", "std": 0.15}])
def test_one_batch_shows_what_was_foretold(activation: str, init: Any) -> None:
    """Both ways, to a tenth of a decade a layer at the most, in nets as narrow as 96 units."""
    report = linted(mlp(10, 96, activation, init))
    assert report.why_not_predicted == ""
    assert report.measured.forward == pytest.approx(report.predicted.forward, abs=0.1)
    assert report.measured.backward == pytest.approx(report.predicted.backward, abs=0.1)


@pytest.mark.parametrize(
    ("name", "model", "scale", "expected", "overrides"),
    [
        ("deep sigmoid", lambda: mlp(12, 64, "sigmoid", "xavier_normal"), 1.0, {"VANISH_BWD", "COLLAPSE_FWD"}, 2),
        ("torch default", lambda: mlp(12, 128, "relu", "default"), 1.0, {"VANISH_BWD", "COLLAPSE_FWD"}, 1),
        ("wrong Xavier", lambda: drawn(lambda i, o: 6**0.5 / (i + o)), 1.0, {"VANISH_BWD", "COLLAPSE_FWD"}, 1),
        ("zeros", lambda: mlp(3, 64, "relu", "zeros"), 1.0, {"SYMMETRY"}, 1),
        ("constant", lambda: mlp(3, 64, "relu", "constant"), 1.0, {"SYMMETRY"}, 1),
        ("N(0, 1)", lambda: drawn(lambda i, o: 1.0), 1.0, {"EXPLODE", "EXPLODE_FWD"}, 1),
        ("overflow", lambda: drawn(lambda i, o: 1e4), 1.0, {"NONFINITE"}, 1),
        ("raw pixels", lambda: mlp(3, 64, "relu", "kaiming_normal"), 128.0, {"INPUT"}, 0),
        ("tanh, large", lambda: mlp(8, 64, "tanh", {"law": "normal", "std": 0.8}), 1.0, {"SATURATED"}, 1),
    ],
)
def test_a_fault_is_found_before_the_first_step_with_its_fix(
    name: str, model: Any, scale: float, expected: set[str], overrides: int
) -> None:
    """And applying what it proposes clears it."""
    report = linted(model(), scale)
    assert {finding.id for finding in report.warnings} >= expected
    assert all(finding.fix and finding.is_measured for finding in report.warnings)
    assert len(report.overrides) == overrides
    if overrides:
        activation = "relu" if "model.activation=relu" in report.overrides else "tanh" if "tanh" in name else "relu"
        assert linted(mlp(12, 128, activation, "auto"), scale).is_fine
    text = report.text(has_try_fix=True)
    assert all(f"{finding.title}" in text and finding.fix in text for finding in report.warnings)
    assert ("--set model.init=auto; the same command with --try-fix" in text) == bool(overrides)


@pytest.mark.parametrize("case", [case for case in healthy() if case.data == "digits"], ids=lambda case: case.name)
def test_nothing_is_found_in_a_healthy_training(case: Any) -> None:
    """One short line, whichever model, law and activation."""
    run = begin(case, 1, digits())
    report = lint(run.model, run.images_NCHW[:64], run.labels_N[:64], config=CONFIG)
    assert report.left_out == ""
    assert report.is_fine, report.text()
    assert "\n" not in report.text()


class Net(nn.Module):
    """Dropout, batch norm, a frozen layer, functional sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 32), nn.BatchNorm1d(32)
        self.first.requires_grad_(False)
        self.deep = nn.ModuleList(nn.Linear(32, 32) for _ in range(10))
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(images.flatten(1)))
        for layer in self.deep:
            hidden = torch.sigmoid(layer(hidden))
        logits: torch.Tensor = self.head(self.dropout(hidden))
        return logits


def test_a_look_leaves_no_trace() -> None:
    """Weights, buffers, gradients, flags and modes, and all three random generators; also after a fault."""
    torch.manual_seed(3)
    model = Net()
    model.norm.eval()
    images, labels = batch()
    (model(images).sum()).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: None if one.grad is None else one.grad.clone() for name, one in model.named_parameters()}
    flags = [one.requires_grad for one in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    draws = (torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)[1].tolist())  # type: ignore[index]

    report = lint(model, images, labels, config=CONFIG)

    assert {finding.id for finding in report.warnings} >= {"VANISH_BWD"}
    assert "Sigmoid" in report.text(), "functional ones are seen in the graph"
    assert report.why_not_predicted == ""
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, one in model.named_parameters():
        before = gradients[name]
        assert (one.grad is None) == (before is None)
        assert before is None or one.grad is None or torch.equal(one.grad, before)
    assert [one.requires_grad for one in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()) == hooks
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (random.getstate(), np.random.get_state(legacy=True)[1].tolist()) == draws[1:]  # type: ignore[index]


def test_settings_are_proposed_only_where_they_can_do_something() -> None:
    """A functional sigmoid can't be swapped; of a user's modules only the sigmoids are."""
    assert linted(Net(), is_built_in=False).overrides == ("model.init=auto",)
    report = linted(mlp(12, 64, "sigmoid", "xavier_normal"), is_built_in=False)
    assert report.overrides[0] == "model.activation={name: relu, replace: [sigmoid]}"
    assert "--set 'model.activation={name: relu, replace: [sigmoid]}'" in report.text()


class Gate(nn.Module):
    """Squeeze and excitation, on columns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(128, 128), nn.Sigmoid()

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = columns * self.gate(self.layer(columns))
        return gated


def test_a_gate_is_not_what_a_deep_net_fails_of() -> None:
    """Neither the fix nor a setting takes its sigmoid away: the init is the cause."""
    torch.manual_seed(0)
    hidden = [part for _ in range(10) for part in (nn.Linear(128, 128), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), *hidden, Gate(), nn.Linear(128, 10))
    report = linted(model, is_built_in=False)

    assert {finding.id for finding in report.warnings} >= {"VANISH_BWD"}
    assert report.overrides == ("model.init=auto",)
    assert "Sigmoid" not in report.text()


def test_a_finding_has_the_thresholds_it_was_judged_by() -> None:
    images, labels = batch()
    config = replace(CONFIG, thresholds={"VANISH_BWD.warn_slope": -0.05})
    found = lint(mlp(12, 128, "relu", "default"), images, labels, config=config).findings

    assert {-0.05} == {one.thresholds["warn_slope"] for one in found if one.id == "VANISH_BWD"}


def test_a_model_that_cannot_be_looked_at_is_left_out_with_the_reason() -> None:
    """Training it will say what is wrong with it."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such thing\nand more")

    report = linted(Broken())
    assert report.text() == "lint: left out (RuntimeError: no such thing)"
    assert report.is_fine


def test_a_zeroed_head_is_not_called_a_copy_of_itself() -> None:
    """Its rows are equal until its first step, which sets them apart."""
    model = mlp(3, 64, "relu", "kaiming_normal")
    with torch.no_grad():
        model[-1].weight.zero_()  # type: ignore[index,operator,union-attr]
    assert linted(model).is_fine


def test_only_theory_or_only_the_batch() -> None:
    """What the batch does not show is no alarm; what theory has no say in is told as measured."""
    shortcuts = build_model(ModelSection(kind="resnet", width=8, depth=1), SHAPE, 10)
    assert linted(shortcuts).why_not_predicted == "it has shortcuts"

    class Kept(nn.Module):
        """Looks like a deep sigmoid net from its layers, but its signal is scaled up between them."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(12))
            self.head = nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            hidden = images.flatten(1)
            for layer in self.layers:
                hidden = torch.relu(2.45 * layer(hidden))
            logits: torch.Tensor = self.head(hidden)
            return logits

    torch.manual_seed(0)
    report = linted(Kept())
    assert report.is_fine, report.text()
    assert {(one.id, one.severity, one.is_measured) for one in report.findings} >= {
        ("VANISH_BWD", Severity.INFO, False)
    }


def test_the_report_is_json_whatever_was_measured() -> None:
    """No NaN, no infinity."""
    for model in (mlp(3, 64, "relu", "zeros"), drawn(lambda i, o: 1e4), mlp(1, 8, "relu", "auto")):
        written = json.dumps(linted(model).to_dict(), allow_nan=False)
        assert json.loads(written)["layers"]


def test_before_the_first_step_no_fix_speaks_of_a_rate_that_is_not_there_yet() -> None:
    """Units that are dead then have not died of the learning rate, which the lint doesn't know."""
    model = mlp(3, 64, "relu", "kaiming_normal")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.bias.fill_(-30.0)
    images, labels = batch(MAX_SAMPLES)
    (dead,) = [one for one in lint(model, images, labels, config=CONFIG).findings if one.id == "DEAD"]

    assert "biases zero; see that the input" in dead.fix
    assert "learning rate" not in dead.fix
