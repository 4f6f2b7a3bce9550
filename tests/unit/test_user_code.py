"""User code is loaded without shadowing ours, and its failures are the user's, located."""

from __future__ import annotations

import hashlib
import os
import py_compile
import sys
from pathlib import Path

import pytest

import pipeline.user_code
from pipeline.errors import ConfigError, Problem
from pipeline.user_code import PRIVATE_PREFIX, load_attribute, load_module, loaded_digest, source_digest


def only_problem(error: ConfigError) -> Problem:
    (problem,) = error.problems
    return problem


def test_a_factory_is_found_by_file_and_by_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    return 7\n")
    assert load_attribute("mine.py:make", tmp_path)() == 7
    assert load_attribute("mine:make", tmp_path)() == 7


def test_a_file_is_loaded_once_under_a_private_name(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text("marker = object()\n")
    first = load_module("trainer.py:marker", tmp_path)
    assert first is load_module("trainer.py", tmp_path)
    assert first.__name__.startswith(PRIVATE_PREFIX)


def test_a_folder_named_pipeline_beside_the_user_does_not_shadow_ours(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    (tmp_path / "mine.py").write_text("import pipeline.user_code as seen\nfrom helper import value\n")
    (tmp_path / "helper.py").write_text("value = 3\n")
    module = load_module("mine.py", tmp_path)
    assert module.seen is pipeline.user_code
    assert module.value == 3
    assert sys.path[-1] == str(tmp_path)


def test_an_error_inside_user_code_names_their_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json\n\njson.loads('{')\n")
    with pytest.raises(ConfigError) as caught:
        load_module("mine.py:make", tmp_path)
    problem = only_problem(caught.value)
    assert (problem.file, problem.line, problem.path) == (str(tmp_path / "mine.py"), 3, "mine.py:make")
    assert "JSONDecodeError" in problem.got


def test_a_syntax_error_names_their_line(tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("a = 1\ndef f(:\n")
    with pytest.raises(ConfigError) as caught:
        load_module("broken_module", tmp_path)
    assert (only_problem(caught.value).file, only_problem(caught.value).line) == (
        str(tmp_path / "broken_module.py"),
        2,
    )


def test_an_import_missing_inside_user_code_is_located_there(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("\nimport no_such_library_anywhere\n")
    for reference in ("mine.py", "mine"):
        with pytest.raises(ConfigError) as caught:
            load_module(reference, tmp_path)
        assert only_problem(caught.value).line == 2
        assert "no_such_library_anywhere" in only_problem(caught.value).got


def test_a_module_that_exits_is_an_error_not_an_exit(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError):
        load_module("script.py", tmp_path)


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("mine.py:mack", "did you mean make?"),
        ("mime.py:make", "did you mean mine.py?"),
        ("mime:make", "did you mean mine?"),
        ("mine.deeper.still:make", ""),
        ("mine.py", "mine.py:make"),
        (":make", ""),
        ("", ""),
        ("..mine:make", ""),
    ],
)
def test_a_wrong_reference_is_refused_with_the_nearest_name(tmp_path: Path, reference: str, hint: str) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    return 7\n")
    with pytest.raises(ConfigError) as caught:
        load_attribute(reference, tmp_path)
    assert hint in str(caught.value)
    assert reference in str(caught.value)


def test_a_digest_is_of_the_source_and_nothing_runs(tmp_path: Path) -> None:
    text = b"raise RuntimeError('imported')\n"
    (tmp_path / "explodes.py").write_bytes(text)
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_bytes(text)
    (tmp_path / "package" / "inner" / "leaf.py").write_bytes(text + b"# more\n")
    expected = hashlib.sha256(text).hexdigest()
    assert source_digest("explodes.py:make", tmp_path) == expected
    assert source_digest("explodes", tmp_path) == expected
    assert source_digest("package", tmp_path) == expected
    assert source_digest("package.inner.leaf", tmp_path) == hashlib.sha256(text + b"# more\n").hexdigest()
    assert "package" not in sys.modules


@pytest.mark.parametrize("reference", ["nowhere_at_all", "package.missing", "sys", "missing.py"])
def test_a_module_without_source_has_no_digest(tmp_path: Path, reference: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    with pytest.raises(ConfigError):
        source_digest(reference, tmp_path)


@pytest.mark.parametrize("reference", ["edited_plug.py", "edited_plug", "edited_package.plug"])
def test_a_module_keeps_the_digest_of_the_source_that_was_run(reference: str, tmp_path: Path) -> None:
    """The file may be edited at any time, also within the second that a .pyc takes for the same version."""
    (tmp_path / "edited_package").mkdir()
    (tmp_path / "edited_package" / "__init__.py").write_text("")
    file = tmp_path / ("edited_package/plug.py" if "package" in reference else "edited_plug.py")
    file.write_text("value = 1\n")
    moment = file.stat().st_mtime_ns
    py_compile.compile(str(file))
    file.write_text("value = 2\n")
    os.utime(file, ns=(moment, moment))
    wanted = source_digest(reference, tmp_path)
    module = load_module(reference, tmp_path)
    assert (module.value, loaded_digest(module)) == (2, wanted)

    file.write_text("value = 3\n")
    assert loaded_digest(load_module(reference, tmp_path)) == wanted != source_digest(reference, tmp_path)


def test_a_module_that_was_imported_before_has_the_digest_it_had_when_it_was_loaded(tmp_path: Path) -> None:
    """One plug-in may import another."""
    (tmp_path / "imported_first.py").write_text("value = 1\n")
    (tmp_path / "importer.py").write_text("import imported_first\n")
    wanted = source_digest("imported_first", tmp_path)
    for reference in ("importer", "imported_first"):
        module = load_module(reference, tmp_path)
    (tmp_path / "imported_first.py").write_text("value = 2\n")
    assert loaded_digest(module) == wanted
