"""Contact with a dispatcher: when to ask whether it is there, and what to tell a user who waits for it.

In:  the time in seconds, at every look; each answer.
Out: whether to ask now; a text when something has changed.
Pure. A stop of this process itself is not taken for the dispatcher's silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_LOOK_GAP_S = 1.5
"""Between two looks; after more, this process itself was stopped, and answers may wait for it."""
FIRST_SILENCE_S = 2.0
"""Without an answer at the start before a user is told what is waited for."""

ASK_EVERY_S = 1.0


@dataclass(slots=True)
class Contact:
    """Says once that it waits, and once that it waits no more."""

    endpoint: str
    silence_s: float = 5.0
    """Since the last answer, before the dispatcher counts as gone."""
    is_waiting: bool = False
    has_heard: bool = False
    last_heard_s: float = field(default=-math.inf)
    """Or since when its silence counts."""
    _last_look_s: float = field(default=-math.inf)
    _last_ask_s: float = field(default=-math.inf)

    def look(self, now_s: float) -> str:
        """Call at least once a second; what to tell the user now, "" for nothing."""
        if now_s - self._last_look_s > MAX_LOOK_GAP_S:
            self.last_heard_s = now_s
        self._last_look_s = now_s
        allowed_s = self.silence_s if self.has_heard else FIRST_SILENCE_S
        if self.is_waiting or now_s - self.last_heard_s <= allowed_s:
            return ""
        self.is_waiting = True
        if self.has_heard:
            return f"the dispatcher at {self.endpoint} has not answered for {allowed_s:g} s; waiting for it"
        return f"waiting for the dispatcher at {self.endpoint}"

    def should_ask(self, now_s: float) -> bool:
        """True when a question is due; it counts as asked."""
        if now_s - self._last_ask_s < ASK_EVERY_S:
            return False
        self._last_ask_s = now_s
        return True

    def heard(self, now_s: float) -> str:
        """The dispatcher answered; what to tell the user now, "" for nothing."""
        was_waiting, self.is_waiting = self.is_waiting, False
        self.has_heard = True
        self.last_heard_s = now_s
        return f"the dispatcher at {self.endpoint} answers" if was_waiting else ""
