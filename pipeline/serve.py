"""The dispatcher's process: one ROUTER socket, one loop.

In:  frames of trainers, workers and pools; the clock.
Out: `Dispatcher.receive` and `tick`, and what they send.
Never reads a message: `pipeline/dispatcher.py` does.
"""

from __future__ import annotations

import time

from pipeline.dispatcher import Dispatcher
from pipeline.leases import Leases
from pipeline.transport import Context, Poller
from pipeline.wire import encode_message

TICK_S = 0.25


def serve(endpoint: str, *, lifeline_fd: int | None = None) -> None:
    """Dispatch until the lifeline's other end is closed, or for ever without one."""
    context = Context()
    try:
        router = context.router(endpoint)
        dispatcher = Dispatcher(lambda identity, message: router.send(identity, encode_message(message)), Leases())
        poller = Poller()
        poller.add(router)
        if lifeline_fd is not None:
            poller.add(lifeline_fd)
        next_tick_s = time.monotonic() + TICK_S
        while True:
            ready = poller.wait(next_tick_s - time.monotonic())
            if lifeline_fd in ready:
                return
            while (received := router.receive()) is not None:
                dispatcher.receive(*received, time.monotonic())
            if time.monotonic() >= next_tick_s:
                dispatcher.tick(time.monotonic())
                next_tick_s = time.monotonic() + TICK_S
    finally:
        context.close()
