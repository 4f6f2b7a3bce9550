"""`--source NAME=…` and the user's own sources: what was meant, or a refusal that says what can be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.job import ArraysSource, DigitsSource, FolderSource, ManifestSource, PluginSource
from pipeline.sources import open_source, parse_source_argument

PLUGIN = """
import numpy as np
from pipeline.sources import RawSample

class Squares:
    fingerprint = "squares"
    classes = ("even", "odd")
    def __init__(self, side=4):
        if side < 1:
            raise ValueError("side must be positive")
        self.side = side
    def __len__(self):
        return 10
    def read(self, index):
        return RawSample(np.full((self.side, self.side), index, np.uint8), index % 2)
    def describe(self, index):
        return f"square {index}"

class NoRead:
    fingerprint = "x"
    classes = ()
    def __len__(self):
        return 1

class Empty(Squares):
    def __len__(self):
        return 0

class Unnamed(Squares):
    fingerprint = None

class Numbered(Squares):
    classes = (0, 1)

number = 3
"""


def test_each_form_gives_its_source_with_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text, expected in (
        ("train=a/b", FolderSource(path=tmp_path / "a/b")),
        ("train=/data/x=y", FolderSource(path=Path("/data/x=y"))),
        ("train=a/list.CSV", ManifestSource(path=tmp_path / "a/list.CSV")),
        ("train=x.npz", ArraysSource(path=tmp_path / "x.npz")),
        ("train=digits", DigitsSource()),
        ("train=./digits", FolderSource(path=tmp_path / "digits")),
        ('train={"kind": "folder", "path": "a", "content": true}', FolderSource(path=tmp_path / "a", content=True)),
        (
            'train={"kind": "arrays", "path": "i.npy", "labels": "l.npy"}',
            ArraysSource(path=tmp_path / "i.npy", labels=tmp_path / "l.npy"),
        ),
        (
            'train={"kind": "plugin", "factory": "m:f", "options": {"n": 1}}',
            PluginSource(factory="m:f", options={"n": 1}),
        ),
    ):
        assert ("train", expected) == parse_source_argument(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits", "NAME=DIR"),
        ("=digits", "NAME=DIR"),
        ("train=", "NAME=DIR"),
        ("train=x.npy", "labels"),
        ("train={", "JSON"),
        ('train={"kind": "ftp"}', "ftp"),
        ('train={"path": "a"}', "kind"),
        ('train={"kind": "folder", "path": "a", "colour": 1}', "colour"),
    ],
)
def test_a_wrong_argument_is_refused_at_the_command_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match="command line: --source") as caught:
        parse_source_argument(text)
    assert expected in str(caught.value)


@given(st.text())
def test_any_text_is_a_source_or_a_refusal(text: str) -> None:
    for argument in (text, "name=" + text, "name={" + text):
        try:
            parse_source_argument(argument)
        except ConfigError:
            continue


def plugin(folder: Path, name: str, **options: object) -> PluginSource:
    path = folder / "squares.py"
    path.write_text(PLUGIN)
    return PluginSource(factory=f"{path}:{name}", options=options)


def test_a_factory_makes_a_source_with_its_options(tmp_path: Path) -> None:
    source = open_source(plugin(tmp_path, "Squares", side=2), tmp_path)
    sample = source.read(3)
    assert (len(source), source.fingerprint, source.describe(3)) == (10, "squares", "square 3")
    assert (sample.data.shape, sample.label) == ((2, 2), 1)


@pytest.mark.parametrize("reference", ["squares_beside_the_job:Squares", "squares_beside_the_job.py:Squares"])
def test_a_factory_is_looked_for_beside_the_job_wherever_the_command_runs(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/squares_beside_the_job.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert len(open_source(PluginSource(factory=reference), tmp_path / "jobs")) == 10
    sys.modules.pop("squares_beside_the_job", None)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("number", {}, "a function or class"),
        ("Squares", {"sides": 3}, "unexpected keyword"),
        ("Squares", {"side": 0}, "side must be positive"),
        ("NoRead", {}, "['read', 'describe']"),
        ("Empty", {}, "at least one sample"),
        ("Unnamed", {}, "a fingerprint"),
        ("Numbered", {}, "a tuple of names"),
        ("Missing", {}, "Missing"),
    ],
)
def test_a_factory_that_makes_no_source_is_refused(
    tmp_path: Path, name: str, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(plugin(tmp_path, name, **options), tmp_path)
    assert expected in str(caught.value)
