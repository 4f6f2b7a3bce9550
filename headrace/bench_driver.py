"""One contender in a process of its own: `python -m headrace.bench_driver NAME JOB.yaml WORKERS [OVERRIDE...]`.

In:  on stdin a line `IGNORE_S COUNT_S` for each window.
Out: on stdout an empty line when it has started, then `Measured` as a line of JSON for each window.
Ends when stdin does, whatever it is doing. Anything else it prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from pathlib import Path

import msgspec

from headrace.bench_contenders import make_contender
from headrace.bench_usage import ProcessTree
from pipeline.config import load_job
from pipeline.errors import HeadraceError


def main(name: str, job_file: str, num_workers: int, overrides: list[str]) -> int:
    """Obey until stdin ends; an exit code."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # no stray print may look like a reply
    wishes: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(wishes,), name="listen", daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            contender = make_contender(name, load_job(Path(job_file), overrides), num_workers)
        except HeadraceError as error:
            print(f"headrace: {error}", file=sys.stderr)
            return error.exit_code
        try:
            ProcessTree().wait_until_idle()
            print(file=replies, flush=True)
            while True:
                ignore_s, count_s = map(float, wishes.get().split())
                measured = contender.measure(ignore_s, count_s)
                ProcessTree().wait_until_idle()
                print(msgspec.json.encode(measured).decode(), file=replies, flush=True)
        finally:
            contender.close()
    return 0


def _listen(wishes: queue.SimpleQueue[str]) -> None:
    # Not sys.stdin: a process forked while this thread reads would wait for its lock for ever.
    with os.fdopen(os.dup(sys.stdin.fileno())) as lines:
        for line in lines:
            wishes.put(line)
    os.kill(os.getpid(), signal.SIGINT)  # interrupts whatever the main thread waits for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
