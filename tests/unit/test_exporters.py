"""Exporters: off by default, refused before training if they can't work, and never the end of a run."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import EXIT_USER_INPUT, ConfigError
from trainer.batch import Batch
from trainer.evaluation import Evaluation
from trainer.export_tensorboard import MAX_LAYERS, TensorBoardExporter
from trainer.exporters import open_exporters
from trainer.health.overhead import Pace
from trainer.health.records import Change, DeepStats, LayerStats, Life, Severity, Verdict, VerdictEvent
from trainer.step import StepResult


@dataclass(frozen=True, kw_only=True)
class Section:
    prometheus_port: int = 0
    tensorboard: bool = False


def a_batch(step: int) -> Batch:
    return Batch(
        step=step,
        epoch=step // 10,
        start=4 * step,
        stop=4 * step + 4,
        recipe="r",
        digest="d",
        images=torch.zeros(4, 3, 2, 2),
        labels=torch.zeros(4, dtype=torch.int64),
        sample_ids=torch.arange(4),
    )


def a_result(loss: float, **changes: Any) -> StepResult:
    values: dict[str, Any] = {
        "loss": loss,
        "grad_norm": 2.0 * loss,
        "clipped_norm": loss,
        "was_clipped": True,
        "clips": (),
        "maybe_fault": None,
        "loss_scale": 1.0,
        "lr": 0.125,
        "num_samples": 4,
        "num_correct": 2,
    }
    return StepResult(**{**values, **changes})


def a_verdict(number: int, life: Life = Life.OPEN, severity: Severity = Severity.WARN) -> Verdict:
    return Verdict(
        number=number,
        id="DEAD",
        kind="",
        severity=severity,
        life=life,
        layers=("0",),
        first_step=3,
        last_step=5,
        resolved_at=5 if life is Life.RESOLVED else None,
        num_hits=2,
        evidence={"share": 0.5},
        thresholds={"warn": 0.25},
        fix="lower the learning rate",
        confidence=0.75,
    )


def read(folder: Path) -> EventAccumulator:
    """As TensorBoard shows it."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    return read


def curve(read: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read.Scalars(tag)]


def test_nothing_is_exported_unless_the_job_says_so(tmp_path: Path) -> None:
    assert [] == open_exporters(Section(), tmp_path, 0)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "module", "library", "extra"),
    [
        (Section(tensorboard=True), "trainer.export_tensorboard", "tensorboard", "tensorboard"),
        (Section(prometheus_port=9400), "trainer.export_prometheus", "prometheus_client", "prometheus"),
    ],
    ids=["tensorboard", "prometheus"],
)
def test_a_missing_package_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: Section, module: str, library: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(library), *sys.meta_path])
    with pytest.raises(ConfigError) as error:
        open_exporters(section, tmp_path, 0)

    assert EXIT_USER_INPUT == error.value.exit_code
    assert f"the package {library}" in str(error.value)
    assert f"pip install 'headrace[{extra}]'" in str(error.value)


class NotInstalled:
    """An import finder for a package that isn't there."""

    def __init__(self, library: str) -> None:
        self._library = library

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self._library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_tensorboard_shows_what_was_fed(tmp_path: Path) -> None:
    """Through TensorBoard's own reader."""
    exporter = TensorBoardExporter(tmp_path, first_step=0)
    for step in range(3):
        exporter.step(a_batch(step), a_result(1.0 + step), waited_s=0.25 * step)
    exporter.evaluated(3, Evaluation(loss=0.5, accuracy=0.75, num_samples=8))
    layers = tuple(
        LayerStats(name=f"layer{place}", kind="Linear", std=0.5, delta_rms=0.25, weight_norm=2.0, update_norm=0.5)
        for place in range(2)
    )
    exporter.layers(DeepStats(step=2, layers=layers, parameters=()))
    exporter.cost(Pace().overhead())
    exporter.verdict(VerdictEvent(step=2, change=Change.OPENED, verdict=a_verdict(1)))
    exporter.close()
    shown = read(tmp_path)

    assert [(0, 1.0), (1, 2.0), (2, 3.0)] == curve(shown, "train/loss")
    assert [(0, 2.0), (1, 4.0), (2, 6.0)] == curve(shown, "gradient_norm/before_clipping")
    assert [(0, 1.0), (1, 2.0), (2, 3.0)] == curve(shown, "gradient_norm/after_clipping")
    assert [(0, 0.125)] == curve(shown, "train/learning_rate")[:1]
    assert [(0, 0.0), (1, 0.25), (2, 0.25)] == curve(shown, "data/waited_s")
    assert [(3, 0.5)] == curve(shown, "held_out/loss")
    assert [(3, 0.75)] == curve(shown, "held_out/accuracy")
    assert [(2, 0.5)] == curve(shown, "forward_std/layer1")
    assert [(2, 0.25)] == curve(shown, "backward_rms/layer1")
    assert [(2, 0.25)] == curve(shown, "update_to_weight/layer1")
    (text,) = shown.Tensors("verdicts/DEAD")
    assert 2 == text.step
    assert "lower the learning rate" in text.tensor_proto.string_val[0].decode()


def test_a_loss_that_is_no_number_is_shown_as_such(tmp_path: Path) -> None:
    exporter = TensorBoardExporter(tmp_path, first_step=0)
    exporter.step(a_batch(0), a_result(math.nan), waited_s=0.0)
    exporter.close()

    assert math.isnan(curve(read(tmp_path), "train/loss")[0][1])


@pytest.mark.parametrize("is_torn", [False, True], ids=["closed", "killed in a write"])
def test_a_resumed_run_is_one_curve(tmp_path: Path, is_torn: bool) -> None:
    """The first attempt got to step 5 and its checkpoint was of step 3: each step is shown once, as the second saw it.

    Twice, since TensorBoard does not take the first start it sees for a restart."""
    for first_step, last_step, loss in ((0, 5, 1.0), (3, 7, 2.0), (6, 8, 3.0)):
        exporter = TensorBoardExporter(tmp_path, first_step=first_step)
        for step in range(first_step, last_step):
            exporter.step(a_batch(step), a_result(loss), waited_s=0.0)
        exporter.close()
        newest = max(tmp_path.iterdir(), key=lambda path: path.name)
        if is_torn:
            newest.write_bytes(newest.read_bytes()[:-7])

    expected = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 3.0), (7, 3.0)]
    assert expected[: 8 - is_torn] == curve(read(tmp_path), "train/loss")


@pytest.mark.parametrize("num_layers", [1, 2, MAX_LAYERS, MAX_LAYERS + 1, 1000])
def test_a_deep_model_has_no_more_curves_than_can_be_read(tmp_path: Path, num_layers: int) -> None:
    layers = tuple(LayerStats(name=f"{place:04}", kind="Linear", std=1.0) for place in range(num_layers))
    exporter = TensorBoardExporter(tmp_path, first_step=0)
    exporter.layers(DeepStats(step=0, layers=layers, parameters=()))
    exporter.close()
    tags = sorted(tag for tag in read(tmp_path).Tags()["scalars"] if tag.startswith("forward_std/"))

    assert min(num_layers, MAX_LAYERS // 2) <= len(tags) <= MAX_LAYERS + 1
    assert "forward_std/0000" == tags[0]
    assert f"forward_std/{num_layers - 1:04}" == tags[-1]


def test_a_full_disk_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full takes an open and refuses a flush, as a full disk does."""
    real_open = open

    def on_full_disk(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        return real_open("/dev/full", "wb") if "tfevents" in str(path) else real_open(path, mode, *args, **options)

    monkeypatch.setattr("builtins.open", on_full_disk)
    with caplog.at_level(logging.WARNING):
        exporter = TensorBoardExporter(tmp_path, first_step=0)
        for step in range(5):
            exporter.step(a_batch(step), a_result(1.0), waited_s=0.0)
        exporter.evaluated(5, Evaluation(loss=0.5, accuracy=0.75, num_samples=8))
        exporter.close()
        exporter.close()

    assert 1 == len(caplog.records)
    assert "No space left" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        (exporter,) = open_exporters(Section(tensorboard=True), tmp_path, 0)
        exporter.step(a_batch(0), a_result(1.0), waited_s=0.0)
        exporter.close()

    assert 1 == len(caplog.records)
