"""Lint: what keeps a model from learning, said before its first step.

In:  a model with its initial weights, one batch, the health configuration.
Out: `LintReport`: what theory foretells from the weights, what the batch shows, where the two agree; the fix.
Works on a copy: model, buffers, gradients and every random generator are as they were.

The prediction needs no data and says why; the measurement decides. What only one of them says is told as such: theory
knows wide plain chains only, and one batch is one batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from trainer.health.detectors import DETECTORS, HealthConfig
from trainer.health.fixes import fix_text
from trainer.health.records import DeepStats, Finding, Severity
from trainer.health.rules_depth import Depth, squashing_activations
from trainer.health.rules_step import Progress
from trainer.lint_measure import Measured, measure
from trainer.lint_predict import Prediction, predict
from trainer.lint_report import LintFinding, LintReport, profile_rows, slopes_of
from trainer.random_state import random_state_kept

MAX_SAMPLES = 256
"""Of the batch; the profiles of 64 samples agree with those of 4,096 to a hundredth of a decade a layer."""
FORETOLD = ("VANISH_BWD", "COLLAPSE_FWD", "EXPLODE_FWD", "EXPLODE/depth")
"""What theory has a say in; of the others only the batch tells."""

CURED_BY_INIT = {"VANISH_BWD", "COLLAPSE_FWD", "EXPLODE_FWD", "EXPLODE", "SYMMETRY", "SATURATED", "DEAD", "LOSS0"}
"""At the first step, where nothing else has made the weights what they are."""
CURED_BY_ACTIVATION = {"VANISH_BWD", "COLLAPSE_FWD", "SATURATED"}


def lint(
    model: nn.Module,
    images_NCHW: torch.Tensor,
    labels_N: torch.Tensor,
    *,
    config: HealthConfig | None = None,
    is_built_in: bool = True,
) -> LintReport:
    """Finds what one batch can show of a model that will not train; never raises for what the model does.

    A model that can't be copied, or fails on the batch, gives a report that says so: training it will say more.
    `is_built_in`: it has one activation, which a job's setting names; else settings swap some of its modules.
    """
    config = config or HealthConfig()
    images_NCHW, labels_N = images_NCHW[:MAX_SAMPLES], labels_N[:MAX_SAMPLES]
    try:
        with random_state_kept():
            copied = copy.deepcopy(model)
            copied.zero_grad(set_to_none=True)
            prediction = predict(copied, torch.zeros_like(images_NCHW[:2]))
            measured = measure(copied, images_NCHW, labels_N, config, prediction.activations)
    except Exception as error:  # the user's own code, or no memory for a copy
        return LintReport(left_out=f"{type(error).__name__}: {error}".splitlines()[0][:200])
    foretold = _judged(prediction, config)
    return LintReport(
        why_not_predicted=prediction.why_not,
        predicted=slopes_of(prediction.deep),
        measured=slopes_of(measured.deep),
        layers=profile_rows(prediction.deep, measured.deep),
        num_layers=len(measured.deep.layers),
        first_loss=measured.loss,
        guess=math.log(config.num_classes) if config.num_classes > 1 else math.nan,
        grad_norm=measured.grad_norm,
        findings=_compared(foretold, measured, config, has_theory=prediction.deep is not None),
        overrides=overrides_for(measured.findings, measured.deep, model, is_built_in=is_built_in),
    )


def overrides_for(
    findings: Sequence[Finding], deep: DeepStats, model: nn.Module, *, is_built_in: bool
) -> tuple[str, ...]:
    """The `--set` values that carry out the fixes as far as settings can: another activation, initial weights."""
    names = {one.id for one in findings if one.severity is not None and one.severity >= Severity.WARN}
    overrides = []
    if squashing_activations(deep.layers) and names & CURED_BY_ACTIVATION:
        if is_built_in:
            overrides.append("model.activation=relu")
        elif any(isinstance(module, nn.Sigmoid) for module in model.modules()):  # functional ones can't be swapped
            overrides.append("model.activation={name: relu, replace: [sigmoid]}")
    # Where the loss is not finite, the batch itself may be; then no setting helps.
    is_blown_up = "NONFINITE" in names and deep.inputs is not None and all(map(math.isfinite, deep.inputs.square_sums))
    if names & CURED_BY_INIT or is_blown_up:
        overrides.append("model.init=auto")
    return tuple(overrides)


def _judged(prediction: Prediction, config: HealthConfig) -> tuple[Finding, ...]:
    if prediction.deep is None:
        return ()
    found = Depth().see_deep(prediction.deep, Progress(), config)
    return tuple(one for one in found if one.severity is not None and one.id not in config.off)


def _compared(
    foretold: Sequence[Finding], measured: Measured, config: HealthConfig, *, has_theory: bool
) -> tuple[LintFinding, ...]:
    """Each finding once, worst first; one that the batch does not confirm is no alarm."""
    shown = {_key(one): one for one in measured.findings}
    expected = {_key(one): one for one in foretold}
    found = []
    for key, finding in shown.items():
        is_foretold = key in expected if has_theory and key in FORETOLD else None
        found.append(_lint_finding(finding, config, is_predicted=is_foretold, is_measured=True))
    for key, finding in expected.items():
        if key not in shown:
            found.append(_lint_finding(finding, config, is_predicted=True, is_measured=False))
    return tuple(sorted(found, key=lambda one: -one.severity))


def _lint_finding(
    finding: Finding, config: HealthConfig, *, is_predicted: bool | None, is_measured: bool
) -> LintFinding:
    assert finding.severity is not None
    return LintFinding(
        id=finding.id,
        kind=finding.kind,
        severity=finding.severity if is_measured else Severity.INFO,
        layers=finding.layers,
        evidence=dict(finding.evidence),
        thresholds={name: config.limit(finding.id, name) for name in DETECTORS[finding.id].thresholds},
        fix=fix_text(finding),
        is_predicted=is_predicted,
        is_measured=is_measured,
    )


def _key(finding: Finding) -> str:
    return f"{finding.id}/{finding.kind}".rstrip("/")
