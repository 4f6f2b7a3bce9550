"""Stop signals of a standing service: Ctrl-C and SIGTERM as something to look at, not as an exception anywhere.

In:  SIGINT, SIGTERM.
Out: how often the user has asked; a file descriptor that can be read once they have.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


class StopSignals:
    """Counts the requests to stop from its making on; make it in the main thread."""

    def __init__(self) -> None:
        self.num_asked = 0
        # No Waker: its lock may be held by the very code that a second signal interrupts.
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def clear(self) -> None:
        """The descriptor can be read again only after a further request."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.num_asked += 1
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")
