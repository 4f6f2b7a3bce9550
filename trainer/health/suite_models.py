"""Models as users write them, with nothing wrong: what a detector must keep quiet about.

In:  the shape of an image, the number of classes.
Out: modules with tied weights, frozen parts, norms, unused parameters, functional activations, own containers; and one
with a mistake, a detach() in its forward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Shape = tuple[int, int, int]
"""Of an image: channels, height, width."""


class OwnModel(nn.Module):
    """Tied weights, a frozen part, BatchNorm, an unused parameter and a functional ReLU, all in one."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        num_inputs = math.prod(shape)
        self.frozen = nn.Linear(num_inputs, 64)
        self.frozen.requires_grad_(False)
        self.first, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.tied = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.tied.weight
        self.unused = nn.Linear(8, 8)
        self.spare = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.first(self.frozen(images.flatten(1)))))
        hidden = torch.relu(self.again(torch.relu(self.tied(hidden))))
        logits: torch.Tensor = self.head(hidden)
        return logits


class FunctionalConvNet(nn.Module):
    """No activation and no pooling is a module: hooks see convolutions, norms and a head, nothing between."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(shape[0], 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1)
        self.conv3 = nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.max_pool2d(functional.relu(self.norm1(self.conv1(images))), 2)
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.conv3(hidden)).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(functional.dropout(hidden, 0.1, self.training))
        return logits


class FrozenBackbone(nn.Module):
    """Fine-tuning: a stem with its BatchNorm is frozen and stays in eval mode, two layers learn on what it gives."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], 16, 3, stride=1 + (shape[1] > 8), padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        for one in self.stem.parameters():
            one.requires_grad = False
        self.hidden, self.head = nn.Linear(16 * 16, 64), nn.Linear(64, num_classes)

    def train(self, mode: bool = True) -> FrozenBackbone:
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.stem(images)
        logits: torch.Tensor = self.head(functional.relu(self.hidden(features.flatten(1))))
        return logits


class TiedAutoencoder(nn.Module):
    """A decoder with the encoder's weight transposed, whose reconstruction the classifier reads too."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        num_inputs = math.prod(shape)
        self.encoder = nn.Linear(num_inputs, 64)
        self.decoder_bias = nn.Parameter(torch.zeros(num_inputs))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        code = functional.relu(self.encoder(flat))
        restored = functional.linear(code, self.encoder.weight.t(), self.decoder_bias)
        logits: torch.Tensor = self.head(code + 0.1 * functional.relu(self.encoder(restored)))
        return logits


class Branches(nn.ModuleDict):
    """A container of one's own whose forward picks children by name; one of them is for another task, never called."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        width = 32 if shape[0] == 1 else 16
        super().__init__(
            {
                "patches": nn.Conv2d(shape[0], width, 4, stride=4),
                "narrow": nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)),
                "gate": nn.Sequential(nn.Linear(width, width), nn.Sigmoid()),
                "head": nn.Linear(width, num_classes),
                "other_task": nn.Sequential(nn.Linear(width, 4), nn.Softmax(dim=-1)),
            }
        )
        self.norm = nn.LayerNorm(width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self["patches"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self["narrow"](self.norm(tokens)) * self["gate"](tokens)
        logits: torch.Tensor = self["head"](self.norm(tokens.mean(dim=1)))
        return logits


class TinyTransformer(nn.Module):
    """Patches through torch's own encoder layer: MultiheadAttention, LayerNorm, a position table, a shared norm."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        size = 2 if shape[1] <= 8 else 8
        num_patches = (shape[1] // size) * (shape[2] // size)
        self.patches = nn.Conv2d(shape[0], 32, size, stride=size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_patches, 32))
        layer: Any = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.layer = layer
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.positions
        logits: torch.Tensor = self.head(self.norm(self.layer(tokens)).mean(dim=1))
        return logits


class SplitAttention(nn.Module):
    """One block with maps of its own for queries, keys and values, drawn small: they stand side by side, so that a
    profile along depth has steps that are none."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        size = 2 if shape[1] <= 8 else 8
        self.patches = nn.Conv2d(shape[0], 64, size, stride=size)
        self.norm, self.norm2, self.last_norm = nn.LayerNorm(64), nn.LayerNorm(64), nn.LayerNorm(64)
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.out = nn.Linear(64, 64)
        self.mlp = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        maps = (self.query, self.key, self.value)
        parts = [one(normed).unflatten(2, (4, 16)).transpose(1, 2) for one in maps]  # 4 heads
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(mixed)
        tokens = tokens + self.mlp(self.norm2(tokens))
        logits: torch.Tensor = self.head(self.last_norm(tokens).mean(dim=1))
        return logits


class TwoHeads(nn.Module):
    """Two outputs, each a sigmoid that is to be sure: in which half of the classes, and which one there."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.ReLU())
        self.side, self.each = nn.Linear(128, 1), nn.Linear(128, num_classes)
        self.is_high, self.is_each = nn.Sigmoid(), nn.Sigmoid()
        self.num_low = num_classes // 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.body(images)
        high_N1, each_NC = self.is_high(self.side(hidden)), self.is_each(self.each(hidden))
        num_high = each_NC.shape[1] - self.num_low
        sides_NC = torch.cat([(1 - high_N1).expand(-1, self.num_low), high_N1.expand(-1, num_high)], dim=1)
        logits: torch.Tensor = (sides_NC * each_NC + 1e-6).log()
        return logits


class SmallHead(nn.Module):
    """A policy's head begins a hundred times smaller than other layers, so that all actions are as likely."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()
        )
        self.head = nn.Linear(64, num_classes)
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(images))
        return logits


class Detached(nn.Module):
    """The first layer is cut off the loss by detach(), unless `is_mended`."""

    def __init__(self, shape: Shape, num_classes: int, *, is_mended: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(math.prod(shape), 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, num_classes)
        self.is_mended = is_mended

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(images.flatten(1)))
        if not self.is_mended:
            hidden = hidden.detach()
        logits: torch.Tensor = self.head(torch.relu(self.second(hidden)))
        return logits
