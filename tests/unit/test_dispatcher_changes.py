"""The dispatcher while a job runs: chains change, workers leave, pools and dispatchers are replaced."""

from __future__ import annotations

import msgspec

from pipeline import messages as m
from pipeline.lease_events import BUILDING
from pipeline.recipe import Chain, ChainNode, Recipe
from pipeline.service_messages import Condemned
from pipeline.timeline import TimelineEntry
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
    spec,
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


def test_steps_below_the_head_of_a_registration_are_leased_with_their_recipe_until_the_next_beat() -> None:
    """The registration names recipes from its head on; leases hear of that head with the beat that follows."""
    service = Service()
    service.hears("s#1", register(batch_specs={RECIPE.digest: BATCH_SPEC}))
    narrow = msgspec.structs.replace(swapped(1), recipes=(OTHER,))
    service.hears("s#1", register(spec=narrow, revision=1, head_step=1, batch_specs={OTHER.digest: BATCH_SPEC}))
    service.hears("w1", join("w1"))
    assert [granted.lease.recipe for granted in service.sent_to("w1", m.Granted)] == [RECIPE.digest] * 2
    assert recipes_told(service, "w1") == {RECIPE.digest, OTHER.digest}
    assert set(service.sent_to("w1", m.OpenStream)[-1].batch_specs) == {RECIPE.digest, OTHER.digest}

    service.hears("s#1", beat(1, head_step=1, revision=1))
    service.hears("w2", join("w2"))
    assert recipes_told(service, "w2") == {OTHER.digest}
    (stream,) = service.dispatcher._streams.values()
    assert set(stream.recipes) == {OTHER.digest}, "not all that ever were"


def test_a_dispatcher_that_begins_anew_serves_a_stream_of_which_it_hears_only_the_recipes_ahead() -> None:
    """The registration is all it has."""
    service = Service()
    narrow = msgspec.structs.replace(swapped(1), recipes=(OTHER,))
    service.hears("s#1", register(spec=narrow, revision=1, head_step=1, batch_specs={OTHER.digest: BATCH_SPEC}))
    service.hears("w1", join("w1"))
    assert [granted.lease.recipe for granted in service.sent_to("w1", m.Granted)] == [OTHER.digest] * 2
    assert recipes_told(service, "w1") == {OTHER.digest}


def probe_answers(service: Service, recipes: list[Recipe]) -> int:
    """A trainer asks for them all with each beat, and `w1` answers what it is asked; how many the trainer knows."""
    num_answered = 0
    for _ in range(3):
        known = {probed.recipe for probed in service.sent_to("s#1", m.Probed)}
        for recipe in recipes:
            if recipe.digest not in known:
                service.hears("s#1", m.AskProbe(stream="s", incarnation=1, recipe=recipe))
        probes = service.sent_to("w1", m.Probe)
        for probe in probes[num_answered:]:
            answer = m.ProbeAnswer(worker="w1", stream="s", incarnation=1, recipe=probe.recipe, spec=BATCH_SPEC)
            service.hears("w1", answer)
        num_answered = len(probes)
    return len({probed.recipe for probed in service.sent_to("s#1", m.Probed)})


def many(num_recipes: int) -> list[Recipe]:
    return [Recipe(chain=Chain(file=f"{n}.yaml", nodes=(ChainNode(name=f"T{n}"),))) for n in range(num_recipes)]


def test_a_schedule_of_any_length_is_probed() -> None:
    """`--timeline` of a run of a hundred swaps asks for a hundred probes at once."""
    service, recipes = Service(), many(150)
    entries = tuple(
        TimelineEntry(start=step, step=step, recipe=recipe.digest, batch_size=1) for step, recipe in enumerate(recipes)
    )
    long = spec(recipes=tuple(recipes), timeline=entries, num_samples=1000, end_position=1000)
    service.hears("s#1", register(window=0, spec=long))
    service.hears("w1", join("w1"))
    assert probe_answers(service, recipes) == 150
    assert service.dispatcher.num_refused_messages == 0


def test_recipes_that_probe_well_and_are_never_used_take_no_room() -> None:
    """The trainer refuses a chain of another shape after its probe; a hundred such edits must not wedge the next."""
    service = Service()
    service.hears("s#1", register(batch_specs={RECIPE.digest: BATCH_SPEC}))
    service.hears("w1", join("w1"))
    for recipe in many(200):
        assert probe_answers(service, [recipe]) == len(service.sent_to("s#1", m.Probed))
    assert len(service.sent_to("s#1", m.Probed)) == 200
    (stream,) = service.dispatcher._streams.values()
    assert RECIPE.digest in stream.batch_specs
    assert len(stream.batch_specs) <= 100
    service.hears("w2", join("w2"))
    service.hears("s#1", beat(1, head_step=1))
    assert recipes_told(service, "w2") == {RECIPE.digest}


def test_a_worker_and_the_stream_that_it_probes_for_may_be_given_up_at_once() -> None:
    """After a long stop of the whole machine both have been silent for too long."""
    service = Service()
    service.hears("s#1", register(window=0), m.AskProbe(stream="s", incarnation=1, recipe=RECIPE))
    service.hears("w1", join("w1"))
    service.hears("w2", join("w2"))
    assert len(service.sent_to("w1", m.Probe)) == 1
    service.now_s = 61.0
    service.hears("w2", m.WorkerBeat(worker="w2", number=1, received=0, holding=()))
    service.ticks_for(0.25)
    assert (service.leases.streams, set(service.leases.workers)) == ({}, {"w2"})


def test_a_chain_that_crashes_while_it_is_tried_costs_the_leases_at_its_samples_nothing() -> None:
    """Early in a run the window covers positions that are probed, too: under the chain in use they are sound."""
    service = Service()
    service.hears("s#1", register(batch_specs={RECIPE.digest: BATCH_SPEC}))
    for number in (1, 2):
        worker = f"w{number}"
        service.hears(worker, join(worker))
        service.hears("s#1", m.AskProbe(stream="s", incarnation=1, recipe=OTHER))
        assert [granted.lease.start for granted in service.sent_to(worker, m.Granted)] == [0, 4]
        assert [probe.skip for probe in service.sent_to(worker, m.Probe)] == [(0,) * (number - 1)]
        died = m.WorkerDied(
            worker=worker, cause="SIGSEGV", by_itself=True, stream="s", incarnation=1, position=0, probed=OTHER.digest
        )
        service.hears("pool", died)
    (answer,) = service.sent_to("s#1", m.Probed)
    assert [problem.got for problem in answer.problems] == ["they died of it: SIGSEGV"]
    assert service.sent_to("s#1", m.SamplesLost) == []
    service.hears("w3", join("w3"))
    assert [(granted.lease.start, granted.lease.stop) for granted in service.sent_to("w3", m.Granted)] == [
        (0, 4),
        (4, 8),
    ]


SLOW = Recipe(chain=Chain(file="slow.yaml", line=3, path="train.chain", nodes=(ChainNode(name="Slow"),)))


def test_a_chain_whose_construction_hangs_is_refused_with_its_place_and_the_next_one_is_tried() -> None:
    """Its worker is replaced, and nothing that it held is to blame, however often that happens."""
    service = Service()
    service.hears("s#1", register(batch_specs={RECIPE.digest: BATCH_SPEC}))
    hung = "hung: no progress in building its chain for 30 s in /plug.py, line 7 in __init__"
    for number in range(1, 7):
        worker = f"w{number}"
        service.hears(worker, join(worker))
        service.hears("s#1", m.AskProbe(stream="s", incarnation=1, recipe=SLOW))
        assert len(service.sent_to(worker, m.Granted)) == 2
        died = m.WorkerDied(
            worker=worker, cause=hung, by_itself=True, stream="s", incarnation=1, position=BUILDING, probed=SLOW.digest
        )
        service.hears("pool", died)
        (problem,) = service.sent_to("s#1", m.Probed)[-1].problems
        assert str(problem.problem()).startswith("slow.yaml:3: train.chain\n")
        assert "/plug.py, line 7 in __init__" in problem.got
        assert len(service.sent_to("s#1", m.Probed)) == number
    assert service.sent_to("s#1", m.SamplesLost) == []
    service.hears("w9", join("w9"))
    service.hears("s#1", m.AskProbe(stream="s", incarnation=1, recipe=OTHER))
    assert [probe.recipe for probe in service.sent_to("w9", m.Probe)] == [OTHER.digest]
    assert [granted.lease.start for granted in service.sent_to("w9", m.Granted)] == [0, 4]


def declined(worker: str = "w1", incarnation: int = 1) -> m.StreamDeclined:
    problem = m.Location(file="--source", line=0, path="photos", expected="64 samples", got="63 samples")
    return m.StreamDeclined(worker=worker, stream="s", incarnation=incarnation, problems=(problem,))


def test_a_worker_that_can_not_serve_a_stream_is_given_no_more_of_it_and_others_make_it() -> None:
    """One pool with a wrong folder must not end a job that another pool serves well."""
    service = Service()
    service.hears("s#1", register(window=1, batch_specs={RECIPE.digest: BATCH_SPEC}))
    service.hears("w1", msgspec.structs.replace(join("w1"), pool="p"))
    service.hears("w1", m.WorkerBeat(worker="w1", number=1, received=2, holding=(1, 2)))
    service.hears("w2", join("w2"))
    assert service.sent_to("w2", m.Granted) == []

    service.hears("w1", declined(), declined(), m.WorkerBeat(worker="w1", number=2, received=2, holding=()))
    assert [granted.lease.start for granted in service.sent_to("w2", m.Granted)] == [0, 4]
    service.hears("w2", m.WorkerDied(worker="w2", cause="killed by SIGKILL", by_itself=False))
    service.ticks_for(5.0)
    assert len(service.sent_to("w1", m.Granted)) == 2, "none since"
    assert service.sent_to("s#1", m.StreamFailed) == []
    state = service.sent_to("s#1", m.ServiceState)[-1]
    assert (state.workers, state.able_workers) == (1, 0)
    assert "worker w1 of pool p on here declined stream s\n--source: photos\n  expected: 64 samples" in state.declined

    service.hears("w1", join("w1"))
    assert len(service.sent_to("w1", m.Granted)) == 4, "it was started again, perhaps rightly"
    assert len(service.leases.streams) == 1


def test_a_declined_probe_waits_for_another_worker() -> None:
    """Neither a refusal of the chain nor a failed try."""
    service = Service()
    service.hears("s#1", register(window=0), m.AskProbe(stream="s", incarnation=1, recipe=RECIPE))
    service.hears("w1", join("w1"), declined())
    service.ticks_for(9.0)
    assert len(service.sent_to("w1", m.Probe)) == 1
    service.hears("w2", join("w2"))
    assert len(service.sent_to("w2", m.Probe)) == 1
    assert service.sent_to("s#1", m.Probed) == []


def test_what_was_declined_is_forgotten_with_its_stream() -> None:
    """A trainer that resumed may have another source; and streams come and go for weeks."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"), declined(), declined(incarnation=9))
    service.hears("s#2", register(incarnation=2))
    assert service.leases.workers["w1"].declined == {}
    service.hears("w1", m.WorkerBeat(worker="w1", number=1, received=2, holding=()))
    assert [granted.lease.incarnation for granted in service.sent_to("w1", m.Granted)][2:] == [2, 2]


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
