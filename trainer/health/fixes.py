"""What to do about each finding, with places for its numbers.

In:  detector, kind of finding, evidence and words.
Out: a sentence a person can act on.
A remedy is named only where it addresses the cause: clipping, for one, never makes a small gradient larger.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

from trainer.gains import gains
from trainer.health.records import Finding, Number

FIXES: Mapping[str, Mapping[str, str]] = {
    "NONFINITE": {
        "": "first bad thing: {culprit}. {advice}{replay}",
        "amp": "the loss scale is still being found ({scale:g} now); nothing to do unless more than {limit:g} steps "
        "in a row are skipped",
    },
    "VANISH_BWD": {
        "": "{activation_advice}the backward signal loses a factor {factor:.2f} a layer: {init_advice}. Where depth "
        "must stay, put a norm layer before each activation or add residual connections. Clipping can't help: it only "
        "makes gradients smaller",
    },
    "COLLAPSE_FWD": {
        "": "multiply the initial weights of {layers} by {gain:.3g} ({init_advice}), or use LSUV, or a norm layer "
        "after each"
    },
    "EXPLODE_FWD": {
        "": "multiply the initial weights of {layers} by {gain:.3g} ({init_advice}), or use LSUV, or a norm layer "
        "after each and zero weights in the last layer, which no norm follows"
    },
    "EXPLODE": {
        "spike": "look at the batch first{replay}; if it is in order, clip the global norm{at}. Largest "
        "shares of the squared norm: {shares}",
        "growth": "multiply {rate} or warm up over 100 steps or more, and clip the global norm{at}. "
        "Largest shares of the squared norm: {shares}{replay}",
        "depth": "the backward signal grows by a factor {factor:.2f} a layer: {init_advice}; clipping the global "
        "norm{at} bounds the step meanwhile, but not the imbalance between layers{replay}",
        "fp16": "scaled gradients of {layers} reach {scaled:.3g} of 65504: train in bf16 (precision: bf16 in a job), "
        "or, in a loop of your own, give the GradScaler a higher growth_interval{replay}",
    },
    "UPDATE_RATIO": {
        "large": "multiply {rate}: {layers} then move by 1e-3 of themselves a step",
        "small": "{advice}",
    },
    "ADAM_FLOOR": {
        "": "set Adam's eps to {new_eps:.1g} (optimizer.eps in a job; now {eps:.1g}), or, in a loop of your own, "
        "multiply the loss by {loss_factor:.2g}: sqrt(v_hat) of {layers} is {root_v:.2g}, so eps decides the step"
    },
    "DEAD": {"": "{layers}: {advice}"},
    "SATURATED": {
        "": "{layers}: put a norm layer before {activation}, or {remedy}; "
        "normalise the input to mean 0, std 1; or use ReLU with kaiming_normal"
    },
    "CLIP": {
        "aggressive": "set the clip threshold to {p90:.3g} (the 90th percentile of the norms before clipping; now "
        "{threshold:.3g}); if that is more than you want to allow, the learning rate is too high",
        "idle": "no step of {num_steps} came near {threshold:.3g}: set it to {p90:.3g} (the p90), or take it out",
    },
    "FROZEN": {
        "not in optimizer": "give {layers} to the optimizer, or say that you mean it: requires_grad_(False). If "
        "another optimizer in a loop of your own has them, give GradientHealth both",
        "no gradient": "{layers} took part in the forward pass but got no gradient in {num_samples} measured steps: "
        "look for detach(), no_grad() or .item() between it and the loss",
        "zero gradient": "the gradient of {layers} was exactly zero in {num_samples} measured steps: look for dead "
        "units after it, zero weights behind it (use {init_advice}), or a product with zero",
        "by request": "nothing, if {layers} are meant to be frozen (requires_grad is False)",
    },
    "SYMMETRY": {
        "": "draw the weights of {layers} at random: {init_advice}. Zeros are right only for biases, the last layer "
        "of a residual branch, and the head"
    },
    "INPUT": {
        "": "{advice}",
        "labels": "all {num_samples} samples had the label {label:g}: look at the source's classes (is the path one "
        "level too deep?), at shuffling, and at what maps labels",
    },
    "RESUME": {
        "optimizer state": "the optimizer held state for {before} parameters when this was saved and for {now} now: "
        "load optimizer.state_dict() after the model's, before the first step",
        "jump": "norm or loss left its level right after the resume: restore the optimizer's, scaler's, schedule's "
        "and data stream's state, not only the weights",
    },
    "LOSS0": {
        "": "multiply the initial weights of the last layer by {gain:.2g} (or set them to zero), its bias to zero; "
        "see that the loss gets logits, not probabilities, and labels of {num_classes} classes"
    },
}


CAUSES: Mapping[str, tuple[str, ...]] = {
    "UPDATE_RATIO/small": ("VANISH_BWD", "COLLAPSE_FWD", "DEAD", "SATURATED"),
}
"""Detector and kind -> detectors whose faults bring it about: while one of these is open, it has no fix of its own."""

OF_PARAMETERS = ("UPDATE_RATIO", "ADAM_FLOOR", "FROZEN", "SYMMETRY", "EXPLODE/fp16")
"""Detectors, or one kind, whose findings name parameters; all others name layers."""

LAWS: Mapping[str, tuple[str, str]] = {
    "ReLU": ("kaiming_normal", "relu"),
    "ReLU6": ("kaiming_normal", "relu6"),
    "LeakyReLU": ("kaiming_normal", "leaky_relu"),
    "PReLU": ("kaiming_normal", "prelu"),
    "ELU": ("kaiming_normal", "elu"),
    "SELU": ("lecun_normal", "selu"),
    "GELU": ("kaiming_normal", "gelu"),
    "SiLU": ("kaiming_normal", "silu"),
    "Mish": ("kaiming_normal", "mish"),
    "Hardswish": ("kaiming_normal", "hardswish"),
    "Tanh": ("xavier_normal", "tanh"),
}
"""Class of an activation -> (law, its name in `trainer.gains`): the forward gain keeps a signal's size."""
HOPELESS = ("Sigmoid", "Hardsigmoid")
"""No scale of the weights keeps both directions (notes 3a: forward gain 1.85, backward gain 4.72)."""


def init_advice(activation: str, fan_in: int) -> str:
    """Names a law, its gain, and the standard deviation it means here."""
    if activation in HOPELESS:
        return f"no init suits a deep {activation}: ReLU with kaiming_normal{_std(1.414, fan_in)}"
    law, name = LAWS.get(activation, LAWS["ReLU"])
    gain = _gain(name)
    reader = f" for {activation}" if activation else ""
    return f"{law} with gain {gain:.4g}{reader}{_std(gain, fan_in)}"


@cache
def _gain(name: str) -> float:
    return gains(name).forward


def _std(gain: float, fan_in: int) -> str:
    return f", std {gain / fan_in**0.5:.3g} at fan_in {fan_in}" if fan_in > 0 else ""


def fix_text(finding: Finding, open_ids: Collection[str] = ()) -> str:
    """The table's sentence with this finding's numbers in it; or, where one of `open_ids` is its cause, that."""
    causes = [one for one in CAUSES.get(f"{finding.id}/{finding.kind}", ()) if one in open_ids]
    if causes:
        return f"this follows from {' and '.join(causes)}, open here too: mend that first, no learning rate does"
    values: dict[str, Number] = {"layers": _named(finding), "replay": "", **finding.evidence, **finding.words}
    words = {name: _Word(value) if isinstance(value, str) else value for name, value in values.items()}
    return FIXES[finding.id][finding.kind].format(**words)


def _named(finding: Finding) -> str:
    names = finding.layers
    if len(names) <= 3:
        return ", ".join(names) or "the model"
    is_of_parameters = not {finding.id, f"{finding.id}/{finding.kind}"}.isdisjoint(OF_PARAMETERS)
    return f"{names[0]} to {names[-1]} ({len(names)} {'parameters' if is_of_parameters else 'layers'})"


class _Word(str):
    """A word where the table expects a number (`inf`) is printed as it is."""

    __slots__ = ()

    def __format__(self, wanted: str) -> str:
        return str(self)
