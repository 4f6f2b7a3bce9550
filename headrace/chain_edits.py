"""Edits: a job's chain files are watched while it runs, and each edit becomes a wish for another chain.

In:  the files of the job's chains, as `pipeline/watch.py` reads them; what became of them while the run was down.
Out: wishes, in the watcher's thread; for what can't be read or has no effect now, a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.config import parse_chain
from pipeline.config_job import Job
from pipeline.errors import ConfigError
from pipeline.following import EVALUATION_WAITS
from pipeline.recipe import Recipe
from pipeline.watch import ChainWatcher
from trainer.notes import Notes
from trainer.swapping import Wish


class ChainEdits:
    """Every edit of a chain file that stands whole is wished for once, or refused with its place."""

    def __init__(self, job: Job, wish: Callable[[Wish], None], notes: Notes) -> None:
        self._job = job
        self._wish = wish
        self._notes = notes
        self._num_edits = 0
        self._read = {job.train_file: job.train.digest} | {later.file: later.recipe.digest for later in job.later}
        """Train chain files -> the recipe that was last read from each."""
        self._read.pop("", None)
        files = [file for file in (*self._read, job.eval_file) if file]
        self._watcher = ChainWatcher(map(Path, files), self._edited, known=job.file_digests)

    def catch_up(self, edits: Mapping[str, Recipe]) -> None:
        """What was edited while the run was down (file -> what it holds) is wished for as an edit of now would be."""
        for file, problems in self._job.refused_files.items():
            self._refused(file, ConfigError(problems), " while the run was down")
        for file, recipe in edits.items():
            self._wish_for(file, recipe, was_down=True)

    def start(self) -> None:
        """Begin to watch."""
        self._watcher.start()

    def stop(self) -> None:
        """Nothing is wished for after this."""
        self._watcher.stop()

    def _edited(self, path: Path, content: bytes) -> None:
        file = str(path)
        try:
            recipe = self._job.recipe_of(parse_chain(content, file))
        except ConfigError as error:
            self._refused(file, error)
            return
        if file == self._job.eval_file and self._job.eval is not None and recipe.digest != self._job.eval.digest:
            self._notes.tell("edit_waits", f"edit of {file}: {EVALUATION_WAITS}", file=file)
        if self._read.get(file, recipe.digest) != recipe.digest:
            self._read[file] = recipe.digest
            self._wish_for(file, recipe)

    def _wish_for(self, file: str, recipe: Recipe, *, was_down: bool = False) -> None:
        self._num_edits += 1
        operation = f"edit {self._num_edits} of {file}"
        self._wish(Wish(operation=operation, recipe=recipe, edited=file, was_down=was_down))

    def _refused(self, file: str, error: ConfigError, when: str = "") -> None:
        text = f"edit of {file}{when}: refused; the present chain goes on\n{error}"
        self._notes.tell("swap_refused", text, on_terminal=True, file=file)
