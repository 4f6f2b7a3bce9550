"""The dispatcher: whatever peers send, it goes on, and tells each peer what it must know."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import messages as m
from pipeline.admission import MAX_WINDOW_SAMPLES
from pipeline.dispatcher import Dispatcher
from pipeline.leases import Leases
from pipeline.recipe import BatchSpec, Chain, ChainNode, FieldSpec, Recipe
from pipeline.service_messages import AskScale, AskStatus, AskStop, AskSwap, PoolBeat
from pipeline.timeline import TimelineEntry
from pipeline.wire import MAX_SLICE_SAMPLES, encode_message
from tests.sizes import cases

RECIPE = Recipe(chain=Chain(file="chain.yaml", nodes=()))
OTHER = Recipe(chain=Chain(file="other.yaml", nodes=(ChainNode(name="HorizontalFlip"),)))
BATCH_SPEC = BatchSpec(fields=(FieldSpec(name="image", dtype="uint8", shape=(2, 2, 3)),))
FINGERPRINT = "numpy 2, probe 00ff"


class Service:
    """A dispatcher whose messages are kept, by peer."""

    def __init__(self) -> None:
        self.sent: dict[bytes, list[m.AnyMessage]] = {}
        self.leases = Leases()
        self.dispatcher = Dispatcher(lambda peer, message: self.sent.setdefault(peer, []).append(message), self.leases)
        self.now_s = 0.0

    def hears(self, peer: str, *said: m.AnyMessage) -> None:
        for message in said:
            self.dispatcher.receive(peer.encode(), encode_message(message), self.now_s)

    def ticks_for(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.25)):
            self.now_s += 0.25
            self.dispatcher.tick(self.now_s)

    def sent_to(self, peer: str, kind: type[typing.Any]) -> list[typing.Any]:
        return [message for message in self.sent.get(peer.encode(), []) if isinstance(message, kind)]


def spec(**changes: typing.Any) -> m.StreamSpec:
    entry = TimelineEntry(start=0, step=0, recipe=RECIPE.digest, batch_size=8)
    made = m.StreamSpec(
        source="photos", source_fingerprint="ff", num_samples=64, seed=0, shuffle=True, last_batch="drop",
        end_position=64, slice_size=4, recipes=(RECIPE,), timeline=(entry,), endpoint="ipc:///nowhere",
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def register(window: int = 2, incarnation: int = 1, **changes: typing.Any) -> m.Register:
    made = m.Register(stream="s", incarnation=incarnation, spec=spec(), head_step=0, arrived=b"", window=window)
    return msgspec.structs.replace(made, **changes)


def beat(number: int, **changes: typing.Any) -> m.StreamBeat:
    made = m.StreamBeat(stream="s", incarnation=1, number=number, head_step=0, arrived=b"", window=2)
    return msgspec.structs.replace(made, **changes)


def swapped(step: int, recipe: Recipe = OTHER, batch_size: int = 8) -> m.StreamSpec:
    """The stream, with another recipe from a step on."""
    entry = TimelineEntry(start=8 * step, step=step, recipe=recipe.digest, batch_size=batch_size)
    return spec(recipes=(RECIPE, recipe), timeline=(*spec().timeline, entry))


def pool_beat(number: int, *workers: str, **changes: typing.Any) -> PoolBeat:
    made = PoolBeat(
        pool="p", host="here", pid=1, started_ns=100, number=number, size=2, min_workers=1, max_workers=8,
        automatic=False, num_restarts=0, workers=workers,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def join(worker: str, fingerprint: str = FINGERPRINT) -> m.Join:
    return m.Join(worker=worker, host="here", pid=1, fingerprint=fingerprint, sources=("photos",))


@contextmanager
def refused(service: Service) -> Iterator[None]:
    """The message inside is dropped and counted, and nothing else happens."""
    before, sent = service.dispatcher.num_refused_messages, str(service.sent)
    yield
    assert (service.dispatcher.num_refused_messages, str(service.sent)) == (before + 1, sent)


@contextmanager
def refused_with_an_answer(service: Service, peer: str) -> Iterator[None]:
    """The message inside is dropped and counted, and its sender alone hears why."""
    before, known = service.dispatcher.num_refused_messages, set(service.leases.streams)
    sent = {name: len(messages) for name, messages in service.sent.items()}
    yield
    assert (service.dispatcher.num_refused_messages, set(service.leases.streams)) == (before + 1, known)
    (answer,) = service.sent[peer.encode()][sent.pop(peer.encode(), 0) :]
    assert isinstance(answer, m.StreamFailed)
    assert "refused" in answer.cause
    assert {name: len(messages) for name, messages in service.sent.items() if name in sent} == sent


def test_a_worker_is_told_what_a_stream_is_before_its_first_lease() -> None:
    """Its inbox is a queue: a lease of an unknown stream could not be made."""
    service = Service()
    service.hears("s#1", register(batch_specs={RECIPE.digest: BATCH_SPEC}))
    service.hears("w1", join("w1"))

    kinds = [type(message) for message in service.sent[b"w1"]]

    assert kinds == [m.OpenStream, m.Granted, m.Granted]
    assert service.sent_to("w1", m.OpenStream)[0].batch_specs == {RECIPE.digest: BATCH_SPEC}
    assert [granted.lease.start for granted in service.sent_to("w1", m.Granted)] == [0, 4]


def test_a_probe_is_asked_of_a_worker_and_its_answer_reaches_the_trainer() -> None:
    """Before it, the window is 0 and nothing is leased; the answer is told to workers that join later."""
    service = Service()
    service.hears("s#1", register(window=0), m.AskProbe(stream="s", incarnation=1, recipe=RECIPE))
    service.hears("w1", join("w1"))
    assert len(service.sent_to("w1", m.Probe)) == 1
    assert service.sent_to("w1", m.Granted) == []

    answer = m.ProbeAnswer(worker="w1", stream="s", incarnation=1, recipe=RECIPE.digest, spec=BATCH_SPEC)
    service.hears("w1", answer, answer)

    assert [probed.spec for probed in service.sent_to("s#1", m.Probed)] == [BATCH_SPEC]
    service.hears("s#1", beat(1))
    service.hears("w2", join("w2"))
    assert service.sent_to("w2", m.OpenStream)[0].batch_specs == {RECIPE.digest: BATCH_SPEC}


def probed_while_dying(cause: str, *, by_itself: bool) -> tuple[int, m.Probed]:
    """How many workers died of a probe until it was refused, and the refusal."""
    service = Service()
    service.hears("s#1", register(window=0), m.AskProbe(stream="s", incarnation=1, recipe=RECIPE))
    for number in range(10):
        service.hears(f"w{number}", join(f"w{number}"))
        assert len(service.sent_to(f"w{number}", m.Probe)) == 1
        service.hears("pool", m.WorkerDied(worker=f"w{number}", cause=cause, by_itself=by_itself))
        if refusals := service.sent_to("s#1", m.Probed):
            return number + 1, refusals[0]
    raise AssertionError("never refused")


def test_a_probe_is_refused_after_two_crashes_or_five_kills_from_outside() -> None:
    """One worker may die by chance, and who is killed from outside says little about the chain: as for slices."""
    for cause, by_itself, num_deaths in (("killed by SIGSEGV", True, 2), ("killed by SIGKILL", False, 5)):
        num_died, probed = probed_while_dying(cause, by_itself=by_itself)
        assert (num_died, probed.spec) == (num_deaths, None)
        assert cause in probed.problems[0].got


def test_a_probe_whose_question_or_answer_was_lost_is_repeated_until_the_trainer_knows() -> None:
    """Each of AskProbe, Probe, ProbeAnswer and Probed may be lost once; the stream must not wait for ever."""
    service = Service()
    ask = m.AskProbe(stream="s", incarnation=1, recipe=RECIPE)
    service.hears("s#1", register(window=0), ask)
    service.hears("w1", join("w1"))
    for number in range(6):
        service.hears("s#1", ask)
        service.hears("w1", m.WorkerBeat(worker="w1", number=number + 1, received=0, holding=()))
        service.ticks_for(1.0)
    assert len(service.sent_to("w1", m.Probe)) == 2, "not with each beat: a slow probe would queue up"

    answer = m.ProbeAnswer(worker="w1", stream="s", incarnation=1, recipe=RECIPE.digest, spec=BATCH_SPEC)
    service.hears("w1", answer)
    service.hears("s#1", ask)

    assert [probed.spec for probed in service.sent_to("s#1", m.Probed)] == [BATCH_SPEC] * 2
    assert len(service.sent_to("w1", m.Probe)) == 2, "the second answer came from memory"


def test_a_worker_that_never_heard_of_a_stream_is_told_again_and_its_lease_is_given_out_at_once() -> None:
    """Else one lost OpenStream makes it skip every lease of the stream for ever."""
    service = Service()
    service.hears("s#1", register(window=1))
    service.hears("w1", join("w1"))
    before = len(service.sent[b"w1"])
    service.hears("w1", m.WorkerBeat(worker="w1", number=1, received=2, holding=(2,)))
    assert service.sent[b"w1"][before:] == []
    service.hears("w1", m.AskStream(worker="w1", stream="s", incarnation=1, lease=1))

    opened, granted = service.sent[b"w1"][before:]

    assert isinstance(opened, m.OpenStream)
    assert isinstance(granted, m.Granted)
    assert (granted.lease.number, granted.lease.start) == (3, 0)


def test_a_worker_that_was_to_probe_a_stream_it_never_heard_of_is_asked_again() -> None:
    """The lost OpenStream may have stood before a probe as well."""
    service = Service()
    service.hears("s#1", register(window=0), m.AskProbe(stream="s", incarnation=1, recipe=RECIPE))
    service.hears("w1", join("w1"), m.AskStream(worker="w1", stream="s", incarnation=1))

    kinds = [type(message) for message in service.sent[b"w1"]]

    assert kinds == [m.OpenStream, m.Probe] * 2


@pytest.mark.parametrize(
    "end",
    [m.WorkerDied(worker="w1", cause="killed by SIGKILL", by_itself=False), None],
)
def test_workers_of_the_past_are_forgotten(end: m.WorkerDied | None) -> None:
    """Jobs run for days and workers come and go, by death or in silence: a name for each would add up."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    (stream,) = service.dispatcher._streams.values()
    assert set(stream.opened) == {"w1"}
    if end is None:
        service.ticks_for(12.0)
    else:
        service.hears("pool", end)
    assert stream.opened == {}


def test_other_bytes_are_refused_in_the_middle_of_a_stream_also_when_no_worker_is_left() -> None:
    """All workers may be replaced by an upgrade while the job runs: the rest of the stream would differ."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    service.hears("pool", m.WorkerDied(worker="w1", cause="killed by SIGKILL", by_itself=False))
    service.hears("w2", join("w2", "numpy 1, probe 0000"))
    assert len(service.sent_to("w2", m.Refused)) == 1

    service.hears("s#1", m.StreamGoodbye(stream="s", incarnation=1))
    service.hears("w3", join("w3", "numpy 1, probe 0000"))
    assert set(service.leases.workers) == {"w3"}, "with the stream ends what it binds"


def test_a_stream_that_nobody_has_worked_on_binds_nobody() -> None:
    """Workers that came and went before it say nothing about its bytes."""
    service = Service()
    service.hears("w1", join("w1"))
    service.hears("pool", m.WorkerDied(worker="w1", cause="killed by SIGKILL", by_itself=False))
    service.hears("s#1", register())
    service.hears("w2", join("w2", "numpy 1, probe 0000"))
    assert set(service.leases.workers) == {"w2"}


def test_why_a_worker_was_refused_is_not_hidden_by_how_it_ended() -> None:
    """A refused worker ends by itself, and its pool reports `exit code 3`, which helps nobody."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    service.hears("w2", join("w2", "numpy 1, probe 0000"))
    service.hears("pool", m.WorkerDied(worker="w2", cause="ended with exit code 3", by_itself=True))
    service.ticks_for(1.0)
    assert "was refused" in service.sent_to("s#1", m.ServiceState)[-1].note

    service.hears("pool", m.WorkerDied(worker="w3", cause="ended with exit code 1", by_itself=True))
    service.ticks_for(1.0)
    assert "exit code 1" in service.sent_to("s#1", m.ServiceState)[-1].note, "it died before it could join"


def test_a_registration_of_an_older_incarnation_evicts_nobody_and_is_answered() -> None:
    """It is late, or of a trainer that does not know that it was replaced; the two would evict each other for ever."""
    service = Service()
    service.hears("s#5", register(incarnation=5))
    service.hears("s#1", register(incarnation=1))
    assert set(service.leases.streams) == {("s", 5)}
    assert "started later" in service.sent_to("s#1", m.StreamFailed)[0].cause
    assert service.sent_to("s#5", m.StreamFailed) == []


def test_a_probe_that_could_not_read_is_asked_of_another_worker_and_refused_after_three() -> None:
    """A stale file handle on one machine is neither the chain's fault nor the end of the job."""
    service = Service()
    service.hears("s#1", register(window=0), m.AskProbe(stream="s", incarnation=1, recipe=RECIPE))
    service.hears("w1", join("w1"))
    service.hears("w2", join("w2"))
    failed = m.ProbeFailed(worker="w1", stream="s", incarnation=1, recipe=RECIPE.digest, cause="stale file handle")
    service.hears("w1", failed, failed)
    service.ticks_for(0.25)
    assert len(service.sent_to("w2", m.Probe)) == 1

    service.hears("w2", msgspec.structs.replace(failed, worker="w2"))
    service.ticks_for(0.25)
    assert service.sent_to("s#1", m.Probed) == []
    service.hears("w1", failed)

    (probed,) = service.sent_to("s#1", m.Probed)
    assert probed.spec is None
    assert "stale file handle" in probed.problems[0].got
    assert set(service.leases.workers) == {"w1", "w2"}


def test_workers_that_their_pool_ended_are_to_blame_for_nothing() -> None:
    """Pools come and go while a job runs: what their workers held is leased again at once, as if never before."""
    service = Service()
    service.hears("s#1", register())
    for number in range(10):
        service.hears(f"w{number}", join(f"w{number}"))
        starts = [granted.lease.start for granted in service.sent_to(f"w{number}", m.Granted)]
        assert starts == [0, 4]
        service.hears("pool", m.WorkerDied(worker=f"w{number}", cause="its pool ended", by_itself=False, in_peace=True))
    assert service.leases.workers == {}
    assert service.sent_to("s#1", m.SamplesLost) == []


def test_a_worker_whose_bytes_would_differ_is_refused_while_others_live() -> None:
    """A stream made by two kinds of library would not be a function of its coordinates."""
    service = Service()
    service.hears("w1", join("w1"))
    service.hears("w2", join("w2", "numpy 1, probe 0000"))

    (refusal,) = service.sent_to("w2", m.Refused)

    assert FINGERPRINT in refusal.cause
    assert "numpy 1" in refusal.cause
    assert set(service.leases.workers) == {"w1"}


def test_a_restarted_dispatcher_asks_everyone_to_introduce_themselves() -> None:
    """It holds soft state only: peers that beat without being known are asked, and then work goes on."""
    service = Service()
    service.hears("s#1", beat(7))
    service.hears("w1", m.WorkerBeat(worker="w1", number=3, received=2, holding=(2,)))
    assert len(service.sent_to("s#1", m.RegisterAgain)) == 1
    assert len(service.sent_to("w1", m.JoinAgain)) == 1

    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    assert service.sent_to("w1", m.Granted)


def test_a_new_incarnation_replaces_the_old_one() -> None:
    """The trainer that resumed is the same stream; slices for the dead one's socket are void."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    service.hears("s#2", register(incarnation=2))

    assert service.sent_to("w1", m.CloseStream) == [m.CloseStream(stream="s", incarnation=1)]
    assert set(service.leases.streams) == {("s", 2)}


def test_a_peer_can_not_speak_for_another_worker() -> None:
    """Names are identities of connections; only a pool reports deaths of others."""
    service = Service()
    service.hears("w1", join("w1"))
    with refused(service):
        service.hears("w2", m.WorkerBeat(worker="w1", number=1, received=0, holding=()))
    assert set(service.leases.workers) == {"w1"}


@pytest.mark.parametrize(
    "message",
    [
        register(spec=spec(slice_size=0)),
        register(spec=spec(slice_size=MAX_SLICE_SAMPLES + 1)),
        register(spec=spec(num_samples=0)),
        register(spec=spec(timeline=())),
        register(window=-1),
        register(window=MAX_WINDOW_SAMPLES),
        register(head_step=-1),
        register(head_step=9),
        register(
            spec=spec(timeline=(TimelineEntry(start=0, step=0, recipe="r", batch_size=2**62),), num_samples=2**62)
        ),
    ],
)
def test_numbers_that_can_not_be_served_are_refused(message: m.AnyMessage) -> None:
    """A few bytes must not cost the service its memory, which cuts the whole window into slices; and a trainer that is
    not told would wait for half a minute and then blame silence."""
    service = Service()
    with refused_with_an_answer(service, "s#1"):
        service.hears("s#1", message)
    service.hears("s#1", register())
    for wrong in (beat(1, window=2**62), beat(1, window=-1), beat(1, head_step=-5), beat(1, head_step=10)):
        with refused_with_an_answer(service, "s#1"):
            service.hears("s#1", wrong)


def test_a_message_that_is_not_for_a_dispatcher_is_refused() -> None:
    """Only the dispatcher itself says that a stream is registered."""
    service = Service()
    with refused(service):
        service.hears("s#1", m.Registered(stream="s", incarnation=1))


def test_a_failed_read_of_a_sample_that_was_not_leased_changes_nothing() -> None:
    """Cutting the slice around it would lease positions that are in no batch."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    for _ in range(5):
        for lease in (1, 2, 3):
            service.hears("w1", m.SliceFailed(worker="w1", lease=lease, position=70, attempt=0, cause="I/O error"))
        service.ticks_for(1.0)

    assert service.sent_to("s#1", m.SamplesLost) == []
    assert all(granted.lease.stop <= 8 for granted in service.sent_to("w1", m.Granted))


def test_trainers_hear_about_the_service_every_second() -> None:
    """What they say when nothing arrives rests on it."""
    service = Service()
    service.hears("s#1", register())
    service.hears("w1", join("w1"))
    service.ticks_for(5.0)

    states = service.sent_to("s#1", m.ServiceState)

    assert 4 <= len(states) <= 6
    assert (states[-1].workers, states[-1].leased_slices) == (1, 2)


SMALL = st.integers(-2, 12)
NAMES = st.sampled_from(["w1", "w2", "s", "s#1", "s#2"])
HERE = {"stream": st.just("s"), "incarnation": st.sampled_from([1, 2])}
SAID = st.one_of(
    st.builds(join, NAMES),
    st.builds(register, window=SMALL, incarnation=HERE["incarnation"], head_step=SMALL, arrived=st.binary(max_size=9)),
    st.builds(
        m.StreamBeat, **HERE, number=SMALL, head_step=SMALL, arrived=st.binary(max_size=9), window=SMALL,
        quarantined=st.dictionaries(SMALL, SMALL, max_size=2),
    ),
    st.builds(m.AskProbe, **HERE, recipe=st.sampled_from([RECIPE, OTHER])),
    st.builds(m.StreamGoodbye, **HERE),
    st.builds(m.WorkerBeat, worker=NAMES, number=SMALL, received=SMALL, holding=st.lists(SMALL, max_size=3).map(tuple)),
    st.builds(m.SliceFailed, worker=NAMES, lease=SMALL, position=SMALL, attempt=SMALL, cause=st.just("I/O error")),
    st.builds(m.AskStream, worker=NAMES, **HERE, lease=SMALL),
    st.builds(m.StreamDeclined, worker=NAMES, **HERE, problems=st.just(())),
    st.builds(m.StreamBroken, **HERE, cause=st.just("shape")),
    st.builds(
        m.ProbeAnswer, worker=NAMES, **HERE, recipe=st.sampled_from([RECIPE.digest, "other"]),
        spec=st.sampled_from([None, BATCH_SPEC]),
    ),
    st.builds(m.ProbeFailed, worker=NAMES, **HERE, recipe=st.sampled_from([RECIPE.digest, "other"]), cause=st.just("")),
    st.builds(
        m.WorkerDied, worker=NAMES, cause=st.just("SIGSEGV"), by_itself=st.booleans(), **HERE,
        position=st.integers(-2, 70),
    ),
    st.builds(m.Registered, **HERE),
    st.builds(m.Leaving, worker=NAMES),
    st.builds(m.OperationAnswer, **HERE, operation=NAMES, done=st.booleans(), text=st.just("")),
    st.builds(
        register, window=SMALL, incarnation=HERE["incarnation"], head_step=SMALL, revision=SMALL,
        spec=st.builds(swapped, st.integers(1, 9), batch_size=st.integers(1, 9)) | st.builds(spec, slice_size=SMALL),
    ),
    st.builds(
        pool_beat, SMALL, NAMES, pool=NAMES, started_ns=SMALL, size=SMALL, min_workers=SMALL, max_workers=SMALL,
        automatic=st.booleans(),
    ),
    st.builds(AskScale, operation=NAMES, pool=NAMES | st.just(""), num_workers=SMALL, automatic=st.booleans()),
    st.builds(AskSwap, operation=NAMES, stream=NAMES | st.just("")),
    st.builds(AskStop, operation=NAMES),
    st.builds(AskStatus, operation=NAMES),
)  # fmt: skip


@settings(max_examples=cases(400))
@given(said=st.lists(st.tuples(NAMES, SAID | st.binary(max_size=20), st.integers(0, 8)), max_size=40))
def test_no_conversation_ends_the_dispatcher(said: list[tuple[str, m.AnyMessage | bytes, int]]) -> None:
    """Any messages of any peers in any order, garbage among them: no exception, and leases lie inside the stream."""
    service = Service()
    for peer, message, quarters in said:
        frame = message if isinstance(message, bytes) else encode_message(message)
        service.dispatcher.receive(peer.encode(), frame, service.now_s)
        service.ticks_for(quarters / 4)
    for sent in service.sent.values():
        for granted in sent:
            if isinstance(granted, m.Granted):
                assert 0 <= granted.lease.start < granted.lease.stop <= 64
