"""The command line's own arguments: what the environment says wrongly is located, too."""

from __future__ import annotations

import sys

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
