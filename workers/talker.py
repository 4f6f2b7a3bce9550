"""A thread that a process can't do without: when it breaks, the process ends.

In:  what the subclass talks about.
Out: the traceback on stderr and EXIT_BROKEN, if talking fails; whoever watches the process replaces it.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback

EXIT_BROKEN = 1


class Talker(threading.Thread):
    """Runs `talk` once; a process whose talker has failed would be deaf and dumb, and missed only much later."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)

    def run(self) -> None:
        try:
            self.talk()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(EXIT_BROKEN)

    def talk(self) -> None:
        """Until there is nothing more to say."""
        raise NotImplementedError
