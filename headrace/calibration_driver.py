"""One part of a calibration in a process of its own: `python -m headrace.calibration_driver JOB.yaml PART SEED 0|1`.

In:  a job file, a part of the suite, a seed, whether it is quick.
Out: its records as JSON on stdout; anything else it prints goes to stderr.
Ends when stdin does, whatever it is doing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import cast

import msgspec

from headrace._house import house_command, house_environment
from headrace.calibration import Part, Record, run_part
from pipeline.errors import EXIT_INTERRUPTED, RunFailed

END_TIMEOUT_S = 10.0
"""Guards against a hang only: a stream closes within a second or two."""


class Drivers:
    """Processes of one calibration; after `end` none is left, and none can be started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_ended = False

    def records(self, job_file: Path, part: Part, seed: int, *, is_quick: bool) -> list[Record]:
        """The part's, from a new process; RunFailed if it ended without. Callable from several threads."""
        process = self._start([str(job_file), part, str(seed), str(int(is_quick))])
        assert process.stdout is not None
        # Not `communicate`, which closes stdin, and that is the process's lifeline.
        with process.stdout:
            content = process.stdout.read()
        code = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        if code != 0:
            raise RunFailed(f"calibration: {part}, seed {seed}, ended with exit code {code}; why stands above")
        return msgspec.json.decode(content, type=list[Record])

    def end(self) -> None:
        """Ctrl-C first, so that a stream ends its own services; who takes too long is killed."""
        with self._lock:
            self._is_ended = True
        for process in self._processes:
            process.send_signal(signal.SIGINT)
        for process in self._processes:
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_ended:
                raise RunFailed("calibration was ended")
            process = subprocess.Popen(
                house_command("headrace.calibration_driver", *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=house_environment(),
                start_new_session=True,  # Ctrl-C is for the command; the end of stdin ends this
            )
            self._processes.append(process)
        return process


def main() -> None:
    job_file, part, seed, is_quick = sys.argv[1:]
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    # Whatever a library prints must not stand among the records.
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        records = run_part(Path(job_file), cast(Part, part), int(seed), bool(int(is_quick)))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    with os.fdopen(out, "wb") as stream:
        stream.write(msgspec.json.encode(records))


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(1)  # a stream's services see that their lifeline is cut, and end too


if __name__ == "__main__":
    main()
