"""prometheus_client's one home: a run's newest numbers, served to a Prometheus on the same host.

In:  what happens in the training loop; requests on a port of 127.0.0.1.
Out: one page of numbers, all of the same moment.
Never listens on another address, never keeps the loop waiting: a step replaces one record, a request reads it.

One thread serves one request after another. The whole page is made for each request from what the loop has left, so
a run that nobody asks costs a microsecond a step.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http.server import HTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.errors import ConfigError, Problem
from trainer.batch import Batch
from trainer.evaluation import Evaluation
from trainer.health.overhead import Overhead
from trainer.health.records import DeepStats, Life, Verdict, VerdictEvent
from trainer.step import StepResult

log = logging.getLogger("headrace.train")

ADDRESS = "127.0.0.1"
POLL_S = 0.2
"""How long `close` may have to wait for the serving thread to look up."""
REQUEST_TIMEOUT_S = 2.0
"""A client that sends nothing for so long is cut off, so that the next is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """Where the run stands; replaced, never changed, so that a page is of one moment."""

    step: int
    time_s: float
    epoch: int = 0
    loss: float = float("nan")
    lr: float = float("nan")
    grad_norm: float = float("nan")
    clipped_norm: float = float("nan")
    num_clipped: int = 0
    num_skipped: int = 0
    num_samples: int = 0
    waited_s: float = 0.0


class PrometheusExporter(Collector):
    """A `trainer.exporters.Exporter`; it listens from its making until `close`."""

    def __init__(self, port: int, *, run: str, first_step: int, verdicts: Sequence[Verdict] = ()) -> None:
        """ConfigError if the port can't be had; port 0 lets the system choose one (`port`)."""
        self._run = run
        self._numbers = _Numbers(step=first_step - 1, time_s=time.time())
        self._maybe_evaluation: Evaluation | None = None
        self._maybe_overhead: Overhead | None = None
        self._open: dict[int, tuple[str, str]] = {}
        """Number of each open verdict -> its severity and id."""
        self._verdicts: Counter[tuple[str, str]] = Counter()
        """(severity, id) -> open now; one that was ever there stays, at 0, so that alerts end."""
        for verdict in verdicts:
            self._count(verdict)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        self._server = _Server(port, registry)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="prometheus", daemon=True
        )
        self._thread.start()

    def step(self, batch: Batch, result: StepResult, waited_s: float) -> None:
        before = self._numbers
        self._numbers = _Numbers(
            step=batch.step,
            time_s=time.time(),
            epoch=batch.epoch,
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            clipped_norm=result.clipped_norm,
            num_clipped=before.num_clipped + result.was_clipped,
            num_skipped=before.num_skipped + result.was_skipped,
            num_samples=before.num_samples + result.num_samples,
            waited_s=waited_s,
        )

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        # An evaluation may take longer than many steps: a run that evaluates is not stuck.
        self._maybe_evaluation, self._numbers = evaluation, replace(self._numbers, time_s=time.time())

    def layers(self, deep: DeepStats) -> None:
        """Nothing: a time series a layer is what TensorBoard and the report are for."""

    def verdict(self, event: VerdictEvent) -> None:
        self._count(event.verdict)

    def cost(self, overhead: Overhead) -> None:
        self._maybe_overhead = overhead

    def close(self) -> None:
        self._server.end()
        self._thread.join()

    def _count(self, verdict: Verdict) -> None:
        self._open.pop(verdict.number, None)
        if verdict.life is not Life.RESOLVED:
            self._open[verdict.number] = (verdict.severity.name, verdict.id)
        counts = Counter(self._open.values())
        self._verdicts = Counter({kind: counts[kind] for kind in {**self._verdicts, **counts}})

    def collect(self) -> Iterator[Metric]:
        """The page; called by the serving thread."""
        now = self._numbers
        yield InfoMetricFamily("headrace_run", "The run, by its folder's name.", {"run": self._run})
        yield _gauge("last_step", "Number of the last step, from 0; -1 before the first.", now.step)
        yield _gauge(
            "last_step_timestamp_seconds",
            "Unix time of the last step or evaluation, before the first of the start; alert on its age.",
            now.time_s,
        )
        yield _gauge("epoch", "Epoch of the last step, from 0.", now.epoch)
        yield _gauge("loss", "Mean loss of the last step's batch.", now.loss)
        yield _gauge("learning_rate", "Of the last step.", now.lr)
        norms = GaugeMetricFamily("headrace_gradient_norm", "Global 2-norm in the last step.", labels=["clipping"])
        norms.add_metric(["before"], now.grad_norm)
        norms.add_metric(["after"], now.clipped_norm)
        yield norms
        yield _counter("clipped_steps", "Steps whose gradient was clipped, since this process began.", now.num_clipped)
        yield _counter("skipped_steps", "Steps not taken: loss or gradient not finite.", now.num_skipped)
        yield _counter("samples", "Samples trained on, since this process began.", now.num_samples)
        yield _counter("data_wait_seconds", "Seconds the training loop has waited for batches.", now.waited_s)
        verdicts = GaugeMetricFamily("headrace_open_verdicts", "Not resolved.", labels=["severity", "id"])
        for (severity, name), count in sorted(self._verdicts.items()):
            verdicts.add_metric([severity, name], count)
        yield verdicts
        if (evaluation := self._maybe_evaluation) is not None:
            yield _gauge("held_out_loss", "Of the latest evaluation.", evaluation.loss)
            yield _gauge("held_out_accuracy", "Of the latest evaluation, 0 to 1.", evaluation.accuracy)
        if (overhead := self._maybe_overhead) is not None:
            shares = GaugeMetricFamily(
                "headrace_health_overhead_ratio",
                "Share of training time that measuring gradients takes.",
                labels=["part"],
            )
            shares.add_metric(["always_on"], overhead.light_share)
            shares.add_metric(["deep"], overhead.deep_share)
            shares.add_metric(["telling"], overhead.measured_told_share)
            yield shares


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headrace_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """Prometheus adds `_total` to its name."""
    return CounterMetricFamily(f"headrace_{name}", text, value=value)


class _Server(HTTPServer):
    """One request at a time; what is under way is cut off when the run ends."""

    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        self._is_ending = False
        self._maybe_live: socket.socket | None = None
        handler = type("_Handler", (MetricsHandler,), {"registry": registry, "timeout": REQUEST_TIMEOUT_S})
        try:
            super().__init__((ADDRESS, port), handler)
        except OSError as error:
            raise _port_problem(port, error) from error

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service what this host is called, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._maybe_live = request
        try:
            if not self._is_ending:
                super().finish_request(request, client_address)
        finally:
            self._maybe_live = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("action=prometheus_request_failed", exc_info=True)  # a client that went away is no news

    def end(self) -> None:
        if self._is_ending:
            return
        # In this order: a request that begins now sees that it ends, one under way is known.
        self._is_ending = True
        if (live := self._maybe_live) is not None:
            with contextlib.suppress(OSError):
                live.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()


def _port_problem(port: int, error: OSError) -> ConfigError:
    is_taken = error.errno == errno.EADDRINUSE
    return ConfigError(
        Problem(
            file="job",
            line=0,
            path="health.prometheus_port",
            expected=f"a port of {ADDRESS} that is free",
            got=f"{port}: {os.strerror(error.errno or 0)}",
            way_out=(
                f"another port with --set health.prometheus_port={port + 1 if port < 65535 else 9400}, or 0 for none"
                + (f"; who has it: ss -ltnp 'sport = :{port}'" if is_taken else "")
            ),
        )
    )
