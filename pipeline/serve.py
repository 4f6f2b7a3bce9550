"""The dispatcher's process: one ROUTER socket, one loop.

In:  frames of trainers, workers, pools and operators; the clock.
Out: `Dispatcher.receive` and `tick`, and what they send.
Never reads a message: `pipeline/dispatcher.py` does.
"""

from __future__ import annotations

import time

from pipeline.dispatcher import Dispatcher
from pipeline.leases import Leases
from pipeline.messages import AnyMessage
from pipeline.ticks import Ticks
from pipeline.transport import Context, Poller, Router
from pipeline.wire import encode_message

MAX_DRAIN_S = 1.0
"""Under more load than it can take, a tick comes after so long although messages wait; nobody is condemned then."""


def serve(endpoint: str, *, lifeline_fd: int | None = None) -> None:
    """Dispatch until the lifeline's other end is closed, or for ever without one."""
    context = Context()
    try:
        router = context.router(endpoint)
        poller = Poller()
        poller.add(router)
        if lifeline_fd is not None:
            poller.add(lifeline_fd)

        def send(identity: bytes, message: AnyMessage) -> None:
            router.send(identity, encode_message(message))

        now_s = time.monotonic()
        dispatcher = Dispatcher(send, Leases(), started_s=now_s)
        ticks = Ticks(now_s)
        while lifeline_fd not in poller.wait(ticks.next_s - time.monotonic()):
            drained = _receive_all(router, dispatcher)
            now_s = time.monotonic()
            if ticks.is_due(now_s):
                dispatcher.tick(now_s, drained=ticks.tick(now_s, drained=drained))
    finally:
        context.close()


def _receive_all(router: Router, dispatcher: Dispatcher) -> bool:
    """Receive what waits; False if more came for MAX_DRAIN_S than could be taken."""
    now_s = time.monotonic()
    give_up_s = now_s + MAX_DRAIN_S
    while (received := router.receive()) is not None:
        dispatcher.receive(*received, now_s)
        now_s = time.monotonic()
        if now_s >= give_up_s:
            return False
    return True
