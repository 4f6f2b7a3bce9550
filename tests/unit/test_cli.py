"""The command line's own arguments: what the environment says wrongly is located, too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace import cli


def test_an_unknown_log_level_is_refused_with_those_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By exit code 2, as everything that the user wrote wrongly."""
    monkeypatch.setenv("HEADRACE_LOG", "foo")
    monkeypatch.setattr(sys, "argv", ["headrace", "check", "job.yaml"])
    monkeypatch.setattr(cli, "_listen_for_signals", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    expected = "headrace: environment: HEADRACE_LOG\n  expected: one of DEBUG, INFO, WARNING, ERROR, CRITICAL\n"
    assert capsys.readouterr().err == f"{expected}  got:      foo\n"


def test_each_file_of_commands_is_a_command() -> None:
    """They are imported by name, so that no import would miss one."""
    files = (Path(cli.__file__).parent / "commands").glob("*.py")
    assert {name.replace("-", "_") for name in cli._COMMANDS} == {file.stem for file in files} - {"__init__"}
