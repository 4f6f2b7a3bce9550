"""A hundred swaps in a row while a job trains, half of them wrong."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_chain
from pipeline.errors import ConfigError
from pipeline.operator import Operator, new_operation
from pipeline.run_lock import live_run
from pipeline.service_messages import AskSwap
from tests.acceptance.test_kills import SLEEP_S, slow_job
from tests.home import Home
from tests.processes import Headrace, lines_of, run_headrace

MIN_RATIO = 0.9
"""Of samples/s while swapping to samples/s before, in the same run."""
TAIL = "- Normalize\n- ToTensorV2\n"
GOOD = (
    "- Slow: {{p: 1.0}}\n- HorizontalFlip\n- Affine: {{rotate: {0}}}\n",
    "- Slow: {{p: 1.0}}\n- VerticalFlip\n- RandomBrightnessContrast: {{p: 0.{0:02}}}\n",
)
WRONG = (
    ("- Slow: {p: 1.0}\n- RandomBrightnessContrast: {p: 1.5}\n", 2, "RandomBrightnessContrast.p"),
    ("- Slow: {p: 1.0}\n- RandomCrop: {height: 1000, width: 1000}\n", 2, "chain[1].RandomCrop"),
    ("- Slow: {p: 1.0}\n- Resize: {height: 12, width: 12}\n", 1, "shape"),
    ("- Slow: {p: 1.0}\n- HorizontalFlop\n", 2, "HorizontalFlop"),
)
"""Text, the line that the refusal must name, and what it must say."""


@dataclass
class Rate:
    """Samples that a run has trained on by now, and how fast it was between two looks."""

    count: Callable[[], int]
    began: float = 0.0
    at_first: int = 0

    def start(self) -> None:
        self.began, self.at_first = time.monotonic(), self.count()

    def per_s(self) -> float:
        return (self.count() - self.at_first) / (time.monotonic() - self.began)


def swap(operator: Operator, stream: str, path: Path, text: str) -> str:
    """As `headrace swap` does, without the half second that a new process takes."""
    path.write_text(text)
    question = AskSwap(operation=new_operation(), stream=stream, chain=load_chain(path))
    return operator.done(question, lambda: None)


def swap_by_turns(run_dir: Path, folder: Path, num_swaps: int, pause_s: float) -> int:
    """Good and wrong chains in turn; how many good ones were taken. Each wrong one is refused with its place."""
    run = live_run(run_dir)
    wrong = itertools.cycle(WRONG)
    taken = 0
    with Operator(run.endpoint) as operator:
        for number in range(num_swaps):
            path = folder / f"swap-{number}.yaml"
            if number % 2 == 0:
                text = GOOD[number // 2 % 2].format(number % 100) + TAIL
                assert "step" in swap(operator, run.stream, path, text)
                taken += 1
            else:
                body, line, place = next(wrong)
                with pytest.raises(ConfigError) as refusal:
                    swap(operator, run.stream, path, body + TAIL)
                told = str(refusal.value)
                assert place in told, told
                assert f"{path.name}:{line}: " in told, f"refused without its place: {told}"
            time.sleep(pause_s)
    return taken


def check_swaps(folder: Path, arrays: Path, home: Home, num_swaps: int, pause_s: float) -> None:
    job = slow_job(folder, arrays, num_epochs=100_000)
    run_dir = folder / "run"
    environment = {**home.environment, "TEST_SLEEP_S": str(SLEEP_S)}
    (folder / "operator").mkdir()

    def num_samples() -> int:
        return sum(line["num_samples"] for line in lines_of(run_dir / "metrics.jsonl"))

    with Headrace("train", job, "--workers", "2", "--run-dir", run_dir, folder=folder, environment=environment) as run:
        run.wait_until(lambda: num_samples() > 200, "the first steps")
        before, during = Rate(num_samples), Rate(num_samples)
        before.start()
        time.sleep(num_swaps * pause_s / 2)
        rate_before = before.per_s()
        during.start()
        taken = swap_by_turns(run_dir, folder, num_swaps, pause_s)
        ratio = during.per_s() / rate_before
        last = num_samples()
        run.wait_until(lambda: num_samples() > last + 400, "steps under the last chain")
        stop = ("stop", "--run-dir", run_dir)
        stopped = run_headrace(*stop, folder=folder / "operator", environment=home.environment)
        assert stopped.code == 0, stopped.err
        assert run.finish().code == 4
    home.assert_empty_soon()
    print(f"{num_swaps} swaps, {taken} taken: {ratio:.2f} of the samples/s before them")
    assert ratio >= MIN_RATIO
    check_no_batch_mixes_recipes(job, run_dir, folder, home, taken)


def check_no_batch_mixes_recipes(job: Path, run_dir: Path, folder: Path, home: Home, num_taken: int) -> None:
    """Each batch has the digest that it has in a run that knew all swaps from the start."""
    steps = {line["step"]: line for line in lines_of(run_dir / "metrics.jsonl")}
    recipes = [key for key, _ in itertools.groupby(line["recipe"] for _, line in sorted(steps.items()))]
    assert len(recipes) == num_taken + 1, "every swap took effect, once"
    epochs = 1 + max(line["epoch"] for line in steps.values())
    timeline = ("--timeline", run_dir / "timeline.jsonl", "--set", f"train.epochs={epochs}")
    command = ("train", job, "--workers", "2", "--run-dir", folder / "calm", *timeline)
    calm = run_headrace(*command, folder=folder, environment=home.environment)
    assert calm.code == 0, calm.err
    again: dict[int, Any] = {line["step"]: line for line in lines_of(folder / "calm" / "metrics.jsonl")}
    same = [(steps[step]["digest"], steps[step]["recipe"]) for step in sorted(steps)]
    assert same == [(again[step]["digest"], again[step]["recipe"]) for step in sorted(steps)]


@pytest.mark.long
def test_a_hundred_swaps_in_a_row_cost_little_mix_nothing_and_leave_nothing(tmp_path, arrays, empty_home):
    """Laws 4 and 9."""
    check_swaps(tmp_path, arrays, empty_home, num_swaps=100, pause_s=0.25)
