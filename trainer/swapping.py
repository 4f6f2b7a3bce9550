"""Swapping: wishes for another chain, one after the other, until each is in force or refused.

In:  wishes (of an operator, or of an edited chain file), what a probe answered, what has arrived so far.
Out: which recipe is to be probed; a changed course; one outcome a wish, also for those who ask again.
No sockets, no clock, no threads: tests drive it with plain values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pipeline.errors import Problem, RunFailed
from pipeline.recipe import BatchSpec, Recipe
from pipeline.swaps import previous_recipe, swap_by_command, swap_by_edit
from pipeline.timeline import TimelineChange
from trainer.course import Course

MAX_ANSWERS = 256
"""Operations whose outcome is remembered: an operator asks twice a second and is gone once it knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Somebody wants another chain."""

    operation: str
    """Two wishes of one name are one wish."""
    recipe: Recipe | None
    """None: the recipe before the present one."""
    at_step: int | None = None
    """The boundary; None: as soon as possible."""
    edited: str = ""
    """The chain file whose edit this is, "" for a command."""
    was_down: bool = False
    """The edit was made while the run was down."""

    @property
    def why(self) -> str:
        """For the timeline."""
        if self.edited:
            return f"edit of {self.edited}{' while the run was down' if self.was_down else ''}"
        return "headrace swap" if self.recipe is not None else "headrace swap --to previous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a wish."""

    done: bool
    text: str
    problems: tuple[Problem, ...] = ()
    step: int | None = None
    """The boundary; None where nothing has changed."""
    is_surprise: bool = False
    """Nothing has changed, and who made the wish has to know."""

    def __str__(self) -> str:
        return "\n".join([self.text, *map(str, self.problems)])


@dataclass(frozen=True, slots=True)
class _Probing:
    wish: Wish
    recipe: Recipe
    file: str


class Swapping:
    """Each wish gets one outcome; wishes take effect in the order in which they came."""

    def __init__(
        self, course: Course, on_outcome: Callable[[Wish, Outcome], None] = lambda wish, outcome: None
    ) -> None:
        self._course = course
        self._on_outcome = on_outcome
        self._waiting: list[Wish] = []
        self._probing: _Probing | None = None
        self._answers: dict[str, Outcome] = {}

    @property
    def probing(self) -> Recipe | None:
        """The recipe that waits for its probe."""
        return self._probing.recipe if self._probing else None

    @property
    def is_settled(self) -> bool:
        """True if every wish has its outcome; may be asked from any thread."""
        return self._probing is None and not self._waiting

    def outcome(self, operation: str) -> Outcome | None:
        """What became of an operation, if that is known and not long ago."""
        return self._answers.get(operation)

    def ask(self, wish: Wish, first_step: int) -> None:
        """A new wish, or one repeated. `first_step`: of it and of later steps nothing has arrived."""
        waiting = [*([self._probing.wish] if self._probing else []), *self._waiting]
        if wish.operation in self._answers or any(wish.operation == other.operation for other in waiting):
            return
        for older in waiting:
            # Of twenty edits in two seconds the last one counts; a probe of an older text would be for nothing.
            if wish.edited and older.edited == wish.edited:
                self._end(older, Outcome(done=True, text=f"a later edit of {wish.edited} took its place"))
        self._waiting.append(wish)
        self._go_on(first_step)

    def probed(
        self, digest: str, spec: BatchSpec | None, problems: tuple[Problem, ...], first_step: int, hint: int = 0
    ) -> bool:
        """A probe's answer; True if the course has changed. `hint`: from this step on a swap wastes no work."""
        probing = self._probing
        if probing is None or probing.recipe.digest != digest:
            return False
        if spec is None:
            outcome = Outcome(done=False, text="refused; the present chain goes on", problems=problems)
        else:
            outcome = self._swap(probing, spec, self._earliest(first_step, probing.wish), hint)
        self._end(probing.wish, outcome)
        self._go_on(first_step)
        return outcome.step is not None

    def _go_on(self, first_step: int) -> None:
        """Up to the first waiting wish that needs a probe."""
        while self._probing is None and self._waiting:
            wish = self._waiting[0]
            step = self._earliest(first_step, wish)
            if step >= self._course.timeline.num_steps:
                text = f"too late: from step {self._course.timeline.num_steps} on there are no batches"
                self._end(wish, Outcome(done=False, text=text))
                continue
            recipe, file = wish.recipe, wish.edited or (wish.recipe.chain.file if wish.recipe else "")
            if recipe is None:
                previous = previous_recipe(self._course.timeline, step)
                if previous is None:
                    self._end(wish, Outcome(done=False, text="there was no other recipe before the present one"))
                    continue
                recipe, file = self._course.recipes[previous.recipe], previous.file
            probing = _Probing(wish, recipe, file)
            if self._change(probing, step) is None:
                self._end(wish, self._no_change(probing, step))
                continue
            self._probing = probing  # first, so that it never looks as if all were settled
            self._waiting.remove(wish)

    def _swap(self, probing: _Probing, spec: BatchSpec, earliest: int, hint: int) -> Outcome:
        course, recipe = self._course, probing.recipe
        step = max(earliest, hint) if hint < course.timeline.num_steps else earliest
        if step >= course.timeline.num_steps:
            return Outcome(done=False, text=f"too late: the stream ends before step {step}")
        change = self._change(probing, step)
        if change is None:
            return self._no_change(probing, step)
        problems = (
            *course.likeness.problems(recipe, spec, course.spec_at(step)),
            *course.window_problems(spec, {entry.batch_size for entry in change.entries}),
        )
        if problems:
            return Outcome(done=False, text="refused; the present chain goes on", problems=problems)
        try:
            course.change(change, recipe, spec)
        except RunFailed as error:
            return Outcome(done=False, text=f"refused, since it could not be written down: {error}")
        begins = next(entry.step for entry in change.entries if entry.recipe == recipe.digest)
        at_step = probing.wish.at_step
        late = (
            f"; the batches before it are made already, step {at_step} among them"
            if at_step not in (None, begins)
            else ""
        )
        text = f"recipe {recipe.digest} from {probing.file or 'the job'} takes over at step {begins}{late}"
        return Outcome(done=True, text=text, step=step)

    def _no_change(self, probing: _Probing, step: int) -> Outcome:
        file, digest = probing.wish.edited, probing.recipe.digest
        files = dict.fromkeys(entry.file or "a chain inside the job" for entry in self._course.ahead(step))
        if file and file not in files:
            now = " and then ".join(files)
            text = (
                f"edit of {file}: not in use any more, {now} makes the batches; `headrace swap {file}` brings it back"
            )
            return Outcome(done=True, text=text, is_surprise=True)
        text = f"nothing changes: recipe {digest} makes the batches from step {step} on already"
        return Outcome(done=True, text=text)

    def _change(self, probing: _Probing, step: int) -> TimelineChange | None:
        wish, file, digest = probing.wish, probing.file, probing.recipe.digest
        make = swap_by_edit if wish.edited else swap_by_command
        change = make(self._course.timeline, step, digest, file, wish.why)
        # Who swaps to a file has read it: what it held then is no edit when the run is resumed, also where the swap
        # was taken back since. `--to previous` reads none.
        is_read = file and wish.recipe is not None
        return msgspec.structs.replace(change, files={file: digest}) if change and is_read else change

    def _earliest(self, first_step: int, wish: Wish) -> int:
        """No boundary lies below what has arrived, or was ever delivered in this run."""
        # "Previous" to a swap that is still to come takes that swap back: it begins where the swap would have begun.
        undone = self._course.last_change_step if wish.recipe is None else 0
        return max(first_step, self._course.free_from_step, wish.at_step or 0, undone)

    def _end(self, wish: Wish, outcome: Outcome) -> None:
        if self._probing is not None and self._probing.wish is wish:
            self._probing = None
        else:
            self._waiting.remove(wish)
        self._answers[wish.operation] = outcome
        while len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._on_outcome(wish, outcome)
