"""A real run is scraped while it trains, and leaves what TensorBoard reads; neither outlives it."""

from __future__ import annotations

import contextlib
import signal
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import EXIT_STOPPED_RESUMABLE
from tests.home import Home, small_job
from tests.integration.test_exporters import scraped
from tests.processes import Headrace, lines_of


@pytest.fixture(name="home")
def _home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


def free_port() -> int:
    """Free a moment ago, which is the best that can be known."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.mark.long
def test_a_run_can_be_scraped_while_it_trains_and_leaves_curves(tmp_path: Path, home: Home) -> None:
    """What its exporters say is what its metrics say."""
    run_dir, port = tmp_path / "run", free_port()
    options = ("--set", "health.tensorboard=true", "--set", f"health.prometheus_port={port}", "--workers", "1")
    last: dict[str, float] = {}

    def has_stepped() -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            last.update(scraped(port))
        return last.get("headrace_last_step", -1.0) >= 30.0

    # When it trains
    train = ("train", small_job(tmp_path), "--run-dir", run_dir, *options)
    with Headrace(*train, folder=tmp_path, environment=home.environment) as run:
        run.wait_until(has_stepped, "a scrape that shows thirty steps")
        run.process.send_signal(signal.SIGTERM)
        finished = run.finish()

    # Then both exporters have told of the steps that metrics.jsonl has
    assert finished.code == EXIT_STOPPED_RESUMABLE, finished.err
    losses = {line["step"]: line["loss"] for line in lines_of(run_dir / "metrics.jsonl")}
    assert last["headrace_run_info run"] == 1.0
    assert last["headrace_loss"] == pytest.approx(losses[int(last["headrace_last_step"])])
    assert last["headrace_samples_total"] == 32 * (last["headrace_last_step"] + 1)
    read = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    curve = {event.step: event.value for event in read.Scalars("train/loss")}
    assert curve == pytest.approx(losses)
    # and the port is free again
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        scraped(port)
