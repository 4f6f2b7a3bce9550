"""The newest healthy checkpoint: where a run that has gone wrong can go back to.

In:  the folder of a run's checkpoints.
Out: its step, or None.
Reads each state.json as text and verifies no tensor: what is damaged is found by whoever resumes. Never imports torch.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.checkpoint_folder import checkpoint_name, checkpoint_steps


class _Said(msgspec.Struct):
    healthy: bool = False


def newest_healthy(checkpoints: Path) -> int | None:
    """The step of the newest one that is there and says that it is healthy: nothing critical was seen at that step."""
    steps = reversed(checkpoint_steps(checkpoints))
    return next((step for step in steps if _is_healthy(checkpoints / checkpoint_name(step))), None)


def _is_healthy(checkpoint: Path) -> bool:
    try:
        return msgspec.json.decode((checkpoint / "state.json").read_bytes(), type=_Said).healthy
    except (OSError, msgspec.MsgspecError):
        return False
