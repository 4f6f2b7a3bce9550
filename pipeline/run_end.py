"""How a run ended, as its journal has it: finished, stopped, failed, or without a word.

In:  lines of journal.jsonl, one after the other; or the error that ends a run.
Out: `RunEnd`; the journal's line that says so.
A run that is going on has not ended: who asks looks at its lock first (`live_run`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from pipeline.errors import ConfigError, HeadraceError
from pipeline.json_lines import iter_lines
from pipeline.run_folder import RunFolder

MAX_REASON = 400
"""Characters of a reason: a line of the journal, not a page. Chosen."""

_HOW: dict[str, Literal["finished", "stopped", "failed"]] = {
    "training_ended": "finished",
    "stopped": "stopped",
    "failed": "failed",
}


class RunEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run's newest attempt."""

    how: Literal["finished", "stopped", "failed", "unknown"]
    step: int | None = None
    """Steps that were done; None where it was not written down."""
    reason: str = ""
    """What it failed of, or what stopped it."""

    def __str__(self) -> str:
        if self.how == "unknown":
            return "ended without a word (killed?)"
        at = f" at step {self.step}" if self.step is not None else ""
        if self.how == "failed":
            return f"failed{at}: {self.reason}"
        return f"{self.how}{f' by {self.reason}' if self.reason else ''}{at}"

    @property
    def sentence(self) -> str:
        """The same, said of the run."""
        return f"it was {self}" if self.how == "stopped" else f"it {self}"


class LastEnd:
    """The newest word of an end; what an attempt says of its end holds until the next one writes a line."""

    def __init__(self) -> None:
        self._event: Mapping[str, Any] = {}

    def see(self, event: Mapping[str, Any]) -> None:
        """The next line of the journal."""
        if event.get("action") in _HOW:
            self._event = event
        elif event.get("attempt") != self._event.get("attempt"):
            self._event = {}

    @property
    def end(self) -> RunEnd:
        """Of a run whose journal was seen to its last line."""
        event = self._event
        if not event:
            return RunEnd(how="unknown")
        reason = str(event.get("reason") or event.get("why") or "")
        return RunEnd(how=_HOW[event["action"]], step=event.get("step"), reason=reason)


def read_run_end(folder: Path) -> RunEnd:
    """How the run of a folder ended."""
    last = LastEnd()
    for event in iter_lines(folder / "journal.jsonl"):
        last.see(event)
    return last.end


def note_finished(folder: RunFolder, step: int) -> None:
    """The journal says that there was nothing to go on with: the run is as finished as it was."""
    folder.append_event("training_ended", step=step)


def note_failure(folder: RunFolder, error: BaseException, step: int) -> None:
    """The journal says that the run failed after so many steps, and of what, if its disk still takes a line."""
    with suppress(HeadraceError, OSError):  # what ends the run is told on the terminal in any case
        exit_code = getattr(error, "exit_code", HeadraceError.exit_code)
        folder.append_event("failed", step=step, reason=reason_of(error), exit_code=exit_code)


def note_stop(folder: RunFolder, why: str, step: int) -> None:
    """The journal says that the run was stopped without a checkpoint, if its disk still takes a line."""
    with suppress(HeadraceError, OSError):
        folder.append_event("stopped", step=step, why=why)


def reason_of(error: BaseException) -> str:
    """One line: of our own errors all but the way out, of wrong input that too; of a defect its kind and first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, HeadraceError):
        return _shortened(": ".join([type(error).__name__, *lines[:1]]))
    if not isinstance(error, ConfigError):
        lines = [line for line in lines if not line.startswith("to go on:")]
    return _shortened("; ".join(lines))


def _shortened(text: str) -> str:
    """Both ends are kept: what happened is said first, and what a service said of it last."""
    if len(text) <= MAX_REASON:
        return text
    half = MAX_REASON // 2 - 1
    return f"{text[:half]}…{text[-half:]}"
