"""The README is true: its commands and snippets run, in its order, and do what it says.

Blocks under a line `<!-- not run: why -->` are exempt. One under `<!-- goes on while the next blocks run -->` is a
training run in another terminal. A yaml block whose first line is a comment with a file name is written to that file
and must pass `headrace check`. What the README does to a run in another terminal is a test of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from headrace.bench_contenders import Measured
from headrace.bench_report import Row as BenchRow
from headrace.bench_report import rows as bench_rows
from pipeline.errors import EXIT_STOPPED_RESUMABLE
from tests.processes import lines_of

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"^## (?P<heading>[^\n]+)\n|"
    r"(?:<!-- (?:not run: (?P<why>[^\n]+)|(?P<goes_on>goes on while the next blocks run)) -->\n)?"
    r"```(?P<language>\w+)\n(?P<text>.*?)```\n",
    re.DOTALL | re.MULTILINE,
)
LIVE = "While it runs"
"""The section whose commands are about a run in another terminal."""
IMAGES_PER_CLASS = 12
"""A batch's worth of the demo's images: enough to run the README's job, not to learn from."""

HANG_S = 1500
"""Of one command: the demo trains for a minute on two cores of its own, and has neither here."""

MIN_STEPS = 50
"""Of a run in another terminal before the next block: the README looks at step 40."""

BENCH_ROWS = {
    "headrace / torch's DataLoader, same chain and workers": "pipeline / DataLoader",
    "headrace / torch's DataLoader without malloc settings": "pipeline / DataLoader, no malloc",
    "headrace / the raw limit: the same chain in 2 plain processes, delivered to nobody": "pipeline / raw limit",
    "a worker's memory (RSS)": "largest worker's RSS",
}
"""The README's words for what `headrace bench` calls its results."""


class KeptBench(msgspec.Struct):
    """docs/bench.json, as far as the README has it."""

    rounds: list[dict[str, Measured]]


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    why_not: str
    goes_on: bool
    section: str


def blocks() -> list[Block]:
    found, section = [], ""
    for match in _BLOCK.finditer((ROOT / "README.md").read_text()):
        section = match["heading"] or section
        if match["language"]:
            found.append(Block(match["language"], match["text"], match["why"] or "", bool(match["goes_on"]), section))
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command: list[str], folder: Path) -> str:
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=HANG_S)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository's files as a clone would have them, with this environment installed."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "configs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    virtual_environment = folder / ".venv"
    virtual_environment.mkdir()
    for part in Path(sys.executable).parent.parent.iterdir():
        if part.name != "installed":
            (virtual_environment / part.name).symlink_to(part)
    (virtual_environment / "installed").touch()
    return folder


@contextlib.contextmanager
def other_terminals() -> Iterator[list[subprocess.Popen[str]]]:
    """What was started there must have ended by itself, stopped and resumable."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield started
        for process in started:
            out, _ = process.communicate(timeout=60)
            assert process.returncode == EXIT_STOPPED_RESUMABLE, out
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def start_in_another_terminal(command: str, clone: Path) -> subprocess.Popen[str]:
    """The run, once it has trained further than before."""
    folder = clone / re.search(r"--run-dir (\S+)", command)[1]  # type: ignore[index]
    before = len(lines_of(folder / "metrics.jsonl"))
    process = subprocess.Popen(
        ["bash", "-euc", f"exec {command.strip()}"],
        cwd=clone,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until_s = time.monotonic() + 120
    while len(lines_of(folder / "metrics.jsonl")) < before + MIN_STEPS:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until_s, "no step in two minutes"
        time.sleep(0.1)
    return process


@pytest.mark.long
@pytest.mark.timeout(2 * HANG_S)
def test_the_readmes_commands_and_snippets_run_in_its_order(clone: Path) -> None:
    """.ci/run calls it by its name, and the next one."""
    printed = run_blocks([block for block in blocks() if block.section != LIVE], clone)
    accuracy = re.search(r"held-out accuracy +│ ([\d.]+) %", _printed_by("make demo", printed))
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    lines = _printed_by("headrace digest", printed).splitlines()
    assert 6 == len(lines)
    assert lines[:3] == lines[3:]
    assert 10 == _printed_by("print(batch.step", printed).count("torch.Size([64, 3, 64, 64])")


@pytest.mark.long
@pytest.mark.timeout(2 * HANG_S)
def test_what_the_readme_does_to_a_run_works(clone: Path) -> None:
    """Two terminals."""
    run(["make", "demo-data"], clone)
    printed = run_blocks([block for block in blocks() if block.section == LIVE], clone)
    swapped = _printed_by("headrace swap", printed)
    assert re.search(r"pool \S+ has 4 .*\nrecipe (\w+) from .*gentle\.yaml takes over at step \d+\nrecipe", swapped)
    assert "SIGKILL" in _printed_by("kill -KILL", printed)
    assert "as recorded" in _printed_by("headrace replay", printed)


def run_blocks(those: list[Block], clone: Path) -> dict[str, str]:
    """What each printed."""
    printed: dict[str, str] = {}
    with other_terminals() as terminals:
        for block in those:
            if block.goes_on:
                terminals.append(start_in_another_terminal(block.text, clone))
            elif not block.why_not:
                printed[block.text] = run_block(block, clone)
    return printed


def run_block(block: Block, clone: Path) -> str:
    """What it prints; a yaml block is written down and checked."""
    name = re.match(r"# (\w+\.yaml)\n", block.text)
    if block.language == "sh":
        return run(["bash", "-euc", block.text], clone)
    if block.language == "python":
        return run([sys.executable, "-c", block.text], clone)
    if block.language == "yaml" and name:
        (clone / name[1]).write_text(block.text)
        _give_it_images(clone)
        run(["headrace", "check", name[1]], clone)
    return ""


def test_every_exempt_block_says_why() -> None:
    """`not run` is for what cannot run here, so there are few."""
    assert 7 >= sum(bool(block.why_not) for block in blocks())


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


def test_the_table_on_the_first_screen_is_that_of_the_kept_benchmark() -> None:
    """Its medians and ranges are those of the windows that `make bench` has measured; none is typed."""
    kept = msgspec.json.decode((ROOT / "docs/bench.json").read_bytes(), type=KeptBench)
    made = {row.name: row for row in bench_rows(kept.rounds, reseed_us=0.0)}
    first_screen = (ROOT / "README.md").read_text().split("```")[0]
    (heading, *cells) = re.findall(r"^\| *([^|-][^|]*?) *\| *([^|]+?) *\|$", first_screen, re.MULTILINE)
    assert f"median of {len(kept.rounds)} rounds" in heading[1]
    assert {name: _as_printed(made[row]) for name, row in BENCH_ROWS.items()} == dict(cells)


def _as_printed(row: BenchRow) -> str:
    return f"{row.value:.0f} {row.unit}" if row.unit else f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"
