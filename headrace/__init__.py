"""headrace: augmented batches for torch training jobs, the same for any number of workers.

`from headrace import Stream` is the library's front door; the command `headrace` is the other one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace._house import own_house

if TYPE_CHECKING:
    from headrace.library import Stream
    from trainer.checkpoint import load_model
    from trainer.health.monitor import GradientHealth

__all__ = ["GradientHealth", "Stream", "__version__", "load_model"]

__version__ = "0.1.0"

_HOMES = {"GradientHealth": "trainer.health.monitor", "Stream": "headrace.library", "load_model": "trainer.checkpoint"}
"""Public name -> its module, imported when the name is asked for: the command line and the services need no torch."""


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with own_house():
        return getattr(import_module(_HOMES[name]), name)
