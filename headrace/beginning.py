"""How a training run begins: new, new with an earlier run's swaps, or where an earlier attempt left off.

In:  a checked job, its run folder, what the command line asked for.
Out: `Beginning`: the folder (locked, ready to be written), where the train stream starts, what to tell the user.
Nothing in a folder is changed before all that can be refused was looked at, but for its copies of the job's chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import branch, resume
from pipeline.checkpoint_folder import set_aside
from pipeline.config import dump_job
from pipeline.config_job import Job
from pipeline.errors import ConfigError, Problem
from pipeline.following import EVALUATION_WAITS, GIVEN, past_short_batch
from pipeline.json_lines import read_lines
from pipeline.plan import first_entries, open_job_source, timeline_of
from pipeline.recipe import Recipe
from pipeline.resume import Resumption
from pipeline.resume_differences import Difference, factory_difference, job_differences, require_resumable
from pipeline.run_folder import RunFolder
from pipeline.run_history import (
    changes_of,
    entries_of,
    has_had_checkpoints,
    job_text,
    kept_evaluation,
    load_run_job,
    num_unrecorded_steps,
)
from pipeline.sources.protocol import Source
from pipeline.stream_start import StreamStart
from pipeline.timeline import TimelineChange, TimelineEntry, after
from pipeline.user_code import load_module, loaded_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A run that can start."""

    job: Job
    """As it was asked for; of a resumed run with the chain that its evaluations have used so far."""
    folder: RunFolder
    start: StreamStart = field(default_factory=StreamStart)
    resumed: Resumption | None = None
    notes: tuple[str, ...] = ()
    """For the user: where it goes on, what differs."""
    warnings: tuple[str, ...] = ()
    """For the user: what is not as it should be."""
    is_finished: bool = False
    """True: every step is done and judged; there is nothing to go on with."""


def begin_new(job: Job, run_dir: Path) -> Beginning:
    """A run in a new folder."""
    return Beginning(job=job, folder=RunFolder.create(run_dir, job_text(job, dump_job(job.config)), _own(job)))


def begin_with_timeline(job: Job, run_dir: Path, timeline_file: Path) -> Beginning:
    """A run in a new folder, with every swap of the run whose timeline.jsonl is given; it follows no chain file."""
    if not timeline_file.is_file():
        raise _refused(str(timeline_file), "--timeline", "the timeline.jsonl of a run", "no such file")
    entries = entries_of(changes_of(read_lines(timeline_file, is_synced=True), timeline_file))
    _require_fitting(job, entries, timeline_file)
    recipes = resume.recipes_of(_run_of(timeline_file), job, entries)
    why = f"{GIVEN}: {timeline_file}"
    given = TimelineChange(from_step=0, entries=entries, why=why)
    all_recipes = {recipe.digest: recipe for recipe in (*_own(job), *recipes.values())}
    folder = RunFolder.create(run_dir, job_text(job, dump_job(job.config)), all_recipes.values(), given)
    note = f"{why}; the job's own chains are not used"
    return Beginning(job=job, folder=folder, start=StreamStart(entries=entries, recipes=recipes), notes=(note,))


def begin_resumed(
    job: Job, run_dir: Path, *, from_step: int | None, is_branch: bool, accept_changes: bool
) -> Beginning:
    """The run of a folder, from its newest good checkpoint on (or that of `from_step`)."""
    folder = RunFolder.resume(run_dir)
    try:
        return _resumed(job, folder, from_step, is_branch=is_branch, accept_changes=accept_changes)
    except BaseException:
        folder.close()
        raise


def _resumed(job: Job, folder: RunFolder, from_step: int | None, *, is_branch: bool, accept_changes: bool) -> Beginning:
    path = folder.path
    if (kept := kept_evaluation(path, job)) is not None:
        job = replace(job, eval=kept)
    for recipe in _own(job):  # heals a chain file that is lost or damaged, where the job still has it
        folder.write_recipe(recipe)
    resumed = resume.choose_checkpoint(path, from_step)
    going_back = from_step is not None and branch.has_later_records(path, resumed.step, resumed.state)
    if going_back and not is_branch:
        way_out = "add --branch: what came later is kept in branch-1/ (or -2, ...) then; or leave --from out"
        raise _refused(str(path), f"--from {from_step}", "no steps or swaps after it", "later ones", way_out)
    run_job = load_run_job(path)
    if going_back:
        resumed = replace(resumed, recorded={}, last_recorded_step=-1)
    # By what was done until the step that is gone on from, or for ever if nothing is given up.
    num_epochs_begun = resumed.state.get("epoch", -1) + 1 if going_back else _num_epochs_begun(resumed)
    differences = job_differences(run_job.config, job.config, num_epochs_begun=num_epochs_begun)
    if run_job.config.model == job.config.model:
        differences += _factory_difference(job, resume.factory_sha256(path, resumed, is_going_back=going_back))
    require_resumable(differences, str(job.path), str(path), accept=accept_changes)
    resumed = replace(resumed, is_as_it_was=all(each.verdict != "refused" for each in differences))
    sources = _open_sources(job)
    fingerprints = {name: source.fingerprint for name, source in sources.items()}
    classes = sources[job.config.train.source].classes
    resume.require_same_sources(path, resumed, str(job.path), fingerprints, classes)
    entries = resume.require_one_timeline(path, resumed, is_going_back=going_back)
    resume.require_whole_quarantine(path, resumed, is_going_back=going_back)
    resume.recipes_of(path, job, entries)  # each can be read
    num_samples = len(sources[job.config.train.source])
    first_entries(job, "train", num_samples)  # its batches can be filled
    seam = _seam(run_job, job, num_samples, entries, resumed.free_from_step)
    # From here on this module refuses nothing, and writes.
    notes, lost = [_where(resumed, folder.attempt)], _lost_records(path, resumed)
    if going_back:
        notes.append(f"what came after step {resumed.step} is kept in {_go_back(folder, resumed)}")
    if kept is not None:
        notes.append(f"edit of {job.eval_file}: {EVALUATION_WAITS}")
    if differences:
        notes.append("the job differs from the run's:\n" + "\n".join(each.lines() for each in differences))
    _take_over(job, folder, resumed, differences, seam)
    entries = after(entries, seam) if seam else entries
    return Beginning(
        job=job,
        folder=folder,
        start=resume.stream_start(path, job, resumed, entries),
        resumed=resumed,
        notes=tuple(notes),
        warnings=(*folder.tidied, *(_damaged_text(step, why) for step, why in resumed.damaged), *lost),
        is_finished=_is_finished(job, resumed, entries, num_samples),
    )


def _seam(
    run_job: Job, job: Job, num_samples: int, entries: tuple[TimelineEntry, ...], free_from_step: int
) -> TimelineChange | None:
    """What the job's other end makes of the last batches; ConfigError if one that was trained on would be another."""
    if not entries:
        return None
    before, now = (timeline_of(each, "train", num_samples, entries) for each in (run_job, job))
    last = min(free_from_step, now.num_steps) - 1
    if 0 <= last < before.num_steps and before.batch(last).stop > now.end_position:
        epochs = job.config.train.epochs
        expected = f"more than {epochs}: a batch that was trained on reaches into epoch {epochs} (last_batch: wrap)"
        way_out = "raise it by one, or go back to a checkpoint before that batch: --from STEP --branch"
        raise _refused(str(job.path), "train.epochs", expected, str(epochs), way_out)
    return past_short_batch(before, now, free_from_step)


def _take_over(
    job: Job, folder: RunFolder, resumed: Resumption, differences: Sequence[Difference], seam: TimelineChange | None
) -> None:
    """The first writes of an attempt; nothing is refused any more."""
    changed: list[dict[str, Any]] = [{"path": each.path, "run": each.run, "job": each.job} for each in differences]
    folder.append_event("resumed", step=resumed.step, differences=changed)
    for step, why in resumed.damaged:
        folder.append_event("checkpoint_damaged", step=step, why=why)
    set_aside(folder.checkpoints, (step for step, _ in resumed.damaged))
    if seam is not None:  # before job.yaml: only the end that stands there tells that it is needed
        folder.append_timeline(seam)
    folder.write_job(job_text(job, dump_job(job.config)))


def _go_back(folder: RunFolder, resumed: Resumption) -> Path:
    kept: list[Path] = []
    folder.rewrite(lambda path: kept.append(branch.move_later(path, resumed.step, resumed.state)))
    folder.append_event("went_back", step=resumed.step, branch=kept[0].name)
    return kept[0]


def _run_of(timeline_file: Path) -> Path:
    """The folder whose chains/ a timeline names: beside the file, or above that of a branch."""
    beside = timeline_file.absolute().parent
    for folder in (beside, beside.parent):
        if (folder / "chains").is_dir():
            return folder
    expected = "a file in the folder of its run, or in a branch of it, where chains/ has the chains"
    raise _refused(str(timeline_file), "--timeline", expected, "no chains/ beside it", "name it where the run left it")


def _own(job: Job) -> list[Recipe]:
    """The recipes that the job itself names."""
    maybe_recipes = (job.train, *(later.recipe for later in job.later), job.eval)
    return [recipe for recipe in maybe_recipes if recipe is not None]


def _num_epochs_begun(resumed: Resumption) -> int:
    last = max((line.epoch for line in resumed.recorded.values()), default=-1)
    return max(last, int(resumed.state.get("epoch", -1))) + 1


def _open_sources(job: Job) -> dict[str, Source]:
    config = job.config
    names = dict.fromkeys(stream.source for stream in (config.train, config.eval) if stream is not None)
    return {name: open_job_source(config, str(job.path), job.source_lines.get(name, 0), name) for name in names}


def _factory_difference(job: Job, trained_with: str) -> list[Difference]:
    if not trained_with:
        return []
    reference = job.config.model.factory
    # Loaded, not only read: the loop calls this very module, whatever becomes of its file meanwhile.
    now = loaded_digest(load_module(reference, job.path.absolute().parent))
    return factory_difference(reference, trained_with, now)


def _is_finished(job: Job, resumed: Resumption, entries: tuple[TimelineEntry, ...], num_samples: int) -> bool:
    if not resumed.state.get("finished") or not entries:
        return False
    return resumed.step >= timeline_of(job, "train", num_samples, entries).num_steps


def _require_fitting(job: Job, entries: tuple[TimelineEntry, ...], file: Path) -> None:
    """Another run's entries must mean the same positions here: source size, order of batches, batch sizes, epochs."""
    place = f"{file}"
    if not entries or entries[0].step != 0:
        raise _refused(place, "--timeline", "a timeline from step 0 on", "nothing" if not entries else "a later one")
    batch_size = job.config.train.batch_size
    if entries[0].batch_size != batch_size:
        expected = f"batch size {batch_size}, as in the job {job.path}"
        raise _refused(place, "step 0", expected, str(entries[0].batch_size), "set train.batch_size to it")
    (name,) = {job.config.train.source}
    num_samples = len(_open_sources(job)[name])
    for number, entry in enumerate(entries[1:], start=1):
        before = timeline_of(job, "train", num_samples, entries[:number])
        if entry.step >= before.num_steps:
            expected = f"a step below {before.num_steps}, where this job ends"
            raise _refused(place, f"step {entry.step}", expected, str(entry.step), "raise train.epochs")
        if before.start_of(entry.step) != entry.start:
            expected = f"position {before.start_of(entry.step)}, where source {name} ({num_samples} samples) has it"
            way_out = "a timeline fits only jobs with as many samples, the same last_batch and batch sizes"
            raise _refused(place, f"step {entry.step}", expected, f"position {entry.start}", way_out)


def _where(resumed: Resumption, attempt: int) -> str:
    place = f"checkpoints/{resumed.checkpoint.name}" if resumed.checkpoint else "the beginning: it has no checkpoint"
    again = f"; steps {resumed.step} to {resumed.last_recorded_step} are done again" if resumed.recorded else ""
    return f"attempt {attempt} goes on from {place}{again}"


def _lost_records(path: Path, resumed: Resumption) -> list[str]:
    """What was there and is there no more; the run is exact without it."""
    lost = []
    if resumed.checkpoint is None and not resumed.damaged and has_had_checkpoints(path):
        lost.append(
            f"the journal names checkpoints of this run, but {path / 'checkpoints'} has none: all is done again"
        )
    if num_unrecorded := num_unrecorded_steps(path, resumed.step):
        text = f"metrics.jsonl has no line for {num_unrecorded} of the {resumed.step} steps before this one"
        lost.append(f"{text}: their numbers are gone, and `headrace replay` can't check their batches")
    return lost


def _damaged_text(step: int, why: str) -> str:
    return f"the checkpoint of step {step} is damaged and was passed over (now damaged-step-{step:08d}): {why}"


def _refused(file: str, path: str, expected: str, got: str, way_out: str = "") -> ConfigError:
    return ConfigError(Problem(file=file, line=0, path=path, expected=expected, got=got, way_out=way_out))
