"""One damaged file in a run's folder: an exact resume from what is intact, or a refusal that names it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace.commands.swap import swap
from headrace.commands.train import train
from pipeline.checkpoint_folder import checkpoint_steps, read_state
from pipeline.errors import HeadraceError
from pipeline.json_lines import read_lines
from pipeline.run_history import read_changes, read_metrics
from tests.home import Home
from tests.processes import DEADLINE_S, lines_of, write_job

SHELF = """
import pathlib, time
import numpy as np
from pipeline.sources.protocol import RawSample

class Shelf:
    '''40 images, read slowly as long as a file `slow` lies beside the job, and one not at all beside `stuck`.'''

    fingerprint = "5" * 64
    classes = ("a", "b", "c", "d")
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)

    def __init__(self, folder):
        self.stuck, self.slow = (pathlib.Path(folder) / name for name in ("stuck", "slow"))

    def __len__(self):
        return 40

    def read(self, index):
        if self.slow.exists():
            time.sleep(0.01)
        if index == 7 and self.stuck.exists():
            raise OSError(5, "Input/output error")
        return RawSample(self.images[index], index % 4)

    def describe(self, index):
        return f"shelf[{index}]"
"""
NEVER_READ = {"run.lock", "job-1.yaml"}
"""Damage to these can't matter: the lock's content is for people, and an older job for looking back."""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Of this very process, in which the runs are: where it writes what is not for long, and finds its caches."""
    home = Home()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", None)  # as Python remembers it
        yield home
    home.remove()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    (folder / "shelf.py").write_text(SHELF)
    (folder / "stuck").touch()
    tail: list[Any] = ["Normalize", "ToTensorV2"]
    (folder / "strong.yaml").write_text(json.dumps(["HorizontalFlip", *tail]))
    (folder / "weak.yaml").write_text(json.dumps(["VerticalFlip", *tail]))
    return write_job(
        folder,
        sources={"shelf": {"kind": "plugin", "factory": "shelf.py:Shelf", "options": {"folder": str(folder)}}},
        train={
            "source": "shelf",
            "chain": [{"from_epoch": 0, "use": "strong.yaml"}, {"from_epoch": 1, "use": "weak.yaml"}],
            "batch_size": 8,
            "epochs": 2,
        },
        eval={"source": "shelf", "chain": tail},
        workers=0,
        checkpoint={"every_steps": 4},
        model={"kind": "mlp", "width": 8, "depth": 1},
        device="cpu",
        torch_threads=1,
    )


@pytest.fixture(scope="module")
def killed(job: Path, home: Home) -> Path:
    """A run that was resumed once, with smaller batches and more epochs, and killed right before its end.

    A sample that could not be read then, and was replaced, can be read now: only quarantine.jsonl tells.
    """
    run_dir = job.parent / "run"
    train(job, run_dir=run_dir)
    train(job, run_dir=run_dir, resume=True, set_=MORE)
    shutil.copytree(run_dir, job.parent / "calm")
    shutil.rmtree(run_dir / "checkpoints" / newest(run_dir))
    (job.parent / "stuck").unlink()
    roles = [line["stream"] for line in read_lines(run_dir / "quarantine.jsonl")]
    assert (roles.count("train"), roles.count("eval")) == (4, 1)
    return run_dir


MORE = ["train.batch_size=4", "train.epochs=4"]


def newest(run_dir: Path) -> str:
    return f"step-{checkpoint_steps(run_dir / 'checkpoints')[-1]:08d}"


def steps(run_dir: Path) -> dict[int, tuple[Any, ...]]:
    return {step: (line["digest"], line["recipe"], line["loss"]) for step, line in read_metrics(run_dir).items()}


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def flip_in_the_middle(path: Path) -> None:
    flip(path, 0.5)


def flip_near_the_end(path: Path) -> None:
    flip(path, 0.97)


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


each_damage = pytest.mark.parametrize(
    "damage",
    [
        delete,
        pytest.param(truncate, marks=pytest.mark.long),
        flip_in_the_middle,
        pytest.param(flip_near_the_end, marks=pytest.mark.long),
    ],
    ids=lambda each: each.__name__,
)


@each_damage
def test_damage_to_any_one_file_is_an_exact_resume_or_a_clear_refusal(
    damage: Callable[[Path], None], job: Path, killed: Path, home: Home, tmp_path: Path
) -> None:
    """Law 4 of resuming: never another result, never a traceback; and neither leaves anything behind."""
    calm = job.parent / "calm"
    expected, weights = steps(calm), read_state(calm / "checkpoints" / newest(calm))["weights_sha256"]
    files = sorted(path.relative_to(killed) for path in killed.rglob("*") if path.is_file())
    assert len(files) >= 16, files
    refused = {}
    for name in files:
        run_dir = tmp_path / str(name).replace("/", "_")
        shutil.copytree(killed, run_dir)
        damage(run_dir / name)
        try:
            train(job, run_dir=run_dir, resume=True, set_=MORE)
        except HeadraceError as error:
            refused[str(name)] = str(error)
            continue
        finally:
            home.assert_empty_soon()
        assert read_state(run_dir / "checkpoints" / newest(run_dir))["weights_sha256"] == weights, name
        assert steps(run_dir).items() <= expected.items(), name
    print(json.dumps(refused, indent=1))
    assert [name for name, text in refused.items() if Path(name).name not in text] == [], "a refusal names the file"
    # What is there twice, or is made again from the job, never stops a run.
    never = {name for name in refused if name.startswith(("checkpoints/", "chains/")) or name in NEVER_READ}
    assert never == set(), refused


LONG = ["train.epochs=40", "checkpoint.every_steps=70"]


@pytest.fixture(scope="module")
def swapped(job: Path, killed: Path) -> tuple[Path, Path]:
    """A run with a live swap to a chain that stands nowhere else any more, killed in its last steps; and that chain.

    After `killed`: every sample can be read by now.
    """
    run_dir, other = job.parent / "swapped", job.parent / "other.yaml"
    other.write_text(json.dumps(["Transpose", "Normalize", "ToTensorV2"]))
    slow = job.parent / "slow"
    slow.touch()

    def operate() -> None:
        try:
            give_up_s = time.monotonic() + DEADLINE_S
            while not lines_of(run_dir / "metrics.jsonl") and time.monotonic() < give_up_s:
                time.sleep(0.05)
            swap(other, run_dir)
        finally:
            slow.unlink()

    with ThreadPoolExecutor(1) as operator:
        operated = operator.submit(operate)
        train(job, run_dir=run_dir, workers="1", set_=LONG)
        operated.result()
    other.unlink()
    shutil.copytree(run_dir, job.parent / "calm-swapped")
    shutil.rmtree(run_dir / "checkpoints" / newest(run_dir))
    (live,) = (each for each in read_changes(run_dir) if each.why == "headrace swap")
    return run_dir, Path("chains") / f"{live.entries[0].recipe}.yaml"


@each_damage
def test_damage_to_the_chain_of_a_live_swap_is_an_exact_resume_or_a_refusal_that_changes_nothing(
    damage: Callable[[Path], None], job: Path, swapped: tuple[Path, Path], tmp_path: Path
) -> None:
    """Nothing else has that chain, but damage to the file's comments is none to it; put back, the run goes on."""
    killed, chain = swapped
    calm, run_dir = job.parent / "calm-swapped", tmp_path / "run"
    shutil.copytree(killed, run_dir)
    damage(run_dir / chain)
    before = content(run_dir)
    refused = ""
    try:
        train(job, run_dir=run_dir, resume=True, workers="1", set_=LONG)
    except HeadraceError as error:
        refused = str(error)
    if damage is flip_in_the_middle:
        assert not refused, "there it is a comment"
    else:
        assert chain.name in refused
        assert content(run_dir) == before
        shutil.copy(killed / chain, run_dir / chain)
        train(job, run_dir=run_dir, resume=True, workers="1", set_=LONG)
    weights = [read_state(each / "checkpoints" / newest(each))["weights_sha256"] for each in (calm, run_dir)]
    assert (weights[0], steps(calm)) == (weights[1], steps(run_dir))


def content(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != "run.lock"}


def test_a_bad_edit_made_while_the_run_was_down_is_told_and_the_run_goes_on_exactly(
    job: Path, killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one made while it trains; text that is no YAML does not make a job of it that can't be read."""
    calm, run_dir, weak = job.parent / "calm", tmp_path / "run", job.parent / "weak.yaml"
    text = weak.read_text()
    try:
        weak.write_text("- [")
        shutil.copytree(killed, run_dir)
        train(job, run_dir=run_dir, resume=True, set_=MORE)
    finally:
        weak.write_text(text)
    assert f"edit of {weak} while the run was down: refused; the present chain goes on\n{weak}:1" in caplog.text
    weights = [read_state(each / "checkpoints" / newest(each))["weights_sha256"] for each in (calm, run_dir)]
    assert (weights[0], steps(calm)) == (weights[1], steps(run_dir))
