"""A pool that was started with the wrong folder declines what it can't make: it ends nobody's job."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.test_kills import slow_job
from tests.home import Home
from tests.processes import Headrace


@pytest.mark.long
def test_a_wrong_pool_is_told_of_and_the_job_goes_on_with_a_right_one(tmp_path: Path, arrays: Path) -> None:
    """The first pool has other images under the job's source name; the user reads so within seconds."""
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, images=np.zeros((99, 24, 20, 3), np.uint8), labels=np.arange(99) % 5)
    job, home = slow_job(tmp_path, arrays, num_epochs=1), Home()
    connect = ("--connect", f"ipc://{home.path}/d")

    def pool(stack: contextlib.ExitStack, name: str, source: Path) -> Headrace:
        (tmp_path / name).mkdir()
        arguments = ("--num", "1", "--name", name, "--base", tmp_path, "--plugins", "slow.py")
        pool = Headrace("workers", *connect, *arguments, "--source", f"arrays={source}", folder=tmp_path / name,
                        environment=home.environment)  # fmt: skip
        return stack.enter_context(pool)

    with contextlib.ExitStack() as stack:
        (tmp_path / "service").mkdir()
        listen = ("--listen", f"ipc://{home.path}/d")
        service = Headrace("pipeline", *listen, folder=tmp_path / "service", environment=home.environment)
        service = stack.enter_context(service)
        services = [service, pool(stack, "bad", wrong)]
        train = Headrace("train", job, *connect, "--run-dir", tmp_path / "run", folder=tmp_path,
                         environment=home.environment)  # fmt: skip
        train = stack.enter_context(train)
        told = tmp_path / "command.err"
        train.wait_until(lambda: "of pool bad" in told.read_text(), "the trainer tells why nobody works", 20.0)
        assert "--source: arrays\n    expected: 100 samples" in told.read_text()
        services.append(pool(stack, "good", arrays))
        ended = train.finish()
        assert ended.code == 0, ended.err
        assert "action=decline" in (tmp_path / "service/command.err").read_text()
        for each in services:
            each.process.terminate()
        assert [0, 0, 0] == [each.finish().code for each in services]
    home.assert_empty_soon()
    home.remove()
