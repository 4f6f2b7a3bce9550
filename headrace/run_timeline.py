"""The timeline that a train stream begins with, on disk before its first batch is made.

In:  a job, where an earlier attempt left off, the run's folder.
Out: timeline entries and every recipe that they name.
"""

from __future__ import annotations

from pipeline.config_job import Job
from pipeline.errors import RunFailed
from pipeline.following import GIVEN, START, files_of, followed
from pipeline.plan import first_entries, job_recipes, named_recipes, timeline_of
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.run_history import read_changes
from pipeline.stream_start import StreamStart
from pipeline.timeline import TimelineChange, TimelineEntry, after

Entries = tuple[TimelineEntry, ...]


def begin_timeline(
    job: Job, num_samples: int, start: StreamStart, start_position: int, folder: RunFolder | None
) -> tuple[Entries, dict[str, Recipe]]:
    """A new run follows its job; a resumed one its timeline, which follows what has changed in the job since."""
    recipes = {**start.recipes, **job_recipes(job, "train")}
    wanted = first_entries(job, "train", num_samples, start_position)
    change = _first_change(job, num_samples, start, wanted, folder)
    if change is not None and folder is not None:
        for recipe in named_recipes(change.entries, recipes):
            folder.write_recipe(recipe)
        folder.append_timeline(change)
    entries = after(start.entries, change) if change is not None else start.entries
    return entries, recipes


def record_change(folder: RunFolder, recipe: Recipe, change: TimelineChange) -> None:
    """Both are on disk before this returns; RunFailed, and the timeline is as it was, if that is impossible."""
    folder.write_recipe(recipe)
    changed = after(folder.timeline, change)
    try:
        folder.append_timeline(change)
    except RunFailed:
        if folder.timeline != changed:
            raise
        # The line is on disk and counts; what failed is the journal's line about it.


def _first_change(
    job: Job, num_samples: int, start: StreamStart, wanted: Entries, folder: RunFolder | None
) -> TimelineChange | None:
    if not start.entries:
        return TimelineChange(from_step=0, entries=wanted, why=START, files=files_of(wanted))
    if folder is None:
        return None
    changes = read_changes(folder.path)
    if not changes:
        return TimelineChange(from_step=start.entries[0].step, entries=start.entries, why=GIVEN)
    timeline = timeline_of(job, "train", num_samples, start.entries)
    return followed(timeline, changes, wanted, start.free_from_step)
