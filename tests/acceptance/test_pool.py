"""A real pool: its last words arrive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pipeline.messages import AnyMessage, Join, WorkerDied
from pipeline.transport import Context, Poller
from pipeline.wire import decode_message
from tests.processes import DEADLINE_S, ROOT


def test_a_pool_that_ends_tells_the_dispatcher_who_went_with_it(tmp_path: Path) -> None:
    """Each by name, and before its socket closes: the dispatcher leases what they held again at once."""
    # Given a pool of two workers that have joined
    endpoint, alive = f"ipc://{tmp_path}/d", os.pipe()
    context = Context()
    router, poller = context.router(endpoint), Poller()
    poller.add(router)
    said: list[AnyMessage] = []

    def hear_until(kind: type[AnyMessage], num: int) -> set[str]:
        give_up_s = time.monotonic() + DEADLINE_S
        while len(names := {message.worker for message in said if isinstance(message, kind)}) < num:
            assert time.monotonic() < give_up_s, said
            poller.wait(0.5)
            while (received := router.receive()) is not None:
                said.append(decode_message(received[1]))
        return names

    command = [sys.executable, "-P", "-m", "headrace", "workers", "--connect", endpoint, "--num", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path)}
    pool = subprocess.Popen(
        [*command, "--lifeline", str(alive[0])],
        env=environment,
        cwd=tmp_path,
        pass_fds=alive[:1],
        start_new_session=True,  # a pool that outlives its lifeline kills its group
    )
    try:
        os.close(alive[0])
        joined = hear_until(Join, 2)
        # When it is to end
        os.close(alive[1])
        assert pool.wait(DEADLINE_S) == 0
        # Then each worker is signed off, in peace
        assert hear_until(WorkerDied, 2) == joined
        assert all(message.in_peace for message in said if isinstance(message, WorkerDied))
    finally:
        pool.kill()
        pool.wait()
        context.close()
