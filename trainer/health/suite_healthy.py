"""The healthy trainings: models x init x activation x optimizer x clip, on digits and on a stream's batches.

In:  nothing.
Out: `healthy()`; none of them may raise a WARN or CRITICAL.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.health.suite import Case
from trainer.health.suite_models import (
    Branches,
    FrozenBackbone,
    FunctionalConvNet,
    OwnModel,
    SmallHead,
    SplitAttention,
    TiedAutoencoder,
    TinyTransformer,
    TwoHeads,
)

HE = "kaiming_normal"
SGD = "sgd"
STREAM_STEPS = 320
"""Steps of 32 samples: a few epochs of a small folder of images."""

QUICK = (
    "mlp 3x64 relu he adamw",
    "own: tied, frozen, unused",
    "cnn auto adamw 3e-3 cosine clip 1",
    "mlp 2x128 relu he adamw",
    "own: container, gate, unused",
)
"""Cheap ones, different from each other: a smoke test's."""


def mlp(depth: int, width: int, activation: str, init: str) -> dict[str, object]:
    return {"kind": "mlp", "depth": depth, "width": width, "activation": activation, "init": init}


def convolutional(kind: str, width: int, depth: int, activation: str, init: str) -> dict[str, object]:
    return {"kind": kind, "width": width, "depth": depth, "activation": activation, "init": init}


def norm(threshold: float) -> dict[str, object]:
    return {"kind": "norm", "threshold": threshold}


def healthy() -> list[Case]:
    """Trainings with which nothing is wrong."""
    return [*_on_digits(), *_on_a_stream()]


def _on_digits() -> list[Case]:
    resnet = convolutional("resnet", 8, 1, "relu", "default")
    return [
        Case(name="mlp 3x64 relu he adamw", model=mlp(3, 64, "relu", HE)),
        Case(name="mlp 3x64 relu default adam", model=mlp(3, 64, "relu", "default"), optimizer="adam"),
        Case(name="mlp 4x128 relu default adam", model=mlp(4, 128, "relu", "default"), optimizer="adam"),
        Case(name="mlp 5x64 relu default adam", model=mlp(5, 64, "relu", "default"), optimizer="adam"),
        Case(name="mlp 2x256 relu he sgd .01", model=mlp(2, 256, "relu", HE), optimizer=SGD, lr=0.01),
        Case(name="mlp 12x128 relu he adam 3e-4", model=mlp(12, 128, "relu", HE), optimizer="adam", lr=3e-4),
        Case(name="mlp 20x64 relu he sgd 1e-3", model=mlp(20, 64, "relu", HE), optimizer=SGD, lr=1e-3),
        Case(name="mlp 6x64 leaky he adamw clip 1", model=mlp(6, 64, "leaky_relu", HE), clip=norm(1.0)),
        Case(name="mlp 6x64 tanh xavier adamw", model=mlp(6, 64, "tanh", "xavier_normal")),
        Case(name="mlp 10x64 gelu he adamw", model=mlp(10, 64, "gelu", HE)),
        Case(name="mlp 8x64 silu he adamw 3e-4", model=mlp(8, 64, "silu", HE), lr=3e-4),
        Case(name="mlp 6x64 elu orthogonal sgd", model=mlp(6, 64, "elu", "orthogonal"), optimizer=SGD, lr=1e-3),
        Case(name="mlp 1x32 sigmoid xavier adam", model=mlp(1, 32, "sigmoid", "xavier_uniform"), optimizer="adam"),
        Case(name="mlp 4x512 relu he adamw", model=mlp(4, 512, "relu", HE)),
        Case(name="cnn 2x16 relu he adamw", model=convolutional("cnn", 16, 2, "relu", HE)),
        Case(
            name="cnn 3x8 relu he sgd .05 clip 1",
            model=convolutional("cnn", 8, 3, "relu", HE),
            optimizer=SGD,
            lr=0.05,
            clip=norm(1.0),
        ),
        Case(name="resnet 8 he adamw", model=convolutional("resnet", 8, 1, "relu", HE)),
        Case(name="resnet 8 default sgd .05", model=resnet, optimizer=SGD, lr=0.05),
        Case(name="own: tied, frozen, unused", build=OwnModel),
        Case(name="own: autoencoder, tied by t()", build=TiedAutoencoder, optimizer="adam"),
        Case(name="own: transformer layer", build=TinyTransformer),
        Case(name="own: separate q, k, v", build=SplitAttention),
        Case(name="own: two sigmoid heads", build=TwoHeads, optimizer="adam", lr=3e-3, num_steps=600),
        Case(name="own: small head", build=SmallHead, optimizer="adam", lr=3e-4),
    ]


def _on_a_stream() -> list[Case]:
    """With the stream's own learning curve: a schedule, augmented images, 32 a batch."""
    cnn, resnet = convolutional("cnn", 8, 3, "relu", "auto"), convolutional("resnet", 4, 1, "silu", HE)
    mish = {**resnet, "activation": "mish", "init": "auto"}
    auto, agc = {"kind": "auto"}, {"kind": "agc"}
    own = [
        Case(name="own: functional cnn", build=FunctionalConvNet),
        Case(name="own: frozen backbone", build=FrozenBackbone, optimizer="adam"),
        Case(name="own: tied, frozen, unused, sgd", build=OwnModel, optimizer=SGD, lr=0.01),
        Case(name="own: container, gate, unused", build=Branches, clip=norm(1.0)),
        Case(name="own: transformer, cosine", build=TinyTransformer, is_cosine=True),
    ]
    cases = [
        Case(name="cnn auto adamw 3e-3 cosine clip 1", model=cnn, lr=3e-3, is_cosine=True, clip=norm(1.0)),
        Case(name="cnn gelu he adam clip auto", model={**cnn, "activation": "gelu", "init": HE}, clip=auto),
        Case(name="cnn default sgd .05", model={**cnn, "init": "default"}, optimizer=SGD, lr=0.05),
        Case(name="resnet silu he sgd .05 agc", model=resnet, optimizer=SGD, lr=0.05, clip=agc),
        Case(name="resnet mish auto adamw cosine", model=mish, is_cosine=True),
        Case(name="mlp 2x128 relu he adamw", model=mlp(2, 128, "relu", HE)),
        Case(name="mlp 6x128 leaky he clip 1", model=mlp(6, 128, "leaky_relu", HE), clip=norm(1.0)),
        Case(name="mlp 8x64 tanh xavier sgd 1e-3", model=mlp(8, 64, "tanh", "xavier_normal"), optimizer=SGD, lr=1e-3),
        Case(name="mlp 8x64 selu lecun adam 3e-4", model=mlp(8, 64, "selu", "lecun_normal"), optimizer="adam", lr=3e-4),
        Case(name="mlp 10x64 gelu lsuv adamw", model=mlp(10, 64, "gelu", "lsuv")),
        Case(name="mlp 4x64 elu value clip sgd", model=mlp(4, 64, "elu", "auto"), optimizer=SGD, lr=0.01,
             clip={"kind": "value", "threshold": 0.1}),
        *own,
    ]  # fmt: skip
    return [replace(case, data="stream", batch_size=32, num_steps=STREAM_STEPS) for case in cases]
