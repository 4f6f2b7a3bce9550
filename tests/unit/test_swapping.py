"""Wishes for another chain: each ends in one outcome, on disk before it counts, never below what has arrived."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, Problem, RemoteProtocolError, RunFailed
from pipeline.recipe import BatchSpec, Chain, ChainNode, FieldSpec, Finish, Recipe
from pipeline.timeline import Timeline, TimelineChange, TimelineEntry
from tests.memory_streams import make_job
from tests.sizes import cases
from trainer.course import Course, require_sound
from trainer.likeness import ANY_SHAPE, ANY_SIZE, MODEL_SHAPE, ONE_SHAPE, Likeness, likeness_of
from trainer.swapping import MAX_ANSWERS, Outcome, Swapping, Wish

LABEL = FieldSpec(name="label", dtype="int64", shape=())
FINISH = Finish(scale=(1.0,), shift=(0.0,), channels_first=True)


def recipe(name: str, file: str = "") -> Recipe:
    return Recipe(chain=Chain(file=file or f"{name}.yaml", nodes=(ChainNode(name=name),), line=3))


def spec(side: int = 8, dtype: str = "uint8", finish: Finish = FINISH) -> BatchSpec:
    return BatchSpec(fields=(FieldSpec(name="image", dtype=dtype, shape=(side, side, 3)), LABEL), finish=finish)


STRONG, WEAK, OTHER = recipe("strong"), recipe("weak"), recipe("other")


@dataclass
class World:
    """A course of 50 batches of 4 under STRONG, and what was written and told."""

    likeness: Likeness = ONE_SHAPE
    free_from_step: int = 0
    last_change_step: int = 0
    disk_is_full: bool = False
    later: tuple[TimelineEntry, ...] = ()
    written: list[tuple[str, TimelineChange]] = field(default_factory=list)
    told: list[tuple[str, Outcome]] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = TimelineEntry(start=0, step=0, recipe=STRONG.digest, batch_size=4, file="strong.yaml")
        timeline = Timeline([first, *self.later], num_samples=100, last_batch="drop", end_position=200)
        self.course = Course(
            timeline,
            {each.digest: each for each in (STRONG, WEAK)},
            window=lambda batch_size, spec: 8,
            batch_specs={STRONG.digest: spec(), WEAK.digest: spec()},
            likeness=self.likeness,
            free_from_step=self.free_from_step,
            last_change_step=self.last_change_step,
            record=self.record,
        )
        self.swapping = Swapping(self.course, lambda wish, outcome: self.told.append((wish.operation, outcome)))

    def record(self, recipe: Recipe, change: TimelineChange) -> None:
        if self.disk_is_full:
            raise RunFailed("timeline.jsonl: the disk is full (0 bytes free)")
        assert self.course.revision == len(self.written), "followed before it was written"
        self.written.append((recipe.digest, change))

    def probed(self, recipe: Recipe, first_step: int, hint: int = 0, spec: BatchSpec | None = None) -> bool:
        return self.swapping.probed(recipe.digest, spec or globals()["spec"](), (), first_step, hint)

    @property
    def outcome(self) -> Outcome:
        return self.told[-1][1]

    def recipes(self, *steps: int) -> list[str]:
        return [self.course.timeline.batch(step).recipe for step in steps]


def command(recipe: Recipe | None, operation: str = "op", at_step: int | None = None) -> Wish:
    return Wish(operation=operation, recipe=recipe, at_step=at_step)


def edit(recipe: Recipe, number: int, file: str = "strong.yaml") -> Wish:
    return Wish(operation=f"edit {number}", recipe=recipe, edited=file)


@pytest.mark.parametrize(
    ("first_step", "hint", "free_from_step", "at_step", "boundary"),
    [
        (5, 0, 0, None, 5),
        (5, 9, 0, None, 9),
        (5, 9, 20, None, 20),
        (5, 9, 0, 30, 30),
        (5, 9, 0, 2, 9),
        (45, 50, 0, None, 45),
    ],
)
def test_the_boundary_is_the_first_batch_that_nothing_stands_against(
    first_step: int, hint: int, free_from_step: int, at_step: int | None, boundary: int
) -> None:
    """Arrived, leased, delivered in an earlier attempt, wished for: the last of them decides; near the end a lease
    alone does not, since its work is only wasted."""
    world = World(free_from_step=free_from_step)
    world.swapping.ask(command(OTHER, at_step=at_step), first_step)
    assert world.swapping.probing == OTHER
    assert world.probed(OTHER, first_step, hint)
    assert world.outcome.step == boundary
    assert f"takes over at step {boundary}" in world.outcome.text
    assert world.recipes(boundary - 1, boundary) == [STRONG.digest, OTHER.digest]
    assert [change.from_step for _, change in world.written] == [boundary]
    assert world.course.revision == 1


def test_a_refused_chain_changes_nothing_and_says_where() -> None:
    """The old one goes on."""
    world = World()
    problem = Problem(file="other.yaml", line=3, path="chain[0]", expected="a transform", got="'other'")
    world.swapping.ask(command(OTHER), 5)
    assert not world.swapping.probed(OTHER.digest, None, (problem,), 5)
    assert not world.outcome.done
    assert "other.yaml:3: chain[0]" in str(world.outcome)
    assert (world.written, world.course.revision, world.swapping.probing) == ([], 0, None)


@pytest.mark.parametrize(
    "other",
    [spec(16), spec(finish=Finish(channels_first=True)), spec(finish=Finish(scale=(1.0,), shift=(0.0,)))],
    ids=["size", "dtype", "layout"],
)
def test_what_would_deliver_other_batches_is_refused_at_its_file_unless_the_shape_is_free(other: BatchSpec) -> None:
    """A model is made for one shape; progressive resizing says so in its job."""
    for is_free in (False, True):
        world = World(likeness=ANY_SHAPE if is_free else ONE_SHAPE)
        world.swapping.ask(command(OTHER), 5)
        assert world.probed(OTHER, 5, spec=other) == is_free
        assert world.outcome.done == is_free
        if not is_free:
            (problem,) = world.outcome.problems
            assert (problem.file, problem.line) == ("other.yaml", 3)
            assert "3x8x8" in problem.expected
            assert "shape: free" in problem.way_out


GRAY = BatchSpec(fields=(FieldSpec(name="image", dtype="uint8", shape=(8, 8, 1)), LABEL), finish=FINISH)
UINT8 = spec(finish=Finish(channels_first=True))
LAST = spec(finish=Finish(scale=(1.0,), shift=(0.0,)))
FLOAT_LABEL = BatchSpec(fields=(spec().fields[0], FieldSpec(name="label", dtype="float32", shape=())), finish=FINISH)


@pytest.mark.parametrize("likeness", [ANY_SIZE, MODEL_SHAPE])
@pytest.mark.parametrize(
    "other", [spec(16), GRAY, UINT8, LAST, FLOAT_LABEL], ids=["size", "channels", "dtype", "layout", "label"]
)
def test_a_free_shape_frees_no_more_than_the_model_can_take(likeness: Likeness, other: BatchSpec) -> None:
    """The run would die of it in torch, at the boundary, and again at each resume; live and by schedule alike."""
    is_possible = likeness is ANY_SIZE and other == spec(16)
    world = World(likeness=likeness)
    world.swapping.ask(command(OTHER), 5)
    assert world.probed(OTHER, 5, spec=other) == is_possible
    later = TimelineEntry(start=100, step=25, recipe=WEAK.digest, batch_size=4, file="weak.yaml")
    scheduled = World(likeness=likeness, later=(later,)).course
    if is_possible:
        scheduled.learn(WEAK.digest, other, 0)
        return
    (problem,) = world.outcome.problems
    assert (problem.file, problem.line, "free" in problem.way_out) == ("other.yaml", 3, likeness is ANY_SIZE)
    assert problem.expected != problem.got
    with pytest.raises(ConfigError, match=r"weak\.yaml:3"):
        scheduled.learn(WEAK.digest, other, 0)


@pytest.mark.parametrize(
    ("shape", "kind", "is_trained", "expected"),
    [
        ("fixed", "cnn", True, ONE_SHAPE),
        ("free", "cnn", False, ANY_SHAPE),
        ("free", "cnn", True, ANY_SIZE),
        ("free", "factory", True, ANY_SIZE),
        ("free", "mlp", True, MODEL_SHAPE),
        ("free", "mlp", False, ANY_SHAPE),
    ],
)
def test_what_batches_have_in_common_is_the_jobs_and_its_models_matter(
    tmp_path: Path, shape: str, kind: str, is_trained: bool, expected: Likeness
) -> None:
    """A loop of a user's own knows by itself what it can take."""
    factory = {"factory": "net.py:make"} if kind == "factory" else {}
    job = make_job(tmp_path, shape=shape, model={"kind": kind, **factory})
    assert likeness_of(job, is_trained=is_trained) == expected


def test_equal_batches_may_come_in_another_form_over_the_wire() -> None:
    """What is delivered counts, not whether worker or trainer normalises."""
    world = World()
    world.swapping.ask(command(OTHER), 5)
    assert world.probed(OTHER, 5, spec=spec(dtype="float32", finish=Finish(channels_first=True)))


def test_a_full_disk_refuses_the_swap_and_the_course_stays() -> None:
    """A boundary that is not on disk would be forgotten by a resume."""
    world = World(disk_is_full=True)
    world.swapping.ask(command(OTHER), 5)
    assert not world.probed(OTHER, 5)
    assert not world.outcome.done
    assert "the disk is full" in world.outcome.text
    assert world.recipes(5, 49) == [STRONG.digest] * 2
    assert world.course.revision == 0


def test_of_many_edits_of_a_file_the_last_one_wins() -> None:
    """Those before it are not even probed any more."""
    world = World()
    recipes = [recipe(f"text{number}", "strong.yaml") for number in range(20)]
    for number, each in enumerate(recipes):
        world.swapping.ask(edit(each, number), 5)
    assert world.swapping.probing == recipes[-1]
    assert not world.probed(recipes[0], 5), "the answer to an older text"
    assert world.probed(recipes[-1], 5)
    assert world.recipes(5) == [recipes[-1].digest]
    assert len(world.written) == 1


def test_an_edit_undone_while_it_was_probed_changes_nothing() -> None:
    """The file says what is in force."""
    world = World()
    world.swapping.ask(edit(OTHER, 1), 5)
    world.swapping.ask(edit(STRONG, 2), 5)
    assert world.swapping.probing is None
    assert world.outcome == Outcome(done=True, text=world.outcome.text, step=None)
    assert not world.probed(OTHER, 5)
    assert world.written == []


def test_wishes_take_effect_in_the_order_in_which_they_came() -> None:
    """The second waits for the first one's probe."""
    world = World()
    world.swapping.ask(command(OTHER, "one"), 5)
    world.swapping.ask(command(WEAK, "two"), 5)
    assert world.swapping.probing == OTHER
    assert not world.probed(WEAK, 5)
    world.probed(OTHER, 5, hint=7)
    assert world.swapping.probing == WEAK
    world.probed(WEAK, 6, hint=9)
    assert [operation for operation, _ in world.told] == ["one", "two"]
    assert world.recipes(6, 7, 8, 9) == [STRONG.digest, OTHER.digest, OTHER.digest, WEAK.digest]


def test_an_operation_that_is_asked_again_is_done_once_and_answered_again() -> None:
    """The operator asks until it hears; however late, it must not swap twice."""
    world = World()
    for _ in range(3):
        world.swapping.ask(command(OTHER), 5)
    assert world.swapping.outcome("op") is None
    world.probed(OTHER, 5)
    world.swapping.ask(command(OTHER), 9)
    assert world.swapping.probing is None
    assert world.swapping.outcome("op") == world.outcome
    assert (len(world.told), len(world.written)) == (1, 1)


def test_the_answers_that_are_remembered_are_bounded() -> None:
    """A job of weeks must not keep every operation."""
    world = World()
    for number in range(2 * MAX_ANSWERS):
        world.swapping.ask(command(STRONG, f"op{number}"), 5)
    assert world.swapping.outcome("op0") is None
    assert world.swapping.outcome(f"op{2 * MAX_ANSWERS - 1}") is not None
    assert len(world.swapping._answers) == MAX_ANSWERS


def test_back_to_previous_takes_the_file_along() -> None:
    """So that mending the file brings the mended chain."""
    world = World()
    world.swapping.ask(command(None, "nothing before"), 5)
    assert not world.outcome.done
    world.swapping.ask(edit(OTHER, 1), 5)
    world.probed(OTHER, 5)
    world.swapping.ask(command(None, "back"), 10)
    assert world.swapping.probing == STRONG
    world.probed(STRONG, 10)
    assert world.recipes(9, 10) == [OTHER.digest, STRONG.digest]
    assert world.course.timeline.entry_at(10).file == "strong.yaml"
    assert world.written[-1][1].why == "headrace swap --to previous"
    assert world.written[-1][1].files == {}, "a rollback read no file"


def test_a_swap_to_the_jobs_own_file_leaves_it_to_its_edits() -> None:
    """It has read the file: what was swapped to, and taken back, is no edit of the time when the run was down."""
    world = World()
    world.swapping.ask(command(recipe("mended", "strong.yaml")), 5)
    world.probed(recipe("mended", "strong.yaml"), 5)
    assert world.written[-1][1].files == {"strong.yaml": recipe("mended").digest}
    world.swapping.ask(edit(OTHER, 1), 10)
    world.probed(OTHER, 10)
    assert world.recipes(5, 10) == [recipe("mended").digest, OTHER.digest]


def test_back_to_previous_takes_a_swap_back_that_is_still_to_come() -> None:
    """It begins where that swap would have begun, and not before: nobody asked for it sooner."""
    world = World()
    world.swapping.ask(command(OTHER, "later", at_step=20), 5)
    world.probed(OTHER, 5)
    world.swapping.ask(command(None, "back"), 7)
    world.probed(STRONG, 7)
    assert world.outcome.done
    assert set(world.recipes(7, 19, 20, 25)) == {STRONG.digest}


def test_back_to_previous_takes_back_what_an_earlier_attempt_left_to_come() -> None:
    """A resumed run knows of it from its timeline alone."""
    later = TimelineEntry(start=80, step=20, recipe=WEAK.digest, batch_size=4, file="weak.yaml")
    world = World(later=(later,), last_change_step=20)
    world.swapping.ask(command(None, "back"), 7)
    assert world.probed(STRONG, 7)
    assert set(world.recipes(7, 19, 20, 25)) == {STRONG.digest}


def test_an_edit_of_a_file_that_makes_no_batch_any_more_surprises() -> None:
    """An operator's swap, or the next chain of the schedule, stands in its place."""
    world = World()
    world.swapping.ask(command(OTHER), 5)
    world.probed(OTHER, 5)
    world.swapping.ask(edit(WEAK, 1), 8)
    outcome = world.outcome
    assert (outcome.done, outcome.is_surprise, outcome.step) == (True, True, None)
    assert "edit of strong.yaml: not in use any more, other.yaml makes the batches;" in outcome.text
    assert "`headrace swap strong.yaml` brings it back" in outcome.text
    world.swapping.ask(edit(OTHER, 2, "other.yaml"), 8)
    assert not world.outcome.is_surprise, "the file says what is in force"


def test_an_edit_of_a_file_that_comes_later_is_told_with_its_step() -> None:
    """Not with the boundary, from which on nothing differs yet."""
    later = TimelineEntry(start=100, step=25, recipe=WEAK.digest, batch_size=4, file="weak.yaml")
    world = World(later=(later,))
    world.swapping.ask(edit(OTHER, 1, "weak.yaml"), 5)
    assert world.probed(OTHER, 5)
    assert "takes over at step 25" in world.outcome.text
    assert world.recipes(5, 24, 25) == [STRONG.digest, STRONG.digest, OTHER.digest]


def test_a_swap_past_the_end_is_refused() -> None:
    """Also when the end was reached while it was probed."""
    world = World()
    world.swapping.ask(command(OTHER, "late", at_step=50), 5)
    assert not world.outcome.done
    assert "too late" in world.outcome.text
    world.swapping.ask(command(OTHER, "slow"), 49)
    assert not world.probed(OTHER, 50)
    assert "too late" in world.outcome.text
    assert world.written == []


@settings(max_examples=cases(200))
@given(data=st.data(), free_from_step=st.integers(0, 20))
def test_whatever_is_wished_for_no_boundary_moves_below_what_was_taken(
    data: st.DataObject, free_from_step: int
) -> None:
    """Edits, commands, rollbacks, refusals and a moving head; the batches behind it keep their recipes."""
    world = World(free_from_step=free_from_step)
    texts = [recipe(f"text{number}") for number in range(4)]
    head, taken = 0, []
    for number in range(data.draw(st.integers(1, 25))):
        move = data.draw(st.sampled_from(["ask", "edit", "back", "answer", "refuse", "go on"]))
        chosen = data.draw(st.sampled_from(texts))
        at_step = data.draw(st.none() | st.integers(0, 60))
        if move == "ask":
            world.swapping.ask(command(chosen, f"op{number}", at_step), head)
        elif move == "edit":
            world.swapping.ask(edit(chosen, number), head)
        elif move == "back":
            world.swapping.ask(command(None, f"op{number}"), head)
        elif move == "go on" and head < 50:
            taken.append(world.course.timeline.batch(head))
            head += 1
        elif world.swapping.probing is not None:
            answer = spec() if move == "answer" else None
            hint = data.draw(st.integers(0, 50))
            world.swapping.probed(world.swapping.probing.digest, answer, (), head, hint)
        assert [world.course.timeline.batch(batch.step) for batch in taken] == taken
        assert all(change.from_step >= free_from_step for _, change in world.written)
        assert world.course.revision == len(world.written)
        assert {entry.recipe for entry in world.course.timeline.entries} <= world.course.batch_specs.keys()
    finished = [operation for operation, _ in world.told]
    assert len(finished) == len(set(finished))


def test_a_schedule_is_probed_whole_before_the_first_batch() -> None:
    """The window opens with the last answer; a recipe of the past is not asked for."""
    entries = [
        TimelineEntry(start=start, step=step, recipe=each.digest, batch_size=4)
        for start, step, each in ((0, 0, OTHER), (8, 2, STRONG), (40, 10, WEAK))
    ]
    timeline = Timeline(entries, num_samples=100, last_batch="drop", end_position=200)
    known = {each.digest: each for each in (STRONG, WEAK, OTHER)}
    course = Course(timeline, known, window=lambda batch_size, spec: 8)
    assert course.unprobed(3) == (STRONG, WEAK)
    course.learn(WEAK.digest, spec(), 3)
    assert course.window(3) == 0
    course.learn(STRONG.digest, spec(), 3)
    assert course.window(3) == 8
    assert course.spec_at(3) == spec()


def test_a_schedule_that_changes_the_shape_is_refused_before_the_first_batch() -> None:
    """Not in epoch 8."""
    entries = [
        TimelineEntry(start=start, step=step, recipe=each.digest, batch_size=4)
        for start, step, each in ((0, 0, STRONG), (40, 10, WEAK), (80, 20, STRONG), (120, 30, WEAK))
    ]
    timeline = Timeline(entries, num_samples=100, last_batch="drop", end_position=200)
    course = Course(timeline, {each.digest: each for each in (STRONG, WEAK)}, window=lambda batch_size, spec: 8)
    course.learn(STRONG.digest, spec(8), 0)
    with pytest.raises(ConfigError, match=r"weak\.yaml:3") as refused:
        course.learn(WEAK.digest, spec(16), 0)
    assert len(refused.value.problems) == 1


def test_an_answer_that_no_worker_of_ours_gives_is_not_believed() -> None:
    """A batch is allocated by it."""
    for fields in ((), (LABEL,), (FieldSpec(name="image", dtype="object", shape=(8, 8, 3)), LABEL)):
        with pytest.raises(RemoteProtocolError):
            require_sound(BatchSpec(fields=fields))
