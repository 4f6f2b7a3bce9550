"""Who else is told how a run goes: Prometheus and TensorBoard, each off unless the job says so.

In:  the job's `health` section, the run's folder; then each step, evaluation, deep sample and verdict.
Out: the exporters that are on.
Never ends a run: what an exporter can't write it warns of, once. What can't work at all (a package that is missing, a
port that is taken) is refused before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.errors import ConfigError, Problem
from trainer.batch import Batch
from trainer.evaluation import Evaluation
from trainer.health.overhead import Overhead
from trainer.health.records import DeepStats, Verdict, VerdictEvent
from trainer.step import StepResult


class Exporter(Protocol):
    """Told of what happens, on the training loop's thread; each call takes microseconds, a deep sample's a few
    milliseconds at most."""

    def step(self, batch: Batch, result: StepResult, waited_s: float) -> None:
        """After each step; `waited_s`: seconds that the loop has waited for batches so far, in this attempt."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """`step`: steps done before the evaluation."""

    def layers(self, deep: DeepStats) -> None:
        """What a sampled step has measured; on CUDA it comes some steps later."""

    def verdict(self, event: VerdictEvent) -> None:
        """A verdict was opened, has changed, or is resolved."""

    def cost(self, overhead: Overhead) -> None:
        """What watching costs by now; once in a while."""

    def close(self) -> None:
        """Nothing of it is left: no thread, no port, no open file. A second call does nothing."""


class ExportSection(Protocol):
    """Of the job's `health` section, what says where to export."""

    @property
    def prometheus_port(self) -> int: ...
    @property
    def tensorboard(self) -> bool: ...


def open_exporters(
    section: ExportSection, folder: Path, first_step: int, verdicts: Sequence[Verdict] = ()
) -> list[Exporter]:
    """Those that the job asks for; ConfigError if one can't work, and then none is left open.

    `first_step`: of this attempt; what an earlier one has exported from there on no longer holds. `verdicts`: of
    earlier attempts, of which those that are open count as open.
    """
    exporters: list[Exporter] = []
    try:
        if section.tensorboard:
            exporters.append(_tensorboard(folder, first_step))
        if section.prometheus_port:
            exporters.append(_prometheus(section.prometheus_port, folder, first_step, verdicts))
    except BaseException:
        close_all(exporters)
        raise
    return exporters


def close_all(exporters: Sequence[Exporter]) -> None:
    """Closes each, also if another can't be closed."""
    for exporter in exporters:
        exporter.close()


def _tensorboard(folder: Path, first_step: int) -> Exporter:
    try:
        from trainer.export_tensorboard import TensorBoardExporter
    except ModuleNotFoundError as error:
        raise _missing(error, "tensorboard", "health.tensorboard", "false") from error
    return TensorBoardExporter(folder / "tensorboard", first_step=first_step)


def _prometheus(port: int, folder: Path, first_step: int, verdicts: Sequence[Verdict]) -> Exporter:
    try:
        from trainer.export_prometheus import PrometheusExporter
    except ModuleNotFoundError as error:
        raise _missing(error, "prometheus", "health.prometheus_port", "0") from error
    return PrometheusExporter(port, run=folder.name, first_step=first_step, verdicts=verdicts)


def _missing(error: ModuleNotFoundError, extra: str, field: str, off: str) -> ConfigError:
    return ConfigError(
        Problem(
            file="job",
            line=0,
            path=field,
            expected=f"the package {(error.name or extra).partition('.')[0]}",
            got="it is not installed",
            way_out=f"pip install 'headrace[{extra}]', or without it: --set {field}={off}",
        )
    )
