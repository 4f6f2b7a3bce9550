"""The course of a stream: which recipe makes which batch, what each one delivers, and how that may change.

In:  a timeline, recipes, what probes answered; a recipe that is to take over.
Out: what has to be probed, how many batches may be in flight; a changed timeline, on disk before it counts.
No sockets, no threads, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pipeline.errors import ConfigError, Problem, RemoteProtocolError
from pipeline.recipe import BatchSpec, Recipe
from pipeline.timeline import Timeline, TimelineChange, TimelineEntry
from pipeline.wire import field_nbytes
from trainer.likeness import ONE_SHAPE, Likeness

Record = Callable[[Recipe, TimelineChange], None]
"""Writes a change and its recipe down; RunFailed if that is impossible."""


class Course:
    """A batch is made under the recipe that the timeline names for it, and only once that recipe was probed."""

    def __init__(
        self,
        timeline: Timeline,
        recipes: Mapping[str, Recipe],
        *,
        window: Callable[[int, BatchSpec], int],
        batch_specs: Mapping[str, BatchSpec] | None = None,
        likeness: Likeness = ONE_SHAPE,
        free_from_step: int = 0,
        last_change_step: int = 0,
        record: Record = lambda recipe, change: None,
        is_held: bool = False,
        is_written: bool = True,
    ) -> None:
        """`window`: batches in flight for a batch size and a spec; `free_from_step`: no change begins below it;
        `last_change_step`: where the latest change that is on disk begins; `is_held`: recipes are probed, and may be
        swapped, but no batch is made yet; `is_written`: the timeline is on disk, so that a change may follow it."""
        self.timeline = timeline
        self.recipes = dict(recipes)
        self.batch_specs = dict(batch_specs or {})
        self.likeness = likeness
        self.free_from_step = free_from_step
        self.revision = 0
        """Rises with each change of the timeline."""
        self.is_held = is_held
        self.is_written = is_written
        self.last_change_step = last_change_step
        """It may not have been reached yet."""
        self._window = window
        self._record = record

    def ahead(self, step: int) -> tuple[TimelineEntry, ...]:
        """The entry that a step stands under, and all after it."""
        here = self.timeline.entry_at(step)
        return (here, *(entry for entry in self.timeline.entries if entry.step > here.step))

    def unprobed(self, step: int) -> tuple[Recipe, ...]:
        """Recipes of this step and later ones of which it is not known what they deliver."""
        digests = dict.fromkeys(entry.recipe for entry in self.ahead(step))
        return tuple(self.recipes[digest] for digest in digests if digest not in self.batch_specs)

    def learn(self, digest: str, spec: BatchSpec, step: int) -> None:
        """A probe's answer for a recipe ahead; ConfigError if the recipes ahead don't go together."""
        require_sound(spec)
        ahead = self.ahead(step)
        known = {**self.batch_specs, digest: spec}
        if all(entry.recipe in known for entry in ahead):
            here, *later = ahead
            problems: list[Problem] = []
            for entry in later:
                recipe, later_spec = self.recipes[entry.recipe], known[entry.recipe]
                problems += self.likeness.problems(recipe, later_spec, known[here.recipe])
            if problems:
                raise ConfigError(dict.fromkeys(problems))
            for entry in ahead:
                self._window(entry.batch_size, known[entry.recipe])
        self.batch_specs = known  # last: once every recipe ahead is known, the stream begins

    def window(self, step: int) -> int:
        """Batches in flight from this step on; 0 while a recipe ahead was not probed. ConfigError if none can be."""
        if self.is_held or self.unprobed(step):
            return 0
        return min(self._window(entry.batch_size, self.batch_specs[entry.recipe]) for entry in self.ahead(step))

    def spec_at(self, step: int) -> BatchSpec:
        """What a step delivers; its recipe was probed."""
        return self.batch_specs[self.timeline.entry_at(step).recipe]

    def window_problems(self, spec: BatchSpec, batch_sizes: Iterable[int]) -> tuple[Problem, ...]:
        """Why no batch of this spec can be in flight."""
        try:
            for batch_size in batch_sizes:
                self._window(batch_size, spec)
        except ConfigError as error:
            return error.problems
        return ()

    def change(self, change: TimelineChange, recipe: Recipe, spec: BatchSpec) -> None:
        """Write a change down, then follow it; RunFailed, and nothing has changed, if it can't be written."""
        timeline = self.timeline.changed(change)
        self._record(recipe, change)
        self.recipes[recipe.digest] = recipe
        self.batch_specs[recipe.digest] = spec
        self.timeline = timeline
        self.last_change_step = change.from_step
        self.revision += 1


def require_sound(spec: BatchSpec) -> None:
    """RemoteProtocolError for a spec that no worker of ours would answer with."""
    if len(spec.fields) < 2 or len(spec.fields[0].shape) != 3:
        raise RemoteProtocolError(f"a probe's answer without an image and labels: {spec.fields}")
    for field in spec.fields:
        field_nbytes(field, 1)
