"""Ticks: when time passes for the dispatcher, and whether silence may be judged then.

In:  the time in seconds; whether the socket was drained before it was looked at.
Out: whether a tick is due; whether it may condemn anybody.
Pure. `pipeline/serve.py` has the clock.
"""

from __future__ import annotations

TICK_S = 0.1
"""How often time passes for the dispatcher: the grain of what is late."""
MAX_GAP_S = 1.5
"""Between two ticks; after more, this process itself was stopped (SIGSTOP, a suspended machine) ..."""
CALM_S = 2.5
"""... and condemns nobody for so long: what its peers have sent meanwhile has yet to reach the socket."""


class Ticks:
    """A dispatcher that was itself stopped condemns nobody before its peers could be heard again."""

    def __init__(self, now_s: float) -> None:
        self.next_s = now_s + TICK_S
        """When the next tick is due."""
        self._calm_from_s = now_s

    def is_due(self, now_s: float) -> bool:
        """True if it is time for a tick."""
        return now_s >= self.next_s

    def tick(self, now_s: float, *, drained: bool) -> bool:
        """A tick at last: True if silence may be judged, since all that had arrived before was heard."""
        if now_s > self.next_s + MAX_GAP_S:
            self._calm_from_s = now_s + CALM_S
        self.next_s = now_s + TICK_S
        return drained and now_s >= self._calm_from_s
