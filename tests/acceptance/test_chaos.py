"""The hard one: every process killed or stopped at random, swaps and scaling meanwhile, and nothing of it shows."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_chain, load_job
from tests.chaos import Chaos, Plan, operate
from tests.home import Home
from tests.processes import ROOT, lines_of, outcome_of, run_headrace, write_job

SLOW = """
import os, time
from albumentations import ImageOnlyTransform

class Slow(ImageOnlyTransform):
    \"\"\"Sets the pace by sleeping, so that there is time for something to happen, on any machine.\"\"\"

    def apply(self, img, **params):
        time.sleep(float(os.environ.get("TEST_SLEEP_S", "0")))
        return img
"""
DATA = ROOT / "demo-data"
"""`make install` writes it."""
NUM_EPOCHS = 3
STEPS_PER_EPOCH = 28
BATCH_SIZE = 64
CHAINS = ("strong", "by_command", "middle", "weak")
TAIL: list[dict[str, Any]] = [{"Normalize": {}}, {"ToTensorV2": {}}]


def chain(*transforms: dict[str, Any]) -> str:
    return json.dumps([{"Slow": {"p": 1.0}}, {"RandomResizedCrop": {"size": [48, 48]}}, *transforms, *TAIL])


def chaos_job(folder: Path) -> Path:
    (folder / "slow.py").write_text(SLOW)
    (folder / "strong.yaml").write_text(chain({"HorizontalFlip": {}}, {"ColorJitter": {"p": 0.8}}))
    (folder / "middle.yaml").write_text(chain({"HorizontalFlip": {}}, {"ColorJitter": {"p": 0.3}}))
    (folder / "weak.yaml").write_text(chain({"HorizontalFlip": {}}))
    (folder / "by_command.yaml").write_text(chain({"VerticalFlip": {}}, {"Affine": {}}))
    return write_job(
        folder,
        seed=3,
        sources={
            "photos": {"kind": "folder", "path": str(DATA / "train")},
            "held": {"kind": "folder", "path": str(DATA / "held_out")},
        },
        plugins=["slow.py"],
        train={
            "source": "photos",
            "chain": [
                {"from_epoch": 0, "use": "strong.yaml"},
                {"from_epoch": 1, "use": "middle.yaml"},
                {"from_epoch": 2, "use": "weak.yaml"},
            ],
            "batch_size": BATCH_SIZE,
            "epochs": NUM_EPOCHS,
        },
        eval={"source": "held", "chain": [{"Resize": {"height": 48, "width": 48}}, *TAIL], "batch_size": 120},
        slice_size=16,
        workers=2,
        max_workers=6,
        checkpoint={"every_steps": 7},
        model={"kind": "cnn", "width": 4, "depth": 2},
        schedule={"kind": "cosine", "warmup_steps": 10},
        clip={"kind": "norm", "threshold": 1e-3},  # so low that there is a verdict on it
        health={"every_steps": 5, "light_every_steps": 1},
        device="cpu",
        torch_threads=1,
    )


def plan_of(seed: int, folder: Path, run_dir: Path, home: Home) -> Plan:
    """Swaps by command and by edits of the file in use and of a later one; scale 2 -> 4 -> 1; two deaths."""
    coin = random.Random(seed)
    last = NUM_EPOCHS * STEPS_PER_EPOCH
    here = ("--run-dir", run_dir)
    at = folder / "operator"
    at.mkdir()
    wishes = [
        (coin.randrange(1, 10), "scale 4", lambda: operate("scale", *here, "4", folder=at, home=home)),
        (
            coin.randrange(5, 18),
            "edit later file",
            lambda: edit(folder / "weak.yaml", chain({"HorizontalFlip": {}}, {"GaussianBlur": {"p": 0.5}})),
        ),
        (
            coin.randrange(1, 6),
            "edit file in use",
            lambda: edit(folder / "strong.yaml", chain({"RandomBrightnessContrast": {}})),
        ),
        (
            coin.randrange(28, 36),
            "swap by command",
            lambda: operate("swap", *here, folder / "by_command.yaml", folder=at, home=home),
        ),
        (coin.randrange(20, 34), "scale 1", lambda: operate("scale", *here, "1", folder=at, home=home)),
    ]
    kills = sorted([coin.randrange(4, last // 2), coin.randrange(last // 2, last - 4)])
    return Plan(wishes=sorted(wishes, key=lambda wish: wish[0]), trainer_kills=kills)


def edit(path: Path, text: str) -> None:
    """As editors save: a new file in the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def check_chaos_changes_nothing(folder: Path, seed: int, home: Home) -> None:
    job = chaos_job(folder)
    chaos = Chaos(job, folder / "chaos", seed, home, {"TEST_SLEEP_S": "0.012"})
    chaos.run(plan_of(seed, folder, folder / "chaos", home))
    print(f"seed {seed}: {dict(sorted(chaos.done.items()))}")
    assert chaos.done["SIGKILL trainer"] == 2, chaos.done

    timeline = folder / "chaos" / "timeline.jsonl"
    again = ("train", job, "--run-dir", folder / "calm", "--timeline", timeline)
    calm = run_headrace(*again, folder=folder, environment=home.environment)
    assert calm.code == 0, calm.err
    disturbed, undisturbed = outcome_of(folder / "chaos"), outcome_of(folder / "calm")
    assert len(undisturbed["steps"]) == NUM_EPOCHS * STEPS_PER_EPOCH
    loaded = load_job(job)
    recipes = [recipe for _, _, recipe, _ in undisturbed["steps"]]
    journal = lines_of(folder / "chaos" / "journal.jsonl")
    now = {name: loaded.recipe_of(load_chain(folder / f"{name}.yaml")).digest for name in CHAINS}  # after the edits
    missing = {name for name in CHAINS if now[name] not in recipes}
    if missing:  # where too much died while it was tried, the turn of the first may be over; but that is told
        without_effect = [line["note"] for line in journal if line["action"] == "swap_without_effect"]
        assert missing == {"strong"}
        assert any("strong.yaml: not in use any more" in note for note in without_effect), "strong was swapped in"
    assert len(set(recipes)) == 5 - len(missing), "these, and strong as it was before its edit"
    assert "CLIP" in {verdict["id"] for verdict in undisturbed["verdicts"]}
    assert disturbed == undisturbed


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(int(os.environ.get("TEST_CHAOS_SEEDS", "10"))))
def test_chaos_changes_nothing(tmp_path, seed, empty_home):
    """Laws 2, 4, 5 and 9 at once: weights, losses, evaluations, digests and verdicts are those of an undisturbed run,
    and nothing is left of any attempt, however it ended."""
    check_chaos_changes_nothing(tmp_path, seed, empty_home)
