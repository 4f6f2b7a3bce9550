"""The contact sheet of a batch that was made again: a card a sample.

In:  a `PastStep`, the `RemadeBatch`, maybe the same coordinates under another chain.
Out: an image: originals beside augmented, with what was applied below.
Never makes a sample. Needs Pillow.
"""

from __future__ import annotations

from pathlib import Path

from headrace.applied_text import applied_name, applied_params
from headrace.past_run import PastStep
from headrace.remake import RemadeBatch, RemadeSample
from headrace.replay_report import replaced_lines
from headrace.sheet import Card, Line, Picture, Sheet, displayable, draw_sheet


def as_sheet(past: PastStep, made: RemadeBatch, compared: RemadeBatch | None, compare_file: Path | None) -> Sheet:
    """A card a sample: the original, what the run made of it, and what the other chain makes of it."""
    batch = past.batch
    is_same = made.digest == past.digest
    verified = "as recorded" if is_same else f"NOT the recorded one, {past.digest}"
    title = [
        Line(text=f"{past.run.resolve().name}, step {batch.step}", tone="strong"),
        Line(
            text=f"epoch {past.epoch}, positions {batch.start} to {batch.stop - 1} ({len(made.samples)} of "
            f"{batch.stop - batch.start} shown), recipe {batch.recipe}, chain {past.chain_name}"
        ),
        Line(text=f"digest {made.digest}, {verified}", tone="faint" if is_same else "alarm"),
    ]
    others = compared.samples if compared is not None else (None,) * len(made.samples)
    other_name = compare_file.name if compare_file is not None else ""
    cards = [_card(sample, other, other_name) for sample, other in zip(made.samples, others, strict=True)]
    return draw_sheet(title, cards)


def _card(sample: RemadeSample, other: RemadeSample | None, other_name: str) -> Card:
    about = [
        Line(text=sample.name, tone="strong"),
        Line(
            text=f"class {sample.class_name}" + ("" if sample.class_name == str(sample.label) else f" ({sample.label})")
        ),
        Line(text=f"position {sample.position}, index {sample.index}", tone="faint"),
        Line(text=f"original, {_size(sample.original_HWC.shape)}", tone="faint"),
        *(Line(text=text, tone="alarm") for text in replaced_lines(sample)),
    ]
    pictures = [
        Picture(image_HWC=sample.original_HWC, lines=tuple(about)),
        _augmented(sample, "as trained on"),
    ]
    if other is not None:
        is_another = other.index != sample.index
        pictures.append(_augmented(other, other_name, f"another sample: {other.name}" if is_another else ""))
    return Card(pictures=tuple(pictures), is_marked=bool(sample.replaces or (other and other.replaces)))


def _augmented(sample: RemadeSample, heading: str, warning: str = "") -> Picture:
    note = displayable(sample.image_HWC)[1]
    lines = [Line(text=f"{heading}, {_size(sample.image_HWC.shape)}", tone="faint")]
    if warning:
        lines.append(Line(text=warning, tone="alarm"))
    if note:
        lines.append(Line(text=note, tone="faint"))
    for applied in sample.applied:
        lines.append(Line(text=applied_name(applied), tone="strong"))
        if params := applied_params(applied):
            lines.append(Line(text=params))
    if not sample.applied:
        lines.append(Line(text="nothing applied", tone="faint"))
    return Picture(image_HWC=sample.image_HWC, lines=tuple(lines))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
