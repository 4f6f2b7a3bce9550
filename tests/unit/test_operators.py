"""Operators: what they ask reaches who can do it, and they are answered."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import messages as m
from pipeline.operators import MAX_OPERATIONS
from pipeline.recipe import Chain
from pipeline.service_messages import Answer, AskScale, AskStatus, AskStop, AskSwap, PoolBeat, Resize, Status
from tests.unit.test_dispatcher import RECIPE, Service, beat, join, register, spec
from tests.unit.test_pools import beat as pool_beat

CHAIN = Chain(file="weak.yaml", nodes=())


def service_with(*streams: str) -> Service:
    service = Service()
    for stream in streams:
        service.hears(f"{stream}#1", register(stream=stream))
    return service


def answers(service: Service, operator: str = "operator-1") -> list[Answer]:
    return service.sent_to(operator, Answer)


def done(operation: str, text: str = "from step 7 on", stream: str = "run/train") -> m.OperationAnswer:
    return m.OperationAnswer(stream=stream, incarnation=1, operation=operation, done=True, text=text)


def test_a_swap_reaches_the_only_trainer_and_its_answer_the_operator() -> None:
    """Asked again, it is passed on again; once answered, the answer comes from memory."""
    service = service_with("run/train", "run/eval")
    ask = AskSwap(operation="o1", chain=CHAIN, at_step=5)
    service.hears("operator-1", ask, ask)
    asked = service.sent_to("run/train#1", m.SwapAsked)
    assert [("o1", CHAIN, 5)] * 2 == [(swap.operation, swap.chain, swap.at_step) for swap in asked]
    assert [] == answers(service)

    service.hears("run/train#1", done("o1"))
    service.hears("operator-1", ask)
    assert ["from step 7 on"] * 2 == [answer.text for answer in answers(service)]
    assert 2 == len(service.sent_to("run/train#1", m.SwapAsked))


def test_a_stop_goes_to_the_stream_that_is_named() -> None:
    """By its whole name or by the run's."""
    service = service_with("a/train", "b/train")
    service.hears("operator-1", AskStop(operation="o1", stream="b/train"), AskStop(operation="o2", stream="a"))
    assert ["o1"] == [stop.operation for stop in service.sent_to("b/train#1", m.StopAsked)]
    assert ["o2"] == [stop.operation for stop in service.sent_to("a/train#1", m.StopAsked)]


@pytest.mark.parametrize(
    ("streams", "named", "expected"),
    [
        ((), "", "no train stream is registered here"),
        (("run/eval",), "", "no train stream is registered here"),
        (("a/train", "b/train"), "", "there are several train streams; name one of\n  a/train\n  b/train"),
        (("a/train",), "c", "no train stream is called 'c'; there are\n  a/train"),
    ],
)
def test_a_stream_that_is_unknown_or_ambiguous_is_answered_with_those_there_are(
    streams: tuple[str, ...], named: str, expected: str
) -> None:
    """And is asked for anew: the trainer may be about to register."""
    service = service_with(*streams)
    service.hears("operator-1", AskSwap(operation="o1", stream=named, chain=CHAIN))
    assert [(False, expected)] == [(answer.done, answer.text) for answer in answers(service)]


def test_only_the_trainer_itself_answers_for_its_stream() -> None:
    """A peer that guesses an operation's name must not tell an operator that all is well."""
    service = service_with("run/train")
    service.hears("operator-1", AskStop(operation="o1"))
    service.hears("mallory", done("o1"))
    service.hears("run/train#1", done("never asked for"))
    assert [] == answers(service)


def test_operations_of_the_past_are_forgotten() -> None:
    """A script may ask for weeks."""
    service = service_with("run/train")
    for number in range(MAX_OPERATIONS + 10):
        service.hears("operator-1", AskSwap(operation=f"o{number}", chain=CHAIN))
    assert MAX_OPERATIONS == len(service.dispatcher._operators._operations)


def pooled(service: Service, **changes: Any) -> PoolBeat:
    """The next beat of the pool `p`."""
    service.beats = getattr(service, "beats", 0) + 1  # type: ignore[attr-defined]
    made = pool_beat(service.beats, **changes)  # type: ignore[attr-defined]
    service.hears("p", made)
    return made


def test_a_scale_is_answered_once_the_pool_has_the_size() -> None:
    """The order is repeated with each of its beats."""
    service = Service()
    pooled(service)
    ask = AskScale(operation="o1", num_workers=6)
    service.hears("operator-1", ask, ask)
    pooled(service)
    assert [2, 6, 6] == [order.size for order in service.sent_to("p", Resize)]
    assert [] == answers(service)
    pooled(service, size=6)
    assert [(True, "pool p has 6 (of 1 to 8 workers)")] == [(a.done, a.text) for a in answers(service)]
    service.hears("operator-1", ask)
    assert 2 == len(answers(service)), "the answer was lost: again, from memory"


@pytest.mark.parametrize(
    ("ask", "silent_s", "expected"),
    [
        (AskScale(operation="o", num_workers=9), 0.0, "takes 1 to 8 workers, not 9"),
        (AskScale(operation="o", num_workers=0), 0.0, "takes 1 to 8 workers, not 0"),
        (AskScale(operation="o", pool="q", num_workers=2), 0.0, "no pool is called 'q'; name one of: p"),
        (AskScale(operation="o", num_workers=2), 7.0, "silent for 7 s"),
    ],
)
def test_a_scale_that_can_not_be_is_refused(ask: AskScale, silent_s: float, expected: str) -> None:
    """With what there is, and the way out."""
    service = Service()
    pooled(service)
    service.ticks_for(silent_s)
    service.hears("operator-1", ask)
    (answer,) = answers(service)
    assert not answer.done
    assert expected in answer.text
    assert 1 == len(service.sent_to("p", Resize))


def test_an_automatic_pool_grows_while_the_trainer_waits() -> None:
    """`headrace scale auto`, then a trainer that reports that it waits half its time."""
    service = service_with("run/train")
    report = m.StreamReport(
        job="job", run_folder="", num_steps=8, epoch=0, position=0, samples_per_s=1.0, waited_fraction=0.5,
        limit="workers", recipe="", chain="", timeline=(), num_bad_samples=0,
    )  # fmt: skip
    pooled(service, workers=("w1",), size=1)
    service.hears("w1", m.Join(worker="w1", host="h", pid=1, fingerprint="f", sources=("photos",), pool="p"))
    service.hears("operator-1", AskScale(operation="o1", automatic=True))
    for second in range(20):
        service.now_s += 1.0
        service.dispatcher.tick(service.now_s)
        pooled(service, workers=("w1",), size=1, automatic=True)
        service.hears("w1", m.WorkerBeat(worker="w1", number=second + 1, received=2, holding=(1, 2)))
        service.hears("run/train#1", beat(second + 1, stream="run/train", report=report))
    assert answers(service)[0].done
    assert (2, True) == (service.sent_to("p", Resize)[-1].size, service.sent_to("p", Resize)[-1].automatic)


def test_status_tells_of_streams_workers_and_pools() -> None:
    """Rates are about the last seconds, and what waits is counted."""
    service = service_with("run/train")
    pooled(service, workers=("w1",), size=1)
    service.hears("w1", join("w1"))
    arrived = 0
    for number in range(8):
        arrived |= 0xF << 4 * number
        lease = number + 1
        service.hears("w1", m.WorkerBeat(worker="w1", number=lease, received=lease + 1, holding=(lease + 1,)))
        service.hears("run/train#1", beat(lease, stream="run/train", arrived=arrived.to_bytes(4, "little"), window=8))
        service.ticks_for(1.0)
    service.hears("operator-1", AskStatus(operation="o1"))
    (status,) = service.sent_to("operator-1", Status)
    (worker,), (pool,), (stream,) = status.workers, status.pools, status.streams
    assert ("w1", "here", 8, 1.0) == (
        worker.worker,
        worker.host,
        worker.num_delivered,
        pytest.approx(worker.slices_per_s),
    )
    assert ("p", 1, 8.0) == (pool.pool, pool.num_running, pool.silent_s)
    assert ("run/train", "photos", 8, 2) == (stream.stream, stream.source, stream.window, stream.num_leased)
    assert "o1" == status.operation
    assert spec().recipes == (RECIPE,)
