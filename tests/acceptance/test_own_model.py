"""A user's own model, as a job: tied and frozen weights, BatchNorm, unused parameters, F.relu; and no false alarm.

Law 6 of gradient health. The same model with a detach() too many shows that silence means something.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.home import Home
from tests.processes import ROOT, lines_of, run_headrace

CALIBRATE = ROOT / "configs" / "jobs" / "calibrate.yaml"

OWN = '''
"""Written by a user: no activation is a module, and not everything that has weights is used."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, channels, num_classes, is_cut):
        super().__init__()
        self.is_cut = is_cut
        self.stem = nn.Conv2d(channels, 12, 3, padding=1)
        self.stem.requires_grad_(False)
        self.conv, self.norm = nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.second.weight = self.first.weight
        self.offset = nn.Parameter(torch.zeros(1, 24))
        self.head = nn.Linear(24, num_classes)
        self.auxiliary = nn.Linear(24, 7)
        self.spare = nn.Parameter(torch.zeros(5))

    def forward(self, images):
        hidden = F.max_pool2d(F.relu(self.stem(images)), 2)
        hidden = F.relu(self.norm(self.conv(hidden))).mean(dim=(2, 3)) + self.offset
        hidden = F.relu(self.first(hidden))
        if self.is_cut:
            hidden = hidden.detach()
        return self.head(F.dropout(F.relu(self.second(hidden)), 0.1, self.training))


def make(input_shape, num_classes, is_cut=False):
    return Net(input_shape[0], num_classes, is_cut)
'''


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


def trained(home: Home, folder: Path, *sets: str) -> tuple[list[dict[str, Any]], int]:
    """The run's verdicts, and how many steps it took."""
    (folder / "own.py").write_text(OWN)
    model = {"kind": "factory", "factory": f"{folder}/own.py:make"}
    overrides = [f"model={json.dumps(model)}", "health.light_every_steps=1", "health.every_steps=20"]
    overrides += ["health.report=false", *sets]
    finished = run_headrace(
        *("train", CALIBRATE, "--run-dir", "run", "--workers", "1"),
        *(part for one in overrides for part in ("--set", one)),
        folder=folder,
        environment=home.environment,
    )
    assert finished.code == 0, finished.err
    verdicts = json.loads((folder / "run" / "health.json").read_text())["verdicts"]
    return verdicts, len(lines_of(folder / "run" / "metrics.jsonl"))


def alarms(verdicts: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    return [(one["id"], one["kind"], one["layers"]) for one in verdicts if one["severity"] in ("WARN", "CRITICAL")]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_own_model_with_nothing_wrong_raises_no_alarm(home: Home, tmp_path: Path) -> None:
    verdicts, num_steps = trained(home, tmp_path, "train.epochs=6")

    assert num_steps == 56 * 6
    assert [] == alarms(verdicts), verdicts
    assert run_headrace("health", "run", folder=tmp_path, environment=home.environment).code == 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_same_model_cut_by_a_detach_is_named(home: Home, tmp_path: Path) -> None:
    """What lies before the detach() gets no gradient; what nobody uses, or is frozen by request, isn't mentioned."""
    verdicts, _ = trained(home, tmp_path, "train.epochs=1", "model.options.is_cut=true")

    ((name, kind, layers),) = alarms(verdicts)
    assert (name, kind) == ("FROZEN", "no gradient")
    assert "conv.weight" in layers
    assert not {"auxiliary.weight", "spare", "stem.weight"} & set(layers)
