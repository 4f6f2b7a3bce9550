"""A wish that a run stop: after its present step, or at once while it waits for data.

In:  requests, from a signal handler.
Out: `is_requested`, looked at between steps; `StopNow`, raised where the main thread waits for a batch.
Never installs a signal handler: `headrace/signals.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class StopNow(KeyboardInterrupt):
    """Raised only inside `StopRequest.while_waiting`: nothing but the wait for the next item is lost."""


class StopRequest:
    """Made before the run; `request` may be called from a signal handler in the thread that runs it."""

    def __init__(self) -> None:
        self.why = ""
        """The first request's reason, such as SIGTERM; "" as long as there was none."""
        self.has_begun = False
        """True from the first wait on: before it there is nothing that a checkpoint would have to keep."""
        self._is_waiting = False

    @property
    def is_requested(self) -> bool:
        return bool(self.why)

    def request(self, why: str) -> None:
        """StopNow if the run waits for data; else it sees the request after its step."""
        self.leave(why)
        if self._is_waiting:
            raise StopNow(self.why)

    def leave(self, why: str) -> None:
        """A request from another thread, which can end no wait: it is seen before the next item."""
        self.why = self.why or why

    def while_waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items; a request ends the wait for the next one, and comes before the next one if it is there already."""
        iterator = iter(items)
        while True:
            self._is_waiting = self.has_begun = True
            try:
                if self.is_requested:
                    raise StopNow(self.why)
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._is_waiting = False
            yield item
