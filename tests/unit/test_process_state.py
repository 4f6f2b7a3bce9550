"""What is said of processes, and what forked ones let go of."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from pipeline.process_state import signal_name

ROOT = Path(__file__).parents[2]


def test_a_signal_has_its_name_or_its_number() -> None:
    """Real-time signals have no name, and may end a process as any other does."""
    assert [signal_name(number) for number in (signal.SIGKILL, 40)] == ["SIGKILL", "signal 40"]


FAMILY = """
import os
from pipeline.forking import let_go_in_children

class Holder:
    def let_go_in_child(self):
        print("let go", flush=True)

holder = Holder()
let_go_in_children(holder)
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    os._exit(0)
os.wait()
"""


def test_a_child_lets_go_and_its_own_child_has_nothing_to_let_go_of() -> None:
    """The number of what was closed may be another file's by then."""
    ended = subprocess.run([sys.executable, "-c", FAMILY], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "let go\n"
