"""`make compose-test`: the services in containers train what the embedded mode trains, whatever is done to them.

Needs an engine and compose (`COMPOSE="docker-compose"` names another than `docker compose`), and the images' base or
a network. Nothing but `make compose-test` runs it: its name is not one that pytest looks for.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.home import Home
from tests.processes import ROOT, Headrace, outcome_of

SERVICES = ("pipeline", "workers", "trainer")
NUM_POOLS = 4
WORKERS_IN_A_POOL = 2
NUM_EPOCHS = 30
"""Of 28 steps: all that is done to the run has taken until step 330 of it on two cores."""
RUN = "compose-test"
BUILD_S = 3600.0
DEADLINE_S = 300.0
"""Guards against hanging only: of a step of the test, such as the start of a container."""
TRAINING_S = 1500.0
LOOK_S = 0.5
SOON = "services: {" + ", ".join(f"{each}: {{healthcheck: {{interval: 3s}}}}" for each in SERVICES) + "}\n"
"""Beside docker-compose.yml: health is known before the run is over."""
EDITED = """# What an editor leaves: another file under the old name.
- RandomResizedCrop: {size: [64, 64], scale: [0.6, 1.0]}
- HorizontalFlip
- Normalize
- ToTensorV2
"""


@dataclass(frozen=True)
class Compose:
    """The project under test: its own name, its own folder of configs, its own volumes."""

    command: tuple[str, ...]
    configs: Path

    def __call__(self, *arguments: str, timeout_s: float = DEADLINE_S) -> str:
        """What it printed; an AssertionError with all of it if it failed."""
        environment = {**os.environ, "CONFIGS": str(self.configs), "RUN": RUN, "COMPOSE_PROJECT_NAME": RUN}
        files = (ROOT / "docker-compose.yml", self.configs.parent / "soon.yml")
        command = [*self.command, *(part for each in files for part in ("-f", str(each))), *arguments]
        return output(command, environment, timeout_s)

    def containers(self, service: str) -> list[str]:
        """Their ids, of those too that have ended."""
        return self("ps", "-a", "-q", service).split()

    def trained(self) -> list[dict[str, Any]]:
        """The steps that the run has written down, by its container; none before the first."""
        path = f"runs/{RUN}/metrics.jsonl"
        try:
            text = self("exec", "-T", "trainer", "sh", "-c", f"if [ -e {path} ]; then cat {path}; fi")
        except AssertionError:  # it is just being started
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def step(self) -> int:
        """The last step of the newest attempt."""
        steps = self.trained()
        return int(steps[-1]["step"]) if steps else -1

    def status(self) -> dict[str, Any]:
        """As `headrace status` in the dispatcher's container tells it; nothing while that is being started."""
        try:
            return dict(json.loads(self("exec", "-T", "pipeline", "headrace", "status", "--json")))
        except (AssertionError, ValueError):
            return {}


def output(command: list[str], environment: dict[str, str] | None = None, timeout_s: float = DEADLINE_S) -> str:
    ended = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
    )
    assert ended.returncode == 0, f"{shlex.join(command)}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def inspect(container: str) -> dict[str, Any]:
    return dict(json.loads(output(["docker", "inspect", container]))[0])


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    give_up_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(LOOK_S)


def tell(text: str) -> None:
    print(f"compose-test: {text}", flush=True)


def find_compose() -> tuple[str, ...]:
    """The command that answers; what is missing is said, and ends the test."""
    given = os.environ.get("COMPOSE", "")
    for command in (shlex.split(given),) if given else (["docker", "compose"], ["docker-compose"]):
        try:
            version = output([*command, "version", "--short"]).strip()
            engine = output(["docker", "version", "--format", "{{.Server.Version}}"]).strip()
        except (AssertionError, OSError) as error:
            problem = error
        else:
            tell(f"engine {engine}, {' '.join(command)} {version}")
            return tuple(command)
    pytest.exit(
        f"compose-test: no container engine with compose answers\n  {problem}\n"
        "  to go on: install one (on Debian: docker.io and docker-compose), see that `docker version` names a Server, "
        'and name compose where it is another command: make compose-test COMPOSE="docker-compose"',
        returncode=2,
    )


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """A project with its images built; nothing of it is left but these."""
    command = find_compose()
    folder = tmp_path_factory.mktemp("compose")
    configs = folder / "configs"
    shutil.copytree(ROOT / "configs", configs)
    folder.chmod(0o755)  # the services' user reads it
    (folder / "demo-data").symlink_to(ROOT / "demo-data")
    job = configs / "jobs/quickstart.yaml"
    text = job.read_text().replace("epochs: 12", f"epochs: {NUM_EPOCHS}") + "checkpoint: {every_steps: 50}\n"
    assert f"epochs: {NUM_EPOCHS}" in text
    job.write_text(text)
    (folder / "soon.yml").write_text(SOON)
    project = Compose(command, configs)
    tell("building the images")
    project("build", timeout_s=BUILD_S)
    project("down", "--volumes")  # what a test that was killed has left
    try:
        yield project
    finally:
        project("down", "--volumes", "--timeout", "5")


@pytest.mark.timeout(BUILD_S + 600)
@pytest.mark.parametrize(
    ("service", "absent", "present"),
    [
        ("pipeline", {"torch", "cv2", "albumentations", "pip"}, {"zmq"}),
        ("workers", {"torch", "pip"}, {"cv2", "albumentations"}),
        ("trainer", {"cv2", "albumentations", "pip"}, {"torch"}),
    ],
)
def test_a_service_has_what_it_needs_and_may_write_only_where_it_must(
    compose: Compose, service: str, absent: set[str], present: set[str]
) -> None:
    """No root, no writable image, no capability, no network; no library of another service."""
    looked_for = sorted(absent | present)
    code = f"""
import importlib.util, json, os, pathlib
status = dict(line.split(":\\t") for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({{
    "found": [name for name in {looked_for} if importlib.util.find_spec(name)],
    "uid": os.getuid(),
    "capabilities": int(status["CapBnd"], 16),
    "writable": [each for each in ("/", "/headrace", "/opt/headrace", "/etc") if os.access(each, os.W_OK)],
    "routes": len(pathlib.Path("/proc/net/route").read_text().splitlines()) - 1,
}}))
"""
    python = ("run", "--rm", "-T", "--entrypoint", "/opt/headrace/bin/python", service)
    printed = compose(*python, "-c", code)

    found = json.loads(printed.strip().splitlines()[-1])
    assert found == {
        "found": sorted(present),
        "uid": 10001,
        "capabilities": 0,
        "writable": [],
        "routes": 0,
    }


@pytest.mark.timeout(3 * TRAINING_S)
def test_a_run_in_containers_is_the_embedded_one_whatever_is_done_to_it(compose: Compose, tmp_path: Path) -> None:
    """Edited, scaled, each container killed, its trainer stopped and started: the same batches, losses and weights."""
    # Given a run that is going on
    compose("up", "-d")
    wait_until(lambda: compose.step() >= 10, "ten steps")
    tell("it trains")

    edit_the_chain(compose)
    scale_the_workers(compose)
    for service in SERVICES:
        kill_each_container(compose, service)
    stop_and_start_the_trainer(compose)

    # Then it comes to its end once, and stays there
    (trainer,) = compose.containers("trainer")
    wait_until(lambda: not inspect(trainer)["State"]["Running"], "the training's end", TRAINING_S)
    assert inspect(trainer)["State"]["ExitCode"] == 0, compose("logs", "--tail", "50", "trainer")
    compose("start", "trainer")
    wait_until(lambda: not inspect(trainer)["State"]["Running"], "a finished run's end")
    assert "it is finished already" in compose("logs", "--tail", "5", "trainer")
    assert inspect(trainer)["State"]["ExitCode"] == 0

    # And with the same swaps the embedded mode trains the same
    contained, embedded = tmp_path / "contained", tmp_path / "embedded"
    output(["docker", "cp", f"{trainer}:/headrace/runs/{RUN}", str(contained)])
    tell("the same in the embedded mode")
    train_embedded(compose.configs / "jobs/quickstart.yaml", contained / "timeline.jsonl", embedded)
    expected, got = outcome_of(embedded), outcome_of(contained)
    for each in (expected, got):  # the texts of verdicts name the run's place
        each["verdicts"] = [(one["id"], one["kind"], one["first_step"], one["layers"]) for one in each["verdicts"]]
    tell(f"{len(got['steps'])} steps, last digest {got['steps'][-1][1]}, weights {got['weights']}")
    assert expected == got
    tell("equal to the embedded mode's: every batch digest, loss, evaluation and verdict, and the weights")


def edit_the_chain(compose: Compose) -> None:
    edited = compose.configs / "chains/edited.yaml"
    edited.write_text(EDITED)
    edited.replace(compose.configs / "chains/classification.yaml")
    wait_until(lambda: len({line["recipe"] for line in compose.trained()}) == 2, "steps under the edited chain")
    tell(f"an edited chain is in use at step {compose.step()}")


def scale_the_workers(compose: Compose) -> None:
    compose("up", "-d", "--no-recreate", "--scale", f"workers={NUM_POOLS}")
    num = NUM_POOLS * WORKERS_IN_A_POOL
    wait_until(lambda: len(compose.status().get("workers", ())) == num, f"{num} workers")
    tell(f"{num} workers in {NUM_POOLS} containers at step {compose.step()}")
    containers = [each for service in SERVICES for each in compose.containers(service)]
    wait_until(
        lambda: {inspect(each)["State"]["Health"]["Status"] for each in containers} == {"healthy"}, "all healthy"
    )
    tell(f"all {len(containers)} containers are healthy at step {compose.step()}")


def kill_each_container(compose: Compose, service: str) -> None:
    """All that runs in it is killed, from inside: `docker kill` would count as a wish that it stay dead."""
    restarts = {each: inspect(each)["RestartCount"] for each in compose.containers(service)}
    for container in restarts:
        subprocess.run(["docker", "exec", container, "sh", "-c", "kill -s KILL -- -1"], capture_output=True)
    wait_until(lambda: all(inspect(each)["RestartCount"] > restarts[each] for each in restarts), f"a new {service}")
    reached = max((line["step"] for line in compose.trained()), default=-1)
    wait_until(lambda: compose.step() > reached, f"a step after each {service} was killed")
    tell(f"{service} killed and back; step {compose.step()}")


def stop_and_start_the_trainer(compose: Compose) -> None:
    (trainer,) = compose.containers("trainer")
    reached = compose.step()
    compose("stop", "trainer")
    assert inspect(trainer)["State"]["ExitCode"] == 0, "a checkpoint was written within the time to stop"
    compose("start", "trainer")
    wait_until(lambda: compose.step() > reached + 1, "a step after the trainer was stopped")
    tell(f"trainer stopped and started; step {compose.step()}")


def train_embedded(job: Path, timeline: Path, run_dir: Path) -> None:
    home = Home()
    try:
        train = ("train", job, "--timeline", timeline, "--run-dir", run_dir)
        with Headrace(*train, folder=job.parent, environment=home.environment) as run:
            ended = run.finish(TRAINING_S)
    finally:
        home.remove()
    assert ended.code == 0, ended.err
