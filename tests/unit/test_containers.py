"""What the images are made with: the trainer as a service, the libraries of each. `make compose-test` runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDS = """#!/bin/sh
echo "$*"
exit $CODE
"""
STOPS = f"""#!{sys.executable}
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved") or 4))
print("trains", flush=True)
signal.pause()
"""


STEPS = """#!/bin/sh
mkdir -p runs/first
echo "{\\"attempt\\":1,\\"step\\":$STEP,\\"loss\\":0.5}" >> runs/first/metrics.jsonl
exit $CODE
"""


def start(folder: Path, headrace: str, code: int = 0, step: int = 0) -> subprocess.Popen[str]:
    """docker/train in `folder`, with a stub for the command that it calls."""
    stub = folder / "bin/headrace"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(headrace)
    stub.chmod(0o755)
    own = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "JOB": "job.yaml", "RUN": "first", "CODE": str(code)}
    own["STEP"] = str(step)
    return subprocess.Popen(
        [ROOT / "docker/train", "--connect", "E"],
        cwd=folder,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("file", "more"), [("", ""), ("run.lock", ""), ("job.yaml", " --resume")])
def test_the_service_goes_on_with_a_run_that_can_be_resumed_and_begins_any_other(
    file: str, more: str, tmp_path: Path
) -> None:
    """A run that was killed while its folder was made is begun again."""
    if file:
        (tmp_path / "runs/first").mkdir(parents=True)
        (tmp_path / "runs/first" / file).touch()

    out, _ = start(tmp_path, ENDS).communicate(timeout=60)

    assert out == f"train job.yaml --run-dir runs/first{more} --connect E\n"


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 0), (3, 3), (4, 0), (130, 130), (137, 137)])
def test_only_what_another_start_may_mend_is_told_as_a_failure(code: int, expected: int, tmp_path: Path) -> None:
    """A restart policy starts what ended with another code than 0: also a run that somebody just stopped."""
    service = start(tmp_path, ENDS, code)
    service.communicate(timeout=60)
    assert service.returncode == expected


def test_a_run_that_comes_no_step_further_is_given_up_and_one_that_does_is_not(tmp_path: Path) -> None:
    """A run of weeks may crash as often as it likes; a crash at the same step would go round for ever."""

    def ended(code: int, step: int) -> tuple[int, str]:
        service = start(tmp_path, STEPS, code, step)
        _, err = service.communicate(timeout=60)
        return service.returncode, err

    assert [ended(137, step) for step in range(95, 111)] == [(137, "")] * 16
    assert [ended(1, 110) for _ in range(8)] == [(1, "")] * 8
    assert [ended(3, 110) for _ in range(3)] == [(3, "")] * 3, "services that are away say nothing about the run"
    code, err = ended(1, 109)
    assert code == 0
    assert err.startswith("train: 10 times no further than step 110 (exit code 1); not tried again")
    assert ended(1, 110) == (1, ""), "whoever starts it anew begins to count anew"


def test_the_trainers_policy_has_no_number_of_restarts() -> None:
    """An engine never forgets one, however long the run has been well in between."""
    policies = re.findall(r"^ +restart: (\S+)", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert policies == ["unless-stopped", "on-failure"]


def test_a_signal_is_passed_on_and_the_checkpoint_waited_for(tmp_path: Path) -> None:
    """An engine that stops a container kills what is left once its first process has ended."""
    service = start(tmp_path, STOPS)
    assert service.stdout is not None
    assert service.stdout.readline() == "trains\n"
    service.send_signal(signal.SIGTERM)
    out, _ = service.communicate(timeout=60)
    assert (out, service.returncode) == ("saved\n", 0)


def test_an_image_has_the_libraries_of_its_extras() -> None:
    """Each of them once, and of these versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    command = [sys.executable, ROOT / "docker/requirements.py", "workers"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed == [*project["dependencies"], *project["optional-dependencies"]["workers"]]
    assert subprocess.run([*command, "wokers"], capture_output=True).returncode != 0


def test_the_wheels_are_those_of_all_images() -> None:
    """Or an image could not be built where there is no network."""
    commands = re.findall(r"requirements\.py ([a-z ]*[|>])", (ROOT / "Dockerfile").read_text())
    (downloaded,) = re.findall(r"requirements\.py ([a-z ]*[|>])", (ROOT / "Makefile").read_text())
    used = {extra for extras in commands for extra in extras.split()[:-1]}
    assert used | {"build"} == set(downloaded.split()[:-1])


def test_the_images_base_is_one() -> None:
    """Where nobody names another: of `docker build` and of compose."""
    (alone,) = re.findall(r"^ARG BASE_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    (composed,) = re.findall(r"BASE_IMAGE:-(.+)}", (ROOT / "docker-compose.yml").read_text())
    (python,) = re.findall(r"^IMAGE_PYTHON \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert alone == composed
    assert f"python:{python}-" in alone
