"""The seeded faults, and who must name each.

In:  nothing.
Out: `faulty()`.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.health import suite_spoils as spoils
from trainer.health.suite import Case
from trainer.health.suite_healthy import HE, STREAM_STEPS, convolutional, mlp, norm
from trainer.health.suite_models import Detached

QUICK_CURES = (
    "clip 1e-6",
    "weight not in optimizer",
    "pixels 0 to 255",
    "inf in a weight",
)
"""Cheap ones whose fixes are of different kinds: a smoke test's."""


def faulty() -> list[Case]:
    """Trainings with one fault each, and the detectors that may name it."""
    # What is wrong with weights shows at once; half the steps tell whether a fix holds.
    of_weights = [replace(case, num_steps=150) for case in _of_weights()]
    return [*of_weights, *_of_steps(), *_of_numbers(), *_on_a_stream()]


def _of_weights() -> list[Case]:
    deep, small = mlp(12, 128, "relu", HE), mlp(3, 64, "relu", HE)
    default = mlp(12, 128, "relu", "default")
    return [
        Case(name="deep sigmoid", model=mlp(12, 64, "sigmoid", "xavier_normal"), expected=("VANISH_BWD",), within=10),
        Case(
            name="torch default, deep relu",
            model=default,
            expected=("COLLAPSE_FWD", "VANISH_BWD"),
            within=10,
            optimizer="sgd",
            lr=0.01,
        ),
        Case(
            name="wrong Xavier std",
            model=deep,
            prepare=spoils.drawn(0.0),
            expected=("COLLAPSE_FWD", "VANISH_BWD"),
            within=10,
        ),
        Case(name="zero init", model=mlp(3, 64, "relu", "zeros"), expected=("SYMMETRY",), within=5),
        Case(name="N(0, 1) init", model=deep, prepare=spoils.drawn(1.0), expected=("EXPLODE_FWD",), within=10),
        Case(name="N(0, .01) init", model=deep, prepare=spoils.drawn(0.01), expected=("COLLAPSE_FWD",), within=10),
        Case(
            name="tanh, weights x4",
            model=mlp(8, 64, "tanh", HE),
            prepare=spoils.drawn(0.8),
            expected=("SATURATED",),
            within=50,
        ),
        Case(name="head x30", model=small, prepare=spoils.loud_head, expected=("LOSS0",), within=1),
        Case(name="dead relus by bias", model=small, prepare=spoils.negative_biases, expected=("DEAD",), within=50),
    ]


def _of_steps() -> list[Case]:
    small, deeper = mlp(3, 64, "relu", HE), mlp(6, 64, "relu", HE)
    too_fast = ("EXPLODE", "UPDATE_RATIO", "NONFINITE")
    return [
        Case(name="lr x100, adam", model=small, lr=0.1, expected=("UPDATE_RATIO",), within=50),
        Case(name="lr x100, sgd", model=deeper, optimizer="sgd", lr=1.0, expected=too_fast, within=50),
        Case(
            name="lr grows 5 % a step",
            model=deeper,
            optimizer="sgd",
            lr=1e-3,
            spoil=spoils.growing_rate,
            expected=too_fast,
            within=200,
        ),
        Case(name="lr / 1e5", model=small, optimizer="sgd", lr=1e-7, expected=("UPDATE_RATIO",), within=100),
        Case(name="clip 1e-6", model=small, optimizer="sgd", lr=0.01, clip=norm(1e-6), expected=("CLIP",), within=60),
        Case(name="adam eps 1", model=small, prepare=spoils.large_eps, expected=("ADAM_FLOOR",), within=50),
        Case(name="detached layer", build=Detached, expected=("FROZEN",), within=40),
        Case(
            name="weight not in optimizer",
            model=small,
            prepare=spoils.not_in_optimizer,
            expected=("FROZEN",),
            within=5,
        ),
        Case(
            name="optimizer state lost",
            model=small,
            spoil=spoils.forgotten_optimizer,
            expected=("RESUME",),
            since=spoils.RESUMED_AT,
            within=5,
        ),
    ]


def _of_numbers() -> list[Case]:
    small = mlp(3, 64, "relu", HE)
    return [
        Case(name="pixels 0 to 255", model=small, prepare=spoils.raw_pixels, expected=("INPUT",), within=50),
        Case(name="one label", model=small, prepare=spoils.one_label, expected=("INPUT",), within=60),
        Case(
            name="NaN in samples",
            model=small,
            spoil=spoils.nan_samples,
            expected=("NONFINITE",),
            since=spoils.NAN_AT,
            within=1,
        ),
        Case(
            name="inf in a weight",
            model=small,
            spoil=spoils.inf_weight,
            expected=("NONFINITE",),
            since=spoils.INF_AT,
            within=1,
        ),
        Case(
            name="one batch x100",
            model=small,
            optimizer="sgd",
            lr=0.01,
            spoil=spoils.spike,
            expected=("EXPLODE",),
            since=spoils.SPIKE_AT,
            within=1,
        ),
        Case(name="fp16 overflow", model=small, scale=2.0**24, expected=("NONFINITE",), within=10),
    ]


def _on_a_stream() -> list[Case]:
    cnn = convolutional("cnn", 8, 3, "relu", "auto")
    default, collapse = mlp(12, 64, "relu", "default"), ("COLLAPSE_FWD", "VANISH_BWD")
    cases = [
        Case(name="no Normalize in the chain", model=cnn, prepare=spoils.raw_pixels, expected=("INPUT",), within=60),
        Case(name="Normalize of other data", model=cnn, prepare=spoils.other_normalize, expected=("INPUT",), within=60),
        Case(name="deep sigmoid, stream", model=mlp(10, 64, "sigmoid", "auto"), expected=("VANISH_BWD",), within=10),
        Case(name="torch default, deep relu, stream", model=default, expected=collapse, within=10),
        Case(name="lr x100, cnn", model=cnn, lr=0.3, expected=("UPDATE_RATIO", "EXPLODE", "NONFINITE"), within=50),
        Case(
            name="tanh driven into saturation",
            model=mlp(8, 64, "tanh", "xavier_normal"),
            optimizer="sgd",
            lr=0.01,
            expected=("SATURATED",),
            within=150,
        ),
        Case(name="one label, stream", model=cnn, prepare=spoils.one_label, expected=("INPUT",), within=60),
    ]
    return [replace(case, data="stream", batch_size=32, num_steps=STREAM_STEPS) for case in cases]
