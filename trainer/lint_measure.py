"""What one batch shows before the first step: a forward and a backward pass, and the rules of gradient health on them.

In:  a model that nobody needs any more (a copy), one batch, the health configuration.
Out: `Measured`: the sampled step, the gradient's norm, the rules' findings.
No optimizer step; what it draws (dropout) is drawn with the caller's random state put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from trainer.health.detectors import HealthConfig
from trainer.health.measure import Activity, DeepProbe
from trainer.health.records import DeepStats, Finding, ParameterStats, Severity, StepStats
from trainer.health.rules_depth import Depth
from trainer.health.rules_input import Input
from trainer.health.rules_layer import Dead, Saturated, Symmetry
from trainer.health.rules_nonfinite import NonFinite
from trainer.health.rules_step import FirstLoss, Progress
from trainer.norms import exact_norms
from trainer.random_state import random_state_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One batch's pass through a model in its first state."""

    deep: DeepStats
    loss: float
    grad_norm: float
    findings: tuple[Finding, ...]
    """Those with a severity."""


def measure(
    model: nn.Module,
    images_NCHW: torch.Tensor,
    labels_N: torch.Tensor,
    config: HealthConfig,
    activations: Mapping[str, str],
) -> Measured:
    """What the detectors that need no second step say of this batch; in float32, whatever the job's precision.

    `activations`: layer -> class of the activation that follows, where hooks may not see it.
    """
    deep, step = _passed(model, images_NCHW, labels_N)
    layers = tuple(replace(one, activation=one.activation or activations.get(one.name, "")) for one in deep.layers)
    deep = replace(deep, layers=layers)
    # A batch's pixels are thousands, enough to judge them by, though the rule waits for more samples. Its labels are
    # not: a small batch has one label by chance.
    enough = config.limit("INPUT", "min_samples")
    few = replace(config, thresholds={**config.thresholds, "INPUT.min_samples": float(min(len(labels_N), enough))})
    found = [
        finding
        for finding in judged(step, deep, few)
        if finding.severity is not None
        and finding.id not in config.off
        and (finding.kind != "labels" or len(labels_N) >= enough)
    ]
    return Measured(deep=deep, loss=step.loss, grad_norm=step.grad_norm, findings=_without_consequences(found))


def judged(step: StepStats, deep: DeepStats, config: HealthConfig) -> Iterator[Finding]:
    """What the rules say that can speak after one step."""
    progress = Progress()
    progress.remember(step)
    nonfinite = NonFinite()
    bad = [one for one in nonfinite.see_step(step, progress, config) if one.severity is not None]
    if bad or not all(layer.is_finite for layer in deep.layers):
        # The first module with a bad output says more than the loss; of what follows from it, nothing does.
        yield from list(nonfinite.see_deep(deep, progress, config)) or bad
        yield from Input().see_deep(deep, progress, config)
        return
    yield from FirstLoss().see_step(step, progress, config)
    for rule in (Depth(), Saturated(), Dead(), Input()):
        yield from rule.see_deep(deep, progress, config)
    # It begins to look after a first step, since a zeroed head is a copy of itself until then: see `_after_one_step`.
    after = replace(deep, step=int(config.limit("SYMMETRY", "first_step")))
    yield from Symmetry().see_deep(after, progress, config)


def _without_consequences(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """A first loss far off is no news where its cause was found before the head, whose weights are not at fault."""
    causes = {one.id for one in found if one.severity is not None and one.severity >= Severity.WARN}
    if not causes & {"INPUT", "EXPLODE_FWD", "SATURATED"}:
        return tuple(found)
    return tuple(replace(one, severity=Severity.INFO) if one.id == "LOSS0" else one for one in found)


def _passed(model: nn.Module, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> tuple[DeepStats, StepStats]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1.0)  # never steps: it tells the probe which parameters would move
    activity: dict[str, Activity] = {}
    probe = DeepProbe(model, [optimizer], activity, window=1 << 62)
    try:
        with random_state_kept(), torch.enable_grad():
            loss = functional.cross_entropy(model.train()(images_NCHW).float(), labels_N)
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        probe.detach()
    probe.gradients(None, images_NCHW, labels_N, None)
    probe.after_update()
    numbers = torch.cat([one.detach().reshape(-1).float().cpu() for one in probe.parcel.tensors]).tolist()
    deep = probe.reader(0, None, False)(numbers)
    named = dict(model.named_parameters())
    gradients = [parameter.grad for parameter in named.values() if parameter.grad is not None]
    grad_norm = math.hypot(*exact_norms(gradients).tolist()) if gradients else 0.0
    are_finite = exact_norms([one.detach() for one in named.values()]).isfinite().tolist()
    step = StepStats(
        step=0,
        loss=loss.item(),
        lr=0.0,
        grad_norm=grad_norm,
        is_input_finite=bool(torch.isfinite(images_NCHW).all()),
        bad_weights=tuple(name for name, is_finite in zip(named, are_finite, strict=True) if not is_finite),
    )
    return replace(deep, parameters=_after_one_step(deep, named)), step


def _after_one_step(deep: DeepStats, named: dict[str, nn.Parameter]) -> tuple[ParameterStats, ...]:
    """Rows as a first step of gradient descent would leave them: equal only where weights and gradients are.

    So a zeroed head is no copy of itself: its rows' gradients differ.
    """
    return tuple(
        replace(one, row_spread=max(one.row_spread, _row_spread(named[one.name].grad)))
        if one.row_spread >= 0.0
        else one
        for one in deep.parameters
    )


def _row_spread(gradient: torch.Tensor | None) -> float:
    """As `ParameterStats.row_spread`, of a gradient."""
    if gradient is None:
        return 0.0
    rows = gradient.detach().flatten(1).float()
    largest = rows.abs().amax().clamp_min(1e-38)
    return float((rows - rows[:1]).abs().amax() / largest)
