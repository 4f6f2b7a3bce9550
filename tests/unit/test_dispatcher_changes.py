"""The dispatcher while a job runs: chains change, workers leave, pools and dispatchers are replaced."""

from __future__ import annotations

import msgspec

from pipeline import messages as m
from pipeline.service_messages import Condemned
from tests.unit.test_dispatcher import (
    BATCH_SPEC,
    FINGERPRINT,
    OTHER,
    RECIPE,
    Service,
    beat,
    join,
    pool_beat,
    refused,
    refused_with_an_answer,
    register,
    swapped,
)


def recipes_told(service: Service, worker: str) -> set[str]:
    """What the worker last heard that the stream may use."""
    return {recipe.digest for recipe in service.sent_to(worker, m.OpenStream)[-1].spec.recipes}


def test_a_recipe_that_is_asked_for_while_running_is_probed_and_then_registered() -> None:
    """The swap, as the dispatcher sees it: workers hear of the recipe before the probe, and of its spec before the
    first lease under it; the answer says from which step on nothing is leased."""
    service = Service()
    service.hears("s#1", register(batch_specs={RECIPE.digest: BATCH_SPEC}))
    service.hears("w1", join("w1"))
    service.hears("s#1", m.AskProbe(stream="s", incarnation=1, recipe=OTHER))
    kinds = [type(message) for message in service.sent[b"w1"]]
    assert kinds == [m.OpenStream, m.Granted, m.Granted, m.OpenStream, m.Probe]
    assert recipes_told(service, "w1") == {RECIPE.digest, OTHER.digest}

    answer = m.ProbeAnswer(worker="w1", stream="s", incarnation=1, recipe=OTHER.digest, spec=BATCH_SPEC)
    service.hears("w1", answer)
    (probed,) = service.sent_to("s#1", m.Probed)
    assert (probed.spec, probed.unleased_step) == (BATCH_SPEC, 1)

    both = {RECIPE.digest: BATCH_SPEC, OTHER.digest: BATCH_SPEC}
    service.hears("s#1", register(spec=swapped(1), revision=1, batch_specs=both))
    assert [answer.revision for answer in service.sent_to("s#1", m.Registered)] == [0, 1]
    service.hears("w1", m.WorkerBeat(worker="w1", number=1, received=2, holding=()))
    opened, granted = service.sent[b"w1"][-3:-1]
    assert opened.batch_specs == both
    assert granted.lease.recipe == OTHER.digest

    service.hears("s#1", beat(9, head_step=1, revision=1, window=2))
    service.hears("w2", join("w2"))
    assert recipes_told(service, "w2") == {OTHER.digest}, "not all that ever were"


def test_a_refused_recipe_is_forgotten() -> None:
    """Fifty bad edits must not be carried to every worker for days."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    service.hears("s#1", m.AskProbe(stream="s", incarnation=1, recipe=OTHER))
    problem = m.Location(file="c.yaml", line=3, path="chain[0]", expected="a name", got="rubbish")
    service.hears("w1", m.ProbeAnswer(worker="w1", stream="s", incarnation=1, recipe=OTHER.digest, problems=(problem,)))
    assert service.sent_to("s#1", m.Probed)[0].problems == (problem,)
    service.hears("w2", join("w2"))
    service.hears("s#1", beat(1, arrived=b"\xff", head_step=0))
    assert recipes_told(service, "w2") == {RECIPE.digest}


def test_an_older_registration_changes_nothing_and_a_beat_about_a_newer_one_is_answered() -> None:
    """Registrations may be repeated; one that never came is asked for."""
    service = Service()
    service.hears("s#1", register(spec=swapped(4), revision=2), register(), beat(1, revision=2))
    assert service.leases.streams["s", 1].timeline.num_steps == 8
    assert len(service.leases.streams["s", 1].timeline.entries) == 2
    assert service.sent_to("s#1", m.RegisterAgain) == []
    service.hears("s#1", beat(2, revision=3))
    assert len(service.sent_to("s#1", m.RegisterAgain)) == 1


def test_nobody_but_its_trainer_speaks_for_a_stream() -> None:
    """What strangers replay on the control socket must not end, stall or change a job."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    for message in (register(revision=5, spec=swapped(1)), beat(99, head_step=8),
                    m.StreamGoodbye(stream="s", incarnation=1), m.AskProbe(stream="s", incarnation=1, recipe=OTHER),
                    m.StreamBroken(stream="s", incarnation=1, cause="rubbish")):  # fmt: skip
        with refused(service):
            service.hears("mallory", message)
    service.hears("w2", msgspec.structs.replace(join("w2"), pool="p"))
    for of_pool in (pool_beat(1), m.WorkerDied(worker="w2", cause="SIGSEGV", by_itself=True)):
        with refused(service):
            service.hears("mallory", of_pool)
    service.hears("w1", m.StreamBroken(stream="s", incarnation=1, cause="shape"))
    assert [failed.cause for failed in service.sent_to("s#1", m.StreamFailed)] == ["shape"]


def test_a_leaving_worker_is_dismissed_and_gets_nothing_more() -> None:
    """Leases and probes go to those that stay."""
    service = Service()
    service.hears("w1", join("w1"), m.Leaving(worker="w1"))
    assert service.sent_to("w1", m.Dismissed) == [m.Dismissed(worker="w1")]
    service.hears("s#1", register(), m.AskProbe(stream="s", incarnation=1, recipe=OTHER))
    assert service.sent_to("w1", m.Granted) == []
    assert service.sent_to("w1", m.Probe) == []


def test_workers_that_died_with_their_pool_are_replaced_without_waiting_for_their_silence() -> None:
    """The pool's next process does not know them; nothing they held is to blame."""
    service = Service()
    service.hears("p", pool_beat(1, "w1"))
    service.hears("s#1", register())
    service.hears("w1", msgspec.structs.replace(join("w1"), pool="p"))
    service.hears("p", pool_beat(1, "w2", started_ns=200))
    assert set(service.leases.workers) == set()
    service.hears("w2", msgspec.structs.replace(join("w2"), pool="p"))
    assert [granted.lease.start for granted in service.sent_to("w2", m.Granted)] == [0, 4]


def test_a_silent_worker_is_condemned_and_its_pool_told() -> None:
    """It may be stopped: its pool must kill and replace it."""
    service = Service()
    service.hears("p", pool_beat(1, "w1"))
    service.hears("w1", msgspec.structs.replace(join("w1"), pool="p"))
    service.ticks_for(11.0)
    assert service.sent_to("p", Condemned) == [Condemned(pool="p", worker="w1")]


def test_a_run_that_was_begun_by_other_workers_binds_those_of_a_restarted_dispatcher() -> None:
    """It has forgotten who made the slices so far; the trainer has not."""
    service = Service()
    service.hears("s#1", register(fingerprint=FINGERPRINT))
    service.hears("w1", join("w1", "numpy 1, probe 0000"))
    assert len(service.sent_to("w1", m.Refused)) == 1
    service.hears("w2", join("w2"))
    service.ticks_for(1.0)
    assert service.sent_to("s#1", m.ServiceState)[-1].fingerprint == FINGERPRINT
    with refused_with_an_answer(service, "t#1"):
        service.hears("t#1", register(stream="t", fingerprint="numpy 1, probe 0000"))
