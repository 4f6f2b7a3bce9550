"""headrace: augmented batches for torch training jobs, the same for any number of workers.

`from headrace import Stream` is the library's front door; the command `headrace` is the other one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace._house import own_house

if TYPE_CHECKING:
    from headrace.library import Stream
    from trainer.checkpoint import load_model

__all__ = ["Stream", "__version__", "load_model"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Not at the top: the command line and the services import this package and need no torch.
    if name == "Stream":
        with own_house():
            from headrace.library import Stream
        return Stream
    if name == "load_model":
        with own_house():
            from trainer.checkpoint import load_model
        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
