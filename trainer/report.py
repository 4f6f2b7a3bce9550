"""The page of a run: one HTML file with its curves, layers, verdicts, recipes, samples and settings.

In:  a run's folder, going on or not; pictures of its samples, which others make.
Out: report.html, whole or not at all, with nothing to fetch.
Reads a run of any length as a stream; a part that the folder does not have is named on the page.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from pipeline.durable import write_whole
from pipeline.errors import ConfigError, Problem, RunFailed
from trainer.report_sheets import SampleSheet

FILE_NAME = "report.html"
_LIBRARIES = ("matplotlib", "jinja2", "markupsafe")


def write_report(folder: Path, out: Path | None = None, samples: Sequence[SampleSheet] = ()) -> Path:
    """`out` (the folder's report.html by default) is the run's page, and is returned.

    ConfigError for a folder that is none of a run, for a library that is missing, or an `out` that can't be written.
    """
    try:
        from trainer.report_page import page
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    target = out if out is not None else folder / FILE_NAME
    text = page(folder, samples)
    if not target.parent.is_dir():
        raise _not_written(target, f"no such folder: {target.parent}")
    try:
        write_whole(target, text.encode(), is_synced=False)
    except RunFailed as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # a full disk is nobody's wrong input
        raise _not_written(target, cause.strerror or str(cause)) from cause
    return target


def require_libraries() -> None:
    """ConfigError, with what to install, if a library of the page is missing; before the work, not after it."""
    try:
        import trainer.report_page  # noqa: F401
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _missing(error: ModuleNotFoundError) -> Exception:
    name = (error.name or "").partition(".")[0]
    if name not in _LIBRARIES:
        return error
    return ConfigError(
        Problem(
            file="headrace report",
            line=0,
            path="",
            expected=f"{name}, which draws the page",
            got="no such module",
            way_out="pip install 'headrace[report]'",
        )
    )


def _not_written(path: Path, got: str) -> ConfigError:
    expected = "a place where a file can be written"
    return ConfigError(Problem(file=str(path), line=0, path="", expected=expected, got=got, way_out="name one: --out"))
