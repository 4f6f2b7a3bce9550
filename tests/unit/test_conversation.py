"""What a trainer says to its dispatcher: the whole truth until it is known, then what has changed; never a beat about
a timeline that the other side may not have."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import msgspec
import pytest

from pipeline.errors import ConfigError, RunFailed
from pipeline.message import Location
from pipeline.messages import (
    AnyMessage,
    AskProbe,
    Lease,
    Lost,
    OperationAnswer,
    Probed,
    Register,
    RegisterAgain,
    Registered,
    SamplesLost,
    ServiceState,
    StopAsked,
    StreamBeat,
    StreamFailed,
    StreamSpec,
    SwapAsked,
)
from pipeline.reassembly import Placement, Reassembly
from pipeline.recipe import BatchSpec, Chain, ChainNode, FieldSpec, Recipe
from pipeline.service_messages import StreamReport
from pipeline.timeline import Timeline, TimelineEntry
from pipeline.wire import decode_message, encode_message
from tests.laws import header_of
from trainer.conversation import Conversation
from trainer.course import Course
from trainer.notes import Notes
from trainer.policy import BadSamplePolicy
from trainer.raw_batches import ReceiverState
from trainer.swapping import Outcome, Swapping, Wish

SPEC = BatchSpec(
    fields=(
        FieldSpec(name="image", dtype="uint8", shape=(8, 8, 3)),
        FieldSpec(name="label", dtype="int64", shape=()),
    )
)
ID = {"stream": "run/train", "incarnation": 7}


def recipe(name: str) -> Recipe:
    return Recipe(chain=Chain(file=f"{name}.yaml", nodes=(ChainNode(name=name),)))


FIRST, SECOND, OTHER = recipe("first"), recipe("second"), recipe("other")


@dataclass
class Talk:
    """A trainer's side of a stream of 50 batches of 4, with a second chain from step 25 on."""

    head_step: int = 0
    fingerprint: str = ""
    is_swappable: bool = True
    is_stoppable: bool = True
    samples_per_s: float = 0.0
    journal: list[str] = field(default_factory=list)
    num_stops: int = 0

    def __post_init__(self) -> None:
        entries = [
            TimelineEntry(start=0, step=0, recipe=FIRST.digest, batch_size=4),
            TimelineEntry(start=100, step=25, recipe=SECOND.digest, batch_size=4),
        ]
        timeline = Timeline(entries, num_samples=100, last_batch="drop", end_position=200)
        spec = StreamSpec(
            source="photos",
            source_fingerprint="f",
            num_samples=100,
            seed=0,
            shuffle=True,
            last_batch="drop",
            end_position=200,
            slice_size=4,
            recipes=(FIRST, SECOND),
            timeline=tuple(entries),
            endpoint="inproc://x",
        )
        self.course = Course(timeline, {FIRST.digest: FIRST, SECOND.digest: SECOND}, window=lambda size, spec: 3)
        lock = threading.Condition()
        self.reassembly = Reassembly(timeline, stream="run/train", incarnation=7, window=0, head_step=self.head_step)
        self.swapping = Swapping(self.course, self.ended)
        self.policy = BadSamplePolicy("substitute", 0.5, 40, identify=lambda position, attempt: (position, "x.jpg"))
        self.state = ReceiverState()
        self.conversation = Conversation(
            stream="run/train",
            incarnation=7,
            spec=spec,
            course=self.course,
            swapping=self.swapping,
            reassembly=self.reassembly,
            policy=self.policy,
            state=self.state,
            notes=Notes(lambda action, **fields: self.journal.append(action)),
            lock=lock,
            fingerprint=self.fingerprint,
            recipe_of=(lambda chain: Recipe(chain=chain)) if self.is_swappable else None,
            on_stop=self.stop if self.is_stoppable else None,
            samples_per_s=lambda: self.samples_per_s,
        )

    def ended(self, wish: Wish, outcome: Outcome) -> None:
        self.conversation.outcome(wish, outcome)

    def stop(self) -> str:
        self.num_stops += 1
        return "it stops"

    def says(self, report: StreamReport | None = None) -> list[AnyMessage]:
        """What it says now; every message survives the wire."""
        self.conversation.speak(report)
        return self.sent()

    def sent(self) -> list[AnyMessage]:
        said = [decode_message(encode_message(message)) for message in self.conversation.outbox]
        self.conversation.outbox.clear()
        return said

    def hears(self, message: AnyMessage) -> bool:
        return self.conversation.hear(encode_message(message))

    def arrive(self, step: int) -> None:
        batch = self.course.timeline.batch(step)
        lease = Lease(number=1, start=batch.start, stop=batch.stop, recipe=batch.recipe, **ID)
        header = header_of(lease, "w")
        placement = self.reassembly.place(header)
        assert isinstance(placement, Placement)
        self.reassembly.mark(header, placement)

    def begin(self) -> None:
        """Registered, and every recipe probed."""
        self.hears(Registered(**ID))
        for each in self.course.unprobed(self.head_step):
            self.hears(Probed(recipe=each.digest, worker="w", spec=SPEC, **ID))


def probed(recipe: Recipe, *, unleased_step: int = 0, problem: str = "") -> Probed:
    if problem:
        where = Location(file=recipe.chain.file, line=1, path="chain[0]", expected="a transform", got=problem)
        return Probed(recipe=recipe.digest, worker="w", problems=(where,), **ID)
    return Probed(recipe=recipe.digest, worker="w", spec=SPEC, unleased_step=unleased_step, **ID)


def test_it_registers_until_it_is_known_and_asks_for_every_recipe_before_a_batch_may_be_made() -> None:
    """A window of 0 means that nothing is leased yet."""
    talk = Talk()
    for _ in range(2):
        (registration,) = talk.says()
        assert isinstance(registration, Register)
        assert (registration.window, registration.revision, registration.head_step) == (0, 0, 0)
    assert talk.hears(Registered(**ID))
    for _ in range(2):
        beat, *asked = talk.says()
        assert isinstance(beat, StreamBeat)
        assert beat.window == 0
        assert [each.recipe for each in asked if isinstance(each, AskProbe)] == [FIRST, SECOND]
    talk.hears(probed(SECOND))
    beat, *asked = talk.says()
    assert [each.recipe for each in asked if isinstance(each, AskProbe)] == [FIRST]
    talk.hears(probed(FIRST))
    (beat,) = talk.says()
    assert isinstance(beat, StreamBeat)
    assert beat.window == 3


def test_of_a_held_stream_nothing_is_made_though_all_is_probed_and_swapped() -> None:
    """Until it is known which chains it begins with; then the next beat opens the window."""
    talk = Talk()
    talk.course.is_held = True
    talk.begin()
    talk.conversation.wish(Wish(operation="edit 1", recipe=OTHER, edited=""))
    assert not talk.conversation.is_settled
    beat, asked = talk.says()
    assert isinstance(beat, StreamBeat)
    assert (beat.window, asked) == (0, AskProbe(recipe=OTHER, **ID))
    talk.hears(probed(OTHER))
    assert talk.conversation.is_settled
    assert talk.course.timeline.entry_at(0).recipe == OTHER.digest
    (registration,) = talk.says()
    assert isinstance(registration, Register)
    assert registration.window == 0
    talk.hears(Registered(revision=1, **ID))
    talk.course.is_held = False
    (beat,) = talk.says()
    assert isinstance(beat, StreamBeat)
    assert beat.window == 3


def test_a_resumed_stream_tells_its_whole_timeline_and_asks_only_for_what_lies_ahead() -> None:
    """The past is told, since a position is found by it; it is not made again."""
    talk = Talk(head_step=30, fingerprint="py=3.11")
    (registration,) = talk.says()
    assert isinstance(registration, Register)
    assert (registration.head_step, registration.fingerprint) == (30, "py=3.11")
    assert [entry.step for entry in registration.spec.timeline] == [0, 25]
    assert registration.spec.recipes == (SECOND,)
    talk.hears(Registered(**ID))
    _, *asked = talk.says()
    assert [each.recipe for each in asked if isinstance(each, AskProbe)] == [SECOND]


def with_timeline(recipes: list[Recipe], head_step: int) -> Talk:
    """At `head_step` of a stream with a batch of 4 for each of these recipes, and one for all that come after."""
    talk = Talk(head_step=head_step)
    entries = [
        TimelineEntry(start=4 * step, step=step, recipe=recipe.digest, batch_size=4)
        for step, recipe in enumerate(recipes)
    ]
    talk.course.timeline = Timeline(entries, num_samples=10_000, last_batch="drop", end_position=10_000)
    talk.course.recipes = {recipe.digest: recipe for recipe in recipes}
    talk.course.batch_specs = dict.fromkeys(talk.course.recipes, SPEC)
    return talk


def large_recipes(num_recipes: int, nbytes: int) -> list[Recipe]:
    return [recipe(f"{number} {'x' * nbytes}") for number in range(num_recipes)]


def test_a_registration_stays_small_however_often_the_run_was_swapped() -> None:
    """A socket drops what is too large without a word: the trainer would register in vain, and resume in vain."""
    recipes = large_recipes(200, 50_000)
    (registration,) = with_timeline(recipes, head_step=199).says()
    assert isinstance(registration, Register)
    assert registration.spec.recipes == (recipes[-1],)
    assert set(registration.batch_specs) == {recipes[-1].digest}
    assert len(registration.spec.timeline) == 200, "a step's positions are found by all of it"
    assert len(encode_message(registration)) < 200_000


def test_a_registration_that_no_dispatcher_would_hear_ends_the_stream_and_says_why() -> None:
    """More chains planned ahead than a message holds."""
    talk = with_timeline(large_recipes(200, 50_000), head_step=10)
    with pytest.raises(
        RunFailed, match=r"its registration has \d+ bytes, at most 8388608(.|\n)*190 chains from step 10"
    ):
        talk.says()


def test_an_answer_about_a_swap_waits_for_the_recipes_that_the_stream_begins_with() -> None:
    """What it would replace is not known before."""
    talk = Talk()
    talk.hears(Registered(**ID))
    talk.hears(SwapAsked(operation="op", chain=OTHER.chain, **ID))
    assert OTHER not in [each.recipe for each in talk.says() if isinstance(each, AskProbe)]
    assert not talk.hears(probed(OTHER))
    talk.begin()
    assert [each.recipe for each in talk.says() if isinstance(each, AskProbe)] == [OTHER]


def test_no_swap_is_granted_before_what_a_resume_changes_is_on_disk() -> None:
    """Else a run whose resume is refused, for its evaluation's chain, would have another timeline than before."""
    talk = Talk()
    talk.course.is_written = False
    talk.begin()
    talk.hears(SwapAsked(operation="op", chain=OTHER.chain, **ID))
    assert [type(message) for message in talk.says()] == [StreamBeat]
    assert not talk.hears(probed(OTHER))
    assert talk.course.revision == 0
    talk.course.is_written = True
    assert [each.recipe for each in talk.says() if isinstance(each, AskProbe)] == [OTHER]
    assert talk.hears(probed(OTHER))
    assert talk.course.revision == 1


def test_a_scheduled_chain_that_is_refused_ends_the_stream_before_its_first_batch() -> None:
    """With the place in its file."""
    talk = Talk()
    talk.hears(Registered(**ID))
    with pytest.raises(ConfigError, match=r"second\.yaml:1: chain\[0\]"):
        talk.hears(probed(SECOND, problem="Flop"))


def test_a_dispatcher_that_has_forgotten_everything_is_told_everything() -> None:
    """What has arrived and what was probed included."""
    talk = Talk()
    talk.begin()
    talk.says()
    talk.arrive(1)
    assert talk.hears(RegisterAgain(**ID))
    (registration,) = talk.says()
    assert isinstance(registration, Register)
    assert registration.arrived == b"\xf0"
    assert registration.window == 3
    assert registration.batch_specs == {FIRST.digest: SPEC, SECOND.digest: SPEC}


def test_a_swap_is_probed_then_registered_and_not_beaten_for_before_it_is_known() -> None:
    """An older answer does not count: it is about the timeline before."""
    talk = Talk()
    talk.begin()
    talk.arrive(1)
    ask = SwapAsked(operation="op", chain=OTHER.chain, **ID)
    assert talk.hears(ask)
    assert talk.hears(ask), "the operator repeats itself"
    beat, asked = talk.says()
    assert isinstance(beat, StreamBeat)
    assert asked == AskProbe(recipe=OTHER, **ID)
    assert talk.hears(probed(OTHER, unleased_step=5))
    (answer,) = talk.sent()
    assert isinstance(answer, OperationAnswer)
    assert (answer.operation, answer.done) == ("op", True)
    assert "takes over at step 5" in answer.text
    (registration,) = talk.says()
    assert isinstance(registration, Register)
    assert registration.revision == 1
    assert [entry.recipe for entry in registration.spec.timeline] == [FIRST.digest, OTHER.digest, SECOND.digest]
    assert set(registration.batch_specs) == {FIRST.digest, OTHER.digest, SECOND.digest}
    assert not talk.hears(Registered(**ID))
    assert isinstance(talk.says()[0], Register)
    assert talk.hears(Registered(revision=1, **ID))
    assert isinstance(talk.says()[0], StreamBeat)
    talk.hears(ask)
    assert talk.sent() == [answer], "answered again from memory"


def test_a_boundary_lies_above_what_has_arrived_whatever_the_dispatcher_proposes() -> None:
    """Its proposal is a hint that saves work; a restarted one may not know what it leased."""
    talk = Talk()
    talk.begin()
    talk.says()
    for step in (0, 2):
        talk.arrive(step)
    talk.hears(SwapAsked(operation="op", chain=OTHER.chain, **ID))
    talk.hears(probed(OTHER))
    assert [entry.step for entry in talk.course.timeline.entries] == [0, 3, 25]
    assert talk.reassembly.timeline is talk.course.timeline
    talk.arrive(1)
    talk.reassembly.take_head()
    late = header_of(Lease(number=1, start=12, stop=16, recipe=FIRST.digest, **ID), "w")
    assert getattr(talk.reassembly.place(late), "reason", "") == "wrong_recipe"


def test_a_fast_job_swaps_a_little_later_so_that_no_work_is_for_nothing() -> None:
    """Leasing goes on while the boundary is written down; a slow job begins nothing in that time."""
    for samples_per_s, boundary in ((100.0, 5), (1000.0, 12)):
        talk = Talk(samples_per_s=samples_per_s)
        talk.begin()
        talk.hears(SwapAsked(operation="op", chain=OTHER.chain, **ID))
        talk.hears(probed(OTHER, unleased_step=5))
        assert talk.course.timeline.entries[1].step == boundary


def test_a_refused_swap_is_answered_with_its_place_and_nothing_is_registered() -> None:
    """The old chain goes on."""
    talk = Talk()
    talk.begin()
    talk.hears(SwapAsked(operation="op", chain=OTHER.chain, **ID))
    talk.hears(probed(OTHER, problem="Flop"))
    (answer,) = talk.sent()
    assert isinstance(answer, OperationAnswer)
    assert not answer.done
    assert [problem.got for problem in answer.problems] == ["Flop"]
    assert isinstance(talk.says()[0], StreamBeat)


def test_an_edit_of_a_file_is_answered_to_no_operator() -> None:
    """Nobody asked over the wire."""
    talk = Talk()
    talk.begin()
    talk.conversation.wish(Wish(operation="edit 1", recipe=OTHER, edited=""))
    talk.hears(probed(OTHER))
    assert talk.sent() == []
    assert talk.course.revision == 1


def test_an_evaluations_chain_cant_be_swapped() -> None:
    """Two evaluations compare only under one chain."""
    talk = Talk(is_swappable=False)
    talk.begin()
    talk.hears(SwapAsked(operation="op", chain=OTHER.chain, **ID))
    (answer,) = talk.sent()
    assert isinstance(answer, OperationAnswer)
    assert not answer.done


def test_a_stop_is_passed_on_and_answered_each_time() -> None:
    """The run itself decides when: after its step."""
    talk = Talk()
    for _ in range(2):
        assert talk.hears(StopAsked(operation="op", **ID))
        (answer,) = talk.sent()
        assert isinstance(answer, OperationAnswer)
        assert (answer.done, answer.text) == (True, "it stops")
    assert talk.num_stops == 2


def test_a_stream_in_a_program_of_the_users_own_refuses_to_stop() -> None:
    """A `headrace stop` that says yes and stops nothing would be waited for in vain."""
    talk = Talk(is_stoppable=False)
    talk.hears(StopAsked(operation="op", **ID))
    (answer,) = talk.sent()
    assert isinstance(answer, OperationAnswer)
    assert not answer.done
    assert "a program of the user's own: stop that one" in answer.text


def test_only_what_has_not_arrived_is_given_up() -> None:
    """A copy made before may have come after all, and was used."""
    talk = Talk()
    talk.begin()
    talk.says()
    talk.arrive(0)
    lost = tuple(Lost(position=position, attempt=0, cause="I/O error") for position in (1, 5))
    talk.hears(SamplesLost(lost=lost, **ID))
    assert talk.policy.quarantined == {5: 1}
    beat = talk.says()[0]
    assert isinstance(beat, StreamBeat)
    assert beat.quarantined == {5: 1}


def test_the_workers_fingerprint_is_kept_from_the_first_word_of_it() -> None:
    """A later dispatcher must not admit others."""
    talk = Talk()
    state = ServiceState(workers=1, able_workers=1, sources=(), idle_workers=0, waiting_slices=0, leased_slices=1, **ID)
    talk.hears(state)
    for fingerprint in ("one", "two"):
        talk.hears(msgspec.structs.replace(state, fingerprint=fingerprint))
    (registration,) = talk.says()
    assert isinstance(registration, Register)
    assert registration.fingerprint == "one"


def test_a_stream_that_cant_go_on_raises_and_what_is_for_others_is_counted() -> None:
    """Whatever comes in is one of ours, or is dropped."""
    talk = Talk()
    for frame in (b"", b"garbage", encode_message(Registered(stream="run/train", incarnation=6))):
        assert not talk.conversation.hear(frame)
    assert not talk.hears(not_for_a_trainer())
    assert talk.state.dropped.total() == 4
    with pytest.raises(RunFailed, match="shape"):
        talk.hears(StreamFailed(cause="the shape changed", **ID))


def not_for_a_trainer() -> AnyMessage:
    """A message of ours, but not for a trainer."""
    return StreamBeat(number=1, head_step=0, arrived=b"", window=1, **ID)
