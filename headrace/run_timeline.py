"""The timeline that a train stream begins with, on disk before its first batch is made.

In:  a job, where an earlier attempt left off, the run's folder.
Out: `RunTimeline`: entries and every recipe that they name, what is not on disk yet, edits that are still to be tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.config_job import Job
from pipeline.errors import RunFailed
from pipeline.following import GIVEN, START, as_read, files_of, files_read, followed, is_given
from pipeline.plan import first_entries, job_recipes, named_recipes, timeline_of
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.run_history import load_recipe, read_changes
from pipeline.stream_start import StreamStart
from pipeline.timeline import TimelineChange, TimelineEntry, after

Entries = tuple[TimelineEntry, ...]


class RunTimeline:
    """A stream's timeline as it begins, and how it is written down."""

    def __init__(
        self,
        entries: Entries,
        recipes: Mapping[str, Recipe],
        *,
        folder: RunFolder | None = None,
        change: TimelineChange | None = None,
        edits: Mapping[str, Recipe] | None = None,
    ) -> None:
        """`entries`: those on disk; `change`: what is to be written, and followed from the first batch on."""
        self.entries = after(entries, change) if change is not None else entries
        self.recipes = dict(recipes)
        """At least all that the entries name."""
        self.edits = dict(edits or {})
        """Chain files that were edited while the run was down, and what each holds now: wishes, as in a running job."""
        on_disk = read_changes(folder.path) if folder is not None else ()
        self.changes: Sequence[TimelineChange] = (*on_disk, *([change] if change is not None else []))
        """All that the run wrote, and the one that it is to write."""
        self._folder = folder
        self._unwritten = change

    @property
    def is_written(self) -> bool:
        """True if all of it is on disk."""
        return self._unwritten is None

    @property
    def is_settled(self) -> bool:
        """True if a stream can follow it at once: all of it is on disk, and nothing is to be tried."""
        return self.is_written and not self.edits

    @property
    def is_given(self) -> bool:
        """True for a run that was given its timeline, and so follows no chain file."""
        return is_given(self.changes)

    def write(self) -> None:
        """What the entries say is on disk afterwards; to be called once their recipes were tried."""
        if self._unwritten is not None and self._folder is not None:
            _append(self._folder, named_recipes(self._unwritten.entries, self.recipes), self._unwritten)
        self._unwritten = None

    def record(self, recipe: Recipe, change: TimelineChange) -> None:
        """A later change and its recipe are on disk before this returns, behind what the stream began with.

        RunFailed, and the timeline is as it was, if that is impossible.
        """
        assert self.is_written
        if self._folder is not None:
            _append(self._folder, [recipe], change)


def begin_timeline(
    job: Job,
    num_samples: int,
    start: StreamStart,
    start_position: int,
    folder: RunFolder | None,
    *,
    with_edits: bool = False,
) -> RunTimeline:
    """A new run follows its job; a resumed one its timeline, which follows what has changed in the job since.

    What a new run begins with is written here. What a resume changes is not: chains that are refused must leave the run
    as it was. `with_edits`: the edits of the time when the run was down are among these changes.
    """
    recipes = {**start.recipes, **job_recipes(job, "train")}
    wanted = first_entries(job, "train", num_samples, start_position)
    changes = read_changes(folder.path) if folder is not None else ()
    if not start.entries or (folder is not None and not changes):
        first = TimelineChange(from_step=0, entries=wanted, why=START, files=files_of(wanted))
        if start.entries:
            first = TimelineChange(from_step=start.entries[0].step, entries=start.entries, why=GIVEN)
        begun = RunTimeline((), recipes, folder=folder, change=first)
        begun.write()
        return begun
    if folder is None:
        return RunTimeline(start.entries, recipes)
    before = as_read(wanted, files_read(changes))
    present, held = files_of(wanted), files_of(before)
    edits = {file: recipes[digest] for file, digest in present.items() if digest != held[file]}
    timeline = timeline_of(job, "train", num_samples, start.entries)
    change = followed(timeline, changes, wanted if with_edits else before, start.free_from_step)
    for entry in change.entries if change is not None else ():
        if entry.recipe not in recipes:
            recipes[entry.recipe] = load_recipe(folder.path, entry.recipe, job)
    return RunTimeline(start.entries, recipes, folder=folder, change=change, edits={} if with_edits else edits)


def _append(folder: RunFolder, recipes: Iterable[Recipe], change: TimelineChange) -> None:
    for recipe in recipes:
        folder.write_recipe(recipe)
    changed = after(folder.timeline, change)
    try:
        folder.append_timeline(change)
    except RunFailed:
        if folder.timeline != changed:
            raise
        # The line is on disk and counts; what failed is the journal's line about it.
