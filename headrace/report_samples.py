"""Samples for a run's page: the first batch of each recipe, made again as `headrace replay` makes it.

In:  a run's folder; where its sources are now.
Out: `SampleSheet`s with PNG or JPEG bytes; for a recipe whose batch can't be made here, one line that says why.
Never fails: a page without pictures is better than none. Opens no checkpoint, writes nothing.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, HeadraceError
from pipeline.json_lines import iter_lines
from pipeline.run_history import read_timeline
from pipeline.timeline import TimelineEntry
from trainer.report_sheets import SamplePicture, SampleSheet

if TYPE_CHECKING:
    import numpy as np

    from headrace.past_run import PastStep
    from headrace.remake import RemadeBatch, RemadeSample

NUM_SAMPLES = 8
"""Of each recipe: two rows of a wide page."""
MAX_RECIPES = 6
"""Of a run with more, the first and the newest ones."""
BOX = 192
"""Pixels that a picture may be wide and high: about 10 kB as JPEG."""
_SMALL = 64
"""A picture of at most so many pixels a side is kept as it is, in PNG, and shown enlarged."""
_JPEG_QUALITY = 85
_MAX_WORDS = 160
"""Letters of a reason or a line."""


def sample_sheets(
    folder: Path, source_arguments: Sequence[str] = (), base: Path = Path(), num_samples: int = NUM_SAMPLES
) -> tuple[SampleSheet, ...]:
    """One sheet for each recipe that was trained on, in the order of first use; at most MAX_RECIPES.

    `base`: the folder that plug-in modules are looked for in. `num_samples` 0: none.
    """
    uses = _first_uses(folder) if num_samples else []
    if not uses:
        return ()
    left_out = len(uses) - MAX_RECIPES
    if left_out > 0:
        uses = [uses[0], *uses[-MAX_RECIPES + 1 :]]
    sheets = tuple(_sheet(folder, entry, source_arguments, base, num_samples) for entry in uses)
    if left_out > 0:
        sheets = (*sheets, _problem("", f"and {left_out} more recipes", "The first and the newest ones are shown."))
    return sheets


def _first_uses(folder: Path) -> list[TimelineEntry]:
    """The first entry of each recipe that a step was done under."""
    # Whatever is wrong with the files is said by the page's other parts.
    last = max((line["step"] for line in iter_lines(folder / "metrics.jsonl")), default=-1)
    found: dict[str, TimelineEntry] = {}
    for entry in read_timeline(folder):
        if entry.step <= last:
            found.setdefault(entry.recipe, entry)
    return list(found.values())


def _sheet(
    folder: Path, entry: TimelineEntry, source_arguments: Sequence[str], base: Path, num_samples: int
) -> SampleSheet:
    name = entry.file.rpartition("/")[2] or "the chain inside the job file"
    title = f"From step {entry.step:,}: {name}"
    try:
        # Imported late: albumentations takes a second, and may not be installed where a page is made.
        from headrace.past_run import look_up
        from headrace.remake import Remaker

        past = look_up(folder, entry.step, source_arguments, base)
        made = Remaker(past.job, past.source, past.timeline, base, past.quarantined).remake(
            past.batch, past.recipe, num_samples
        )
        pictures = tuple(_pictures(made))
    except ModuleNotFoundError as error:
        return _problem(entry.recipe, title, f"Its samples can't be made here: {error.name} is not installed.")
    except ConfigError as error:
        return _problem(entry.recipe, title, f"Its samples can't be made here: {_reason(error)}.")
    except (HeadraceError, OSError) as error:
        return _problem(entry.recipe, title, f"Its samples can't be made here: {_cut(str(error))}.")
    return SampleSheet(recipe=entry.recipe, title=title, note=_note(past, made), pictures=pictures)


def _problem(recipe: str, title: str, words: str) -> SampleSheet:
    return SampleSheet(recipe=recipe, title=title, note="", problem=words)


def _note(past: PastStep, made: RemadeBatch) -> str:
    batch = past.batch
    verified = "as recorded" if made.digest == past.digest else "NOT the recorded one: `headrace replay` says more"
    return (
        f"The first {len(made.samples)} of {batch.stop - batch.start} samples of step {batch.step:,}, made again: "
        f"original, and as trained on before Normalize. Recipe {batch.recipe}; the batch's digest is {verified}."
    )


def _pictures(made: RemadeBatch) -> Iterator[SamplePicture]:
    from headrace.applied_text import applied_name, applied_params
    from headrace.replay_report import replaced_lines

    for sample in made.samples:
        applied = [f"{applied_name(each)} {applied_params(each)}".strip() for each in sample.applied]
        yield SamplePicture(
            name=sample.name,
            class_name=sample.class_name,
            original=_encoded(sample.original_HWC),
            augmented=_encoded(sample.image_HWC),
            size=f"{_size(sample.original_HWC.shape)} to {_size(sample.image_HWC.shape)}",
            is_small=_is_small(sample),
            applied=tuple(applied),
            warning="; ".join(replaced_lines(sample)),
        )


def _is_small(sample: RemadeSample) -> bool:
    return all(side <= _SMALL for image in (sample.original_HWC, sample.image_HWC) for side in image.shape[:2])


def _encoded(image_HWC: np.ndarray) -> bytes:
    from headrace.pictures import shown_within
    from headrace.sheet import displayable

    return shown_within(displayable(image_HWC)[0], BOX, smallest=_SMALL, quality=_JPEG_QUALITY)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _reason(error: ConfigError) -> str:
    problem = error.problems[0]
    place = f" ({problem.path})" if problem.path else ""
    return _cut(f"{problem.file}{place}: expected {problem.expected}, got {problem.got}")


def _cut(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= _MAX_WORDS else f"{line[: _MAX_WORDS - 3]}..."
