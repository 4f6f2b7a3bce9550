"""The Prometheus endpoint: what a scrape reads is what the loop said, and nothing is left of it afterwards."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import EXIT_USER_INPUT, ConfigError
from tests.unit.test_exporters import Section, a_batch, a_result, a_verdict
from trainer.evaluation import Evaluation
from trainer.export_prometheus import PrometheusExporter
from trainer.exporters import open_exporters
from trainer.faults import Fault
from trainer.health.overhead import Pace
from trainer.health.records import Change, Life, Severity, VerdictEvent

FAULT = Fault(cause="loss", parameters=(), bad_weights=(), bad_samples=(), micro_batch=None)


@pytest.fixture
def exporter() -> Iterator[PrometheusExporter]:
    made = PrometheusExporter(0, run="quickstart", first_step=0)
    yield made
    made.close()


def scraped(port: int) -> dict[str, float]:
    """Sample with its labels -> value, by Prometheus's own parser."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_reads_what_was_fed(exporter: PrometheusExporter) -> None:
    started_s = time.time()
    exporter.step(a_batch(10), a_result(0.5), waited_s=1.5)
    exporter.step(a_batch(11), a_result(0.75, was_clipped=False, maybe_fault=FAULT), waited_s=2.5)
    exporter.evaluated(12, Evaluation(loss=0.25, accuracy=0.875, num_samples=8))
    exporter.verdict(VerdictEvent(step=11, change=Change.OPENED, verdict=a_verdict(1)))
    exporter.verdict(VerdictEvent(step=11, change=Change.OPENED, verdict=a_verdict(2)))
    pace = Pace(light_every=2, deep_every=100)
    pace.ended(step_s=0.1, own_s=0.002, is_deep=False, is_light=True, is_plain=True)
    exporter.cost(pace.overhead())
    found = scraped(exporter.port)

    assert started_s <= found.pop("headrace_last_step_timestamp_seconds") <= time.time()
    assert found == {
        "headrace_run_info quickstart": 1.0,
        "headrace_last_step": 11.0,
        "headrace_epoch": 1.0,
        "headrace_loss": 0.75,
        "headrace_learning_rate": 0.125,
        "headrace_gradient_norm before": 1.5,
        "headrace_gradient_norm after": 0.75,
        "headrace_clipped_steps_total": 1.0,
        "headrace_skipped_steps_total": 1.0,
        "headrace_samples_total": 8.0,
        "headrace_data_wait_seconds_total": 2.5,
        "headrace_open_verdicts DEAD WARN": 2.0,
        "headrace_held_out_loss": 0.25,
        "headrace_held_out_accuracy": 0.875,
        "headrace_health_overhead_ratio always_on": pace.overhead().light_share,
        "headrace_health_overhead_ratio deep": 0.0,
        "headrace_health_overhead_ratio telling": 0.0,
    }


def test_a_run_that_has_not_stepped_yet_says_since_when() -> None:
    """An alert on the age of the last step fires also for a run that never takes one, and not at once."""
    started_s = time.time()
    made = PrometheusExporter(0, run="r", first_step=200)
    found = scraped(made.port)
    made.close()

    assert 199.0 == found["headrace_last_step"]
    assert started_s <= found["headrace_last_step_timestamp_seconds"] <= time.time()


def test_a_verdict_that_is_resolved_is_open_no_more(exporter: PrometheusExporter) -> None:
    """Its series stays, at zero: an alert ends, where one that vanished would hang."""
    raised = a_verdict(1, Life.CONFIRMED, Severity.CRITICAL)
    exporter.verdict(VerdictEvent(step=1, change=Change.OPENED, verdict=a_verdict(1)))
    exporter.verdict(VerdictEvent(step=2, change=Change.RAISED, verdict=raised))
    worse = scraped(exporter.port)
    exporter.verdict(VerdictEvent(step=3, change=Change.RESOLVED, verdict=replace(raised, life=Life.RESOLVED)))
    better = scraped(exporter.port)

    warn, critical = "headrace_open_verdicts DEAD WARN", "headrace_open_verdicts DEAD CRITICAL"
    assert (0.0, 1.0) == (worse[warn], worse[critical])
    assert (0.0, 0.0) == (better[warn], better[critical])


def test_verdicts_of_earlier_attempts_are_open_still() -> None:
    made = PrometheusExporter(0, run="r", first_step=9, verdicts=[a_verdict(1), a_verdict(2, Life.RESOLVED)])
    found = scraped(made.port)
    made.close()

    assert 1.0 == found["headrace_open_verdicts DEAD WARN"]


def test_it_listens_on_loopback_alone(exporter: PrometheusExporter) -> None:
    """Law 8: not reachable from another host."""
    assert "127.0.0.1" == exporter._server.socket.getsockname()[0]


def test_a_port_that_is_taken_is_refused_and_named(tmp_path: Path) -> None:
    """Before the first step, with the way out; TensorBoard's file, opened before it, is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as error:
            open_exporters(Section(prometheus_port=port, tensorboard=True), tmp_path, 0)

    assert EXIT_USER_INPUT == error.value.exit_code
    assert "health.prometheus_port" in str(error.value)
    assert f"{port}: Address already in use" in str(error.value)
    assert "--set health.prometheus_port=" in str(error.value)


@pytest.mark.parametrize("is_held", [False, True], ids=["idle", "a client holds on"])
def test_nothing_is_left_after_close(is_held: bool) -> None:
    """Law 9: no thread, and the port can be had at once, also if a client has connected and says nothing."""
    before = set(threading.enumerate())
    made = PrometheusExporter(0, run="r", first_step=0)
    scraped(made.port)
    client = socket.create_connection(("127.0.0.1", made.port)) if is_held else None
    if client is not None:
        client.sendall(b"GET /metrics HT")
    made.close()
    made.close()

    assert before == set(threading.enumerate())
    again = PrometheusExporter(made.port, run="r", first_step=0)
    assert -1.0 == scraped(again.port)["headrace_last_step"]
    again.close()
    if client is not None:
        client.close()


def test_a_client_that_goes_away_disturbs_nobody(
    exporter: PrometheusExporter, capfd: pytest.CaptureFixture[str]
) -> None:
    """No traceback, and the next is served."""
    with socket.create_connection(("127.0.0.1", exporter.port)) as client:
        client.sendall(b"GET /met")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # as a killed client ends
    with socket.create_connection(("127.0.0.1", exporter.port)) as client:
        client.sendall(b"nonsense\r\n\r\n")
    assert -1.0 == scraped(exporter.port)["headrace_last_step"]

    assert ("", "") == capfd.readouterr()


def test_numbers_of_one_page_are_of_one_moment(exporter: PrometheusExporter) -> None:
    """While the loop goes on as fast as it can."""
    is_over = threading.Event()

    def loop() -> None:
        step = 0
        while not is_over.is_set():
            exporter.step(a_batch(step), a_result(float(step)), waited_s=float(step))
            step += 1

    thread = threading.Thread(target=loop)
    exporter.step(a_batch(0), a_result(0.0), waited_s=0.0)
    thread.start()
    try:
        pages = [scraped(exporter.port) for _ in range(20)]
    finally:
        is_over.set()
        thread.join()

    for page in pages:
        assert {page["headrace_last_step"]} == {page["headrace_loss"], page["headrace_data_wait_seconds_total"]}
