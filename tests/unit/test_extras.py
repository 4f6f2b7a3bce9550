"""What is not installed is named with what brings it, before any work is begun."""

from __future__ import annotations

import importlib.util

import pytest

from pipeline.errors import ConfigError
from pipeline.extras import DEMO, REPORT, TRAINER, WORKERS, importing_extras, require_extras


def test_a_command_names_all_its_extras_where_one_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the trainer's alone the next start would end for want of the workers'."""
    require_extras("headrace train", WORKERS, TRAINER)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(
        ConfigError, match=r"no module named torch\n  to go on: pip install 'headrace\[workers,trainer\]'"
    ):
        require_extras("headrace train", WORKERS, TRAINER)
    for others in (WORKERS, REPORT, DEMO):
        require_extras("a command that trains nothing", others)


def test_a_library_that_is_there_and_can_not_be_loaded_is_told_alike() -> None:
    """As OpenCV without the system's libGL."""
    text = r"a worker\n.*\n.*ImportError: libGL.so.1\n .*headrace\[workers\]"
    with pytest.raises(ConfigError, match=text), importing_extras("a worker", WORKERS):
        raise ImportError("libGL.so.1")
