"""The house: imports point one way, and each outside library has one home."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import headrace
from headrace._house import house_command, house_environment

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "workers": {"workers", "pipeline"},
    "trainer": {"trainer", "pipeline"},
    "headrace": {"headrace", "pipeline", "workers", "trainer"},
}
HOMES = {
    "yaml": ["pipeline/config.py"],
    "zmq": ["pipeline/transport.py"],
    "albumentations": ["workers/chain*.py"],
    "cv2": ["workers/decode.py", "workers/chain*.py"],
    "torch": ["trainer/*.py"],
    "matplotlib": ["trainer/figures.py"],
    "PIL": ["headrace/pictures.py", "headrace/sheet.py"],
    "jinja2": ["trainer/pages.py"],
    "prometheus_client": ["trainer/export_prometheus.py"],
    "tensorboard": ["trainer/export_tensorboard.py"],
}
"""Library -> the files that may import it. albumentations' border modes are cv2's numbers."""
MAX_LINES = 400
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


@cache
def imported(path: Path) -> tuple[tuple[str, int], ...]:
    """(top-level name, line) of every import, late ones and those for type checkers included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it leads"
            found.append((str(node.module).split(".")[0], node.lineno))
    return tuple(found)


def test_imports_point_one_way() -> None:
    """pipeline <- workers, pipeline <- trainer, all <- headrace; workers and trainer never import each other."""
    wrong = []
    for path in FILES:
        name = path.relative_to(ROOT)
        allowed = MAY_IMPORT[name.parts[0]]
        wrong += [f"{name}:{line} imports {top}" for top, line in imported(path) if top in set(MAY_IMPORT) - allowed]
    assert wrong == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_an_outside_library_has_one_home(library: str) -> None:
    """What changes with the library then changes in one place."""
    users = {str(path.relative_to(ROOT)) for path in FILES if library in {top for top, _ in imported(path)}}
    homes = HOMES[library]

    assert {user for user in users if not any(fnmatch(user, home) for home in homes)} == set()
    assert users, f"nobody imports {library} any more: is its home still {homes}?"


def test_files_stay_small() -> None:
    """None over 400 lines."""
    assert [str(path) for path in FILES if len(path.read_text().splitlines()) > MAX_LINES] == []


def test_a_text_between_statements_belongs_to_a_field() -> None:
    """A docstring comes first; below an assignment to a field it describes that; anywhere else Python drops it."""
    stray = []
    for path in FILES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for above, node in pairwise(function.body):
                    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                    if is_constant and isinstance(node.value.value, str) and not _sets_a_field(above):
                        stray.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert [] == stray


def _sets_a_field(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Attribute) for target in targets)


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (
            ["headrace.commands.pipeline", "pipeline.serve", "pipeline.runtime_dir"],
            {"torch", "albumentations", "cv2"},
        ),
        (["headrace.commands.workers", "workers.pool"], {"torch", "trainer", "albumentations", "cv2"}),
        (["workers.worker", "workers.chain", "workers.produce"], {"torch", "trainer", "typer", "rich"}),
        (["headrace", "headrace.cli"], {"torch", "albumentations", "cv2", "numpy", "typer"}),
        (["headrace.embedded", "headrace.library", "trainer.loop"], {"albumentations", "cv2", "workers"}),
    ],
    ids=["dispatcher", "pool", "worker", "command line", "trainer"],
)
def test_a_part_loads_only_what_it_needs(modules: list[str], unwanted: set[str]) -> None:
    """torch in a worker costs 180 MB and 1.7 s; the dispatcher's machine may have none of the three."""
    code = f"import sys, {', '.join(modules)}; print(*(name for name in sys.modules if '.' not in name))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert unwanted & set(out.split()) == set()


def test_processes_of_our_own_are_begun_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are found first there, what the user named next, and nothing in the current folder."""
    writers = [path for path in FILES if "PYTHONPATH" in path.read_text() or '"-P"' in path.read_text()]
    assert [ROOT / "headrace/_house.py"] == writers
    assert [sys.executable, "-P", "-m", "headrace", "report"] == house_command("headrace", "report")
    monkeypatch.setenv("PYTHONPATH", "theirs")
    environment = house_environment({"MORE": "1"})
    assert (f"{ROOT}{os.pathsep}theirs", "1") == (environment["PYTHONPATH"], environment["MORE"])
    monkeypatch.delenv("PYTHONPATH")
    assert str(ROOT) == house_environment()["PYTHONPATH"]


def test_dir_lists_what_the_front_door_offers_also_before_it_is_imported() -> None:
    """A notebook's completion asks for it."""
    assert sorted(headrace.__all__) == dir(headrace)
    assert "Stream" in dir(headrace)
