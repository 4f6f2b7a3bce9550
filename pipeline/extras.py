"""Extras: the libraries that only some parts need, and what to install where they are missing.

In:  who needs them, which extras of `headrace` bring them.
Out: a located ConfigError with the way out.
Looks for libraries, and never imports one: what is wrong is said without waiting for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from pipeline.errors import ConfigError, Problem

WORKERS, TRAINER, REPORT, DEMO = "workers", "trainer", "report", "demo"
_LIBRARIES = {
    WORKERS: ("albumentations", "cv2"),
    TRAINER: ("torch",),
    REPORT: ("matplotlib", "PIL"),
    DEMO: ("skimage", "PIL"),
}


def require_extras(who: str, *extras: str) -> None:
    """ConfigError, which names every extra that `who` needs, if a library of one is not installed."""
    wanted = [library for extra in extras for library in _LIBRARIES[extra]]
    missing = [library for library in wanted if importlib.util.find_spec(library) is None]
    if missing:
        raise _missing(who, extras, f"no module named {' or '.join(missing)}")


@contextlib.contextmanager
def importing_extras(who: str, *extras: str) -> Iterator[None]:
    """An ImportError inside, also one of a library that is there and can't be loaded, becomes the same ConfigError."""
    try:
        yield
    except ImportError as error:
        raise _missing(who, extras, f"{type(error).__name__}: {error}") from error


def _missing(who: str, extras: tuple[str, ...], got: str) -> ConfigError:
    wanted = [library for extra in extras for library in _LIBRARIES[extra]]
    way_out = f"pip install 'headrace[{','.join(extras)}]'"
    if WORKERS in extras:
        way_out += ", or where only the workers have them (as in the containers), run it beside them"
    return ConfigError(
        Problem(file=who, line=0, path="", expected=", ".join(wanted), got=got, way_out=way_out),
    )
