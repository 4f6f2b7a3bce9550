"""The README is true: its commands and snippets run, in its order, and do what it says.

Blocks under a line `<!-- not run: why -->` are exempt. A yaml block whose first line is a comment with a file name is
written to that file and must pass `headrace check`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```\n", re.DOTALL)
IMAGES_PER_CLASS = 12
"""A batch's worth of the demo's images: enough to run the README's job, not to learn from."""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    why_not: str


def blocks() -> list[Block]:
    found = _BLOCK.finditer((ROOT / "README.md").read_text())
    return [Block(match["language"], match["text"], match["why"] or "") for match in found]


def run(command: list[str], folder: Path) -> str:
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files as a clone would have them, with this environment installed."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "configs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    environment = folder / ".venv"
    environment.mkdir()
    for part in Path(sys.executable).parent.parent.iterdir():
        if part.name != "installed":
            (environment / part.name).symlink_to(part)
    (environment / "installed").touch()
    return folder


@pytest.mark.timeout(600)
def test_the_readmes_commands_and_snippets_run_in_its_order(clone: Path) -> None:
    printed: dict[str, str] = {}
    for block in blocks():
        if block.why_not:
            continue
        name = re.match(r"# (\w+\.yaml)\n", block.text)
        if block.language == "sh":
            printed[block.text] = run(["bash", "-euc", block.text], clone)
        elif block.language == "python":
            printed[block.text] = run([sys.executable, "-c", block.text], clone)
        elif block.language == "yaml" and name:
            (clone / name[1]).write_text(block.text)
            _give_it_images(clone)
            run(["headrace", "check", name[1]], clone)
    accuracy = re.search(r"held-out accuracy +│ ([\d.]+) %", _printed_by("make demo", printed))
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    lines = _printed_by("headrace digest", printed).splitlines()
    assert 6 == len(lines)
    assert lines[:3] == lines[3:]
    assert 10 == _printed_by("print(batch.step", printed).count("torch.Size([64, 3, 64, 64])")


def test_every_exempt_block_says_why() -> None:
    """`not run` is for what cannot run here, so there are few."""
    assert 5 >= sum(bool(block.why_not) for block in blocks())


def test_the_library_snippet_takes_six_lines_at_most() -> None:
    snippet = next(block.text for block in blocks() if block.language == "python" and "load_model" not in block.text)
    assert 6 >= len([line for line in snippet.splitlines() if line.strip()])


def _give_it_images(clone: Path) -> None:
    for part in ("train", "held_out"):
        for source in (clone / "demo-data" / part).glob("*") if (clone / "demo-data").exists() else ():
            target = clone / "my-images" / part / source.name
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(source.iterdir())[:IMAGES_PER_CLASS]:
                shutil.copy(image, target)


def _printed_by(command: str, printed: dict[str, str]) -> str:
    return next(out for text, out in printed.items() if command in text)


def test_the_table_on_the_first_screen_has_measured_ratios() -> None:
    """No placeholder, no cell without a number."""
    rows = re.findall(r"^\|(?! *-)(.+)\|$", (ROOT / "README.md").read_text().split("```")[0], re.MULTILINE)
    assert len(rows) >= 3
    assert all(re.search(r"\d", row.split("|")[1]) for row in rows[1:])
