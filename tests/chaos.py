"""A chaos driver: a training run whose every process is killed or stopped at random while its user swaps and scales.

In:  a job, a seed.
Out: the run, ended well, and what was done to it.
The seed chooses what is done and in which order; the moments are real time, so no two runs meet the same instant.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.errors import EXIT_PEER_UNREACHABLE
from tests.home import Home
from tests.processes import Headrace, dispatchers, fork_servers, lines_of, pools, run_headrace, workers

Harm = tuple[signal.Signals, Callable[[int], list[psutil.Process]]]
HARMS: tuple[Harm, ...] = tuple(
    (number, find)
    for number in (signal.SIGKILL, signal.SIGSTOP)
    for find in (workers, pools, dispatchers, fork_servers)
)
"""What can be done to which of a run's processes."""
MAX_STOPPED_S = 7.0
"""Long enough that a stopped service is found silent and replaced, in some cases."""
MAX_HARMS_WITHOUT_STEP = 4
"""Then the run is left alone until its next step: on a busy machine a pool takes longer to start than the next harm to
come, and a run that is only ever harmed need not get on."""
RUN_DEADLINE_S = 300.0
OPERATOR_DEADLINE_S = 60.0


@dataclass
class Plan:
    """What the user does when the run reaches a step, and when the trainer itself is killed."""

    wishes: list[tuple[int, str, Callable[[], object]]]
    """(step, name, what to do), in the order of steps."""
    trainer_kills: list[int]
    """Steps at which the trainer is killed, rising."""


@dataclass
class Chaos:
    """Call `run`; then `done` tells how often each thing was done."""

    job: Path
    run_dir: Path
    seed: int
    home: Home
    environment: dict[str, str]
    """Beside the home's."""
    every_s: tuple[float, float] = (0.3, 2.0)
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._coin = random.Random(self.seed)
        self._stopped: list[threading.Timer] = []
        self._harmed_step = -1
        self._harms_at_step = 0
        self._first_harms = self._coin.sample(HARMS, len(HARMS))
        """So that each is done once at least, in any order."""

    def run(self, plan: Plan) -> None:
        """The run from its start to its end, resumed after each death of its trainer, with every wish and harm."""
        arguments: list[str | Path] = []
        kills = list(plan.trainer_kills)
        try:
            while not self._attempt(arguments, plan, kills):
                arguments = ["--resume"]
        finally:
            for timer in self._stopped:
                timer.join()
        left = [*(name for _, name, _ in plan.wishes), *(harm_name(harm) for harm in self._first_harms)]
        assert not left, f"the run was over before: {left}; done: {dict(self.done)}"

    @property
    def step(self) -> int:
        """The last step that any attempt has written down."""
        return max((line["step"] for line in lines_of(self.run_dir / "metrics.jsonl")), default=-1)

    def _attempt(self, arguments: list[str | Path], plan: Plan, kills: list[int]) -> bool:
        """True if the run came to its end, False if its trainer was killed on the way."""
        train = ("train", self.job, "--run-dir", self.run_dir, *arguments)
        give_up_s = time.monotonic() + RUN_DEADLINE_S
        environment = {**self.home.environment, **self.environment}
        with Headrace(*train, folder=self.job.parent, environment=environment) as run:
            while run.is_running:
                assert time.monotonic() < give_up_s, f"stuck at step {self.step}; done so far: {dict(self.done)}"
                time.sleep(self._coin.uniform(*self.every_s))
                step = self.step
                if kills and step >= kills[0]:
                    kills.pop(0)
                    self.done["SIGKILL trainer"] += 1
                    run.process.kill()
                    run.process.wait()
                    # Also what is stopped just now: the kernel wakes and ends a group whose trainer has died.
                    self.home.assert_empty_soon()
                    return False
                if plan.wishes and step >= plan.wishes[0][0]:
                    _, name, act = plan.wishes.pop(0)
                    self.done[name] += 1
                    act()
                elif step >= 0 and self._may_harm(step):
                    self._harm(run.pid)
            ended = run.finish()
        assert ended.code == 0, f"exit code {ended.code}\n{ended.out}\n{ended.err}\ndone: {dict(self.done)}"
        self.home.assert_empty_soon()
        return True

    def _may_harm(self, step: int) -> bool:
        self._harms_at_step = self._harms_at_step + 1 if step == self._harmed_step else 1
        self._harmed_step = step
        return self._harms_at_step <= MAX_HARMS_WITHOUT_STEP

    def _harm(self, trainer_pid: int) -> None:
        """Kill or stop one of the trainer's processes: first everything once, then workers most of all."""
        harms = [harm for harm in HARMS for _ in range(3 if harm[1] is workers else 1)]
        number, find = harm = self._first_harms[-1] if self._first_harms else self._coin.choice(harms)
        found = find(trainer_pid)
        if not found:
            return
        process = self._coin.choice(found)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            self.done[harm_name(harm)] += 1
            if self._first_harms:
                self._first_harms.pop()
            if number == signal.SIGSTOP:
                timer = threading.Timer(self._coin.uniform(0.2, MAX_STOPPED_S), _go_on, [process])
                timer.start()
                self._stopped.append(timer)


def harm_name(harm: Harm) -> str:
    """Such as `SIGKILL pools`."""
    number, find = harm
    return f"{number.name} {find.__name__}"


def _go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()


def operate(*arguments: str | Path, folder: Path, home: Home) -> None:
    """An operator's command, asked again while the run has no dispatcher that answers."""
    give_up_s = time.monotonic() + OPERATOR_DEADLINE_S
    while (ended := run_headrace(*arguments, folder=folder, environment=home.environment)).code != 0:
        assert ended.code == EXIT_PEER_UNREACHABLE, f"{arguments}: exit code {ended.code}\n{ended.out}{ended.err}"
        assert time.monotonic() < give_up_s, f"{arguments}: {ended.err}"
