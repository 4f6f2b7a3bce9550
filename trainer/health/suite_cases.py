"""The cases themselves: which trainings are healthy, which are not, and who must say so.

In:  nothing.
Out: `healthy()`, `faulty()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from trainer.health.layers import is_layer
from trainer.health.suite import Case, Run


def mlp(depth: int, width: int, activation: str, init: str) -> dict[str, object]:
    return {"kind": "mlp", "depth": depth, "width": width, "activation": activation, "init": init}


def healthy() -> list[Case]:
    """Models × init × activation × optimizer × clip that train as they should."""
    he = "kaiming_normal"
    return [
        Case(name="mlp 3x64 relu he adamw", model=mlp(3, 64, "relu", he)),
        Case(name="mlp 3x64 relu default adam", model=mlp(3, 64, "relu", "default"), optimizer="adam"),
        Case(name="mlp 2x256 relu he sgd .01", model=mlp(2, 256, "relu", he), optimizer="sgd", lr=0.01),
        Case(name="mlp 12x128 relu he adam 3e-4", model=mlp(12, 128, "relu", he), optimizer="adam", lr=3e-4),
        Case(name="mlp 20x64 relu he sgd 1e-3", model=mlp(20, 64, "relu", he), optimizer="sgd", lr=1e-3),
        Case(name="mlp 6x64 leaky he adamw clip 1", model=mlp(6, 64, "leaky_relu", he), clip=1.0),
        Case(name="mlp 6x64 tanh xavier adamw", model=mlp(6, 64, "tanh", "xavier_normal")),
        Case(name="mlp 10x64 gelu he adamw", model=mlp(10, 64, "gelu", he)),
        Case(name="mlp 8x64 silu he adamw 3e-4", model=mlp(8, 64, "silu", he), lr=3e-4),
        Case(name="mlp 6x64 elu orthogonal sgd", model=mlp(6, 64, "elu", "orthogonal"), optimizer="sgd", lr=1e-3),
        Case(name="mlp 1x32 sigmoid xavier adam", model=mlp(1, 32, "sigmoid", "xavier_uniform"), optimizer="adam"),
        Case(name="mlp 4x512 relu he adamw", model=mlp(4, 512, "relu", he)),
        Case(name="cnn 2x16 relu he adamw", model={"kind": "cnn", "width": 16, "depth": 2}),
        Case(
            name="cnn 3x8 relu he sgd .05 clip 1", model={"kind": "cnn", "width": 8}, optimizer="sgd", lr=0.05, clip=1.0
        ),
        Case(name="resnet 8 he adamw", model={"kind": "resnet", "width": 8, "depth": 1}),
        Case(
            name="resnet 8 default sgd .05",
            model={"kind": "resnet", "width": 8, "depth": 1, "init": "default"},
            optimizer="sgd",
            lr=0.05,
        ),
        Case(name="a user's own model", build=OwnModel),
    ]


class OwnModel(nn.Module):
    """Tied weights, a frozen part, BatchNorm, an unused parameter and a functional ReLU; nothing is wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(64, 64)
        self.frozen.requires_grad_(False)
        self.first, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.tied = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.tied.weight
        self.unused = nn.Linear(8, 8)
        self.spare = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.first(self.frozen(images.flatten(1)))))
        hidden = torch.relu(self.again(torch.relu(self.tied(hidden))))
        logits: torch.Tensor = self.head(hidden)
        return logits


def _layers(run: Run) -> list[nn.Module]:
    return [module for module in run.model.modules() if is_layer(module)]


def _draw(std: float) -> Callable[[Run], None]:
    """`std` of all weights; 0 for the wrong Xavier, whose 'std' is sqrt(6) / (fan_in + fan_out)."""

    def prepare(run: Run) -> None:
        with torch.no_grad():
            for layer in _layers(run):
                weight = layer.weight
                assert isinstance(weight, torch.Tensor)
                nn.init.normal_(weight, std=std or math.sqrt(6) / (weight.shape[0] + weight[0].numel()))

    return prepare


def _negative_biases(run: Run) -> None:
    with torch.no_grad():
        for layer in _layers(run)[1:-1]:
            assert isinstance(layer.bias, torch.Tensor)
            layer.bias.fill_(-20.0)


def _raw_pixels(run: Run) -> None:
    low, high = run.images_NCHW.min(), run.images_NCHW.max()
    run.images_NCHW = (run.images_NCHW - low) / (high - low) * 255


def _one_label(run: Run) -> None:
    run.labels_N.fill_(3)


def _nan_sample(run: Run, step: int) -> None:
    # Every batch of 64 of 1,797 digits holds one of these 100 with a chance of 97 %.
    run.images_NCHW[:100] = math.nan if step == 100 else run.images_NCHW[:100].nan_to_num(0.0)


def _inf_weight(run: Run, step: int) -> None:
    if step == 60:
        with torch.no_grad():
            weight = _layers(run)[1].weight
            assert isinstance(weight, torch.Tensor)
            weight[0, 0] = math.inf


def _spike(run: Run, step: int) -> None:
    if step in (120, 121):
        run.images_NCHW *= 100.0 if step == 120 else 0.01


def _not_in_optimizer(run: Run) -> None:
    kept = [one for name, one in run.model.named_parameters() if name != "3.weight"]
    run.optimizer = torch.optim.AdamW(kept, lr=run.case.lr)


class Detached(nn.Module):
    """The first layer is cut off the loss by detach()."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(images.flatten(1))).detach()
        logits: torch.Tensor = self.head(torch.relu(self.second(hidden)))
        return logits


def _forgotten_optimizer(run: Run, step: int) -> None:
    if step == 120:
        state = run.health.state_dict()
        run.health.detach()
        run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=run.case.lr)
        config = run.health.config
        run.health = type(run.health)(run.model, run.optimizer, every_steps=50, light_every_steps=1, config=config)
        run.health.load_state_dict(state)


def faulty() -> list[Case]:
    """Each with one fault, and the detectors that may name it."""
    he = "kaiming_normal"
    deep = mlp(12, 128, "relu", he)
    small = mlp(3, 64, "relu", he)
    return [
        Case(name="deep sigmoid", model=mlp(12, 64, "sigmoid", "xavier_normal"), expected=("VANISH_BWD",), within=10),
        Case(
            name="torch default, deep relu",
            model=mlp(12, 128, "relu", "default"),
            expected=("COLLAPSE_FWD", "VANISH_BWD"),
            within=10,
            optimizer="sgd",
            lr=0.01,
        ),
        Case(name="wrong Xavier", model=deep, prepare=_draw(0.0), expected=("COLLAPSE_FWD", "VANISH_BWD"), within=10),
        Case(name="zero init", model=mlp(3, 64, "relu", "zeros"), expected=("SYMMETRY",), within=5),
        Case(name="N(0, 1) init", model=deep, prepare=_draw(1.0), expected=("EXPLODE_FWD",), within=10),
        Case(name="N(0, .01) init", model=deep, prepare=_draw(0.01), expected=("COLLAPSE_FWD",), within=10),
        Case(
            name="tanh, weights x4",
            model=mlp(8, 64, "tanh", he),
            prepare=_draw(0.8),
            expected=("SATURATED",),
            within=50,
        ),
        Case(name="lr x100, adam", model=small, lr=0.1, expected=("UPDATE_RATIO",), within=50),
        Case(
            name="lr x100, sgd",
            model=mlp(6, 64, "relu", he),
            optimizer="sgd",
            lr=1.0,
            expected=("EXPLODE", "UPDATE_RATIO", "NONFINITE"),
            within=50,
        ),
        Case(name="lr / 1e5", model=small, optimizer="sgd", lr=1e-7, expected=("UPDATE_RATIO",), within=100),
        Case(name="dead relus by bias", model=small, prepare=_negative_biases, expected=("DEAD",), within=50),
        Case(name="pixels 0 to 255", model=small, prepare=_raw_pixels, expected=("INPUT",), within=50),
        Case(name="NaN in samples", model=small, spoil=_nan_sample, expected=("NONFINITE",), within=101),
        Case(name="inf in a weight", model=small, spoil=_inf_weight, expected=("NONFINITE",), within=61),
        Case(
            name="one batch x100",
            model=small,
            optimizer="sgd",
            lr=0.01,
            spoil=_spike,
            expected=("EXPLODE",),
            within=120,
        ),
        Case(name="detached layer", build=Detached, expected=("FROZEN",), within=40),
        Case(name="weight not in optimizer", model=small, prepare=_not_in_optimizer, expected=("FROZEN",), within=5),
        Case(name="clip 1e-6", model=small, optimizer="sgd", lr=0.01, clip=1e-6, expected=("CLIP",), within=60),
        Case(name="fp16 overflow", model=small, scale=2.0**24, expected=("NONFINITE",), within=10),
        Case(name="optimizer state lost", model=small, spoil=_forgotten_optimizer, expected=("RESUME",), within=125),
        Case(name="one label", model=small, prepare=_one_label, expected=("INPUT",), within=60),
        Case(name="adam eps 1", model=small, prepare=_large_eps, expected=("ADAM_FLOOR",), within=50),
    ]


def _large_eps(run: Run) -> None:
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=run.case.lr, eps=1.0)
