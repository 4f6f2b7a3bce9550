"""Sheets of samples for a run's page, as others make them.

In:  pictures as bytes, and words.
Out: records; nothing here draws, reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePicture:
    """One sample before and after its chain."""

    name: str
    class_name: str
    original: bytes
    """PNG or JPEG."""
    augmented: bytes
    size: str
    """Of both, such as `64x48 to 32x32`."""
    is_small: bool
    """Shown enlarged, with hard edges."""
    applied: tuple[str, ...]
    """One line a transform that ran."""
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSheet:
    """The first samples that were trained on under one recipe, or why they can't be shown."""

    recipe: str
    title: str
    note: str
    """What is shown, and whether the batch is the recorded one."""
    pictures: tuple[SamplePicture, ...] = ()
    problem: str = ""
