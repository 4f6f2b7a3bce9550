"""Standing services, as a job sees them: a dispatcher and pools that somebody else started and others use too.

In:  the dispatcher's address.
Out: what `headrace.services.Services` gives, of which only the directory is the job's own, for its data sockets.
Nothing is started or ended here. While the dispatcher is away, the user is told, and the job waits.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable

from headrace.services import forked_stream
from pipeline.contact import Contact
from pipeline.forking import hold_no_more, let_go_in_children
from pipeline.runtime_dir import RuntimeDir
from pipeline.service_messages import AskStatus
from pipeline.transport import Context, Dealer, Poller, Waker, check_endpoint
from pipeline.wire import encode_message

LOOK_S = 0.5
END_TIMEOUT_S = 3.0


class StandingServices:
    """A dispatcher that is there, or will be."""

    def __init__(self, connect: str, on_trouble: Callable[[str], None]) -> None:
        """`on_trouble`: told, in a thread of ours, that the dispatcher is waited for, and when it answers again."""
        check_endpoint(connect)
        self.dispatcher = connect
        self.directory = RuntimeDir.create()
        self._on_trouble = on_trouble
        self._owner_pid = os.getpid()
        self._ending = False
        self._waker = Waker()
        self._watcher = threading.Thread(target=self._watch, name="services", daemon=True)
        let_go_in_children(self)
        self._watcher.start()

    def check(self) -> None:
        """Never raises for a dispatcher that is away; RunFailed in a process that was forked from the stream's."""
        if os.getpid() != self._owner_pid:
            raise forked_stream()

    def end(self) -> None:
        """Let go of the services, which go on; harmless when done twice."""
        if os.getpid() != self._owner_pid or self._ending:
            return
        self._ending = True
        hold_no_more(self)
        self._waker.wake()
        self._watcher.join(timeout=END_TIMEOUT_S)
        self._waker.close()
        self.directory.remove()

    def let_go_in_child(self) -> None:
        """Close what a forked child must not hold: it would keep the directory alive after this process's death."""
        self.directory.release()

    def _watch(self) -> None:
        context = Context()
        try:
            dealer = context.dealer(self.dispatcher, f"watcher-{uuid.uuid4().hex[:8]}")  # closed with its context
            self._listen(dealer)
        finally:
            context.close()

    def _listen(self, dealer: Dealer) -> None:
        contact = Contact(self.dispatcher)
        poller = Poller()
        poller.add(dealer)
        poller.add(self._waker.read_fd)
        while not self._ending:
            now_s = time.monotonic()
            while dealer.receive() is not None:
                self._tell(contact.heard(now_s))
            self._tell(contact.look(now_s))
            if contact.should_ask(now_s):
                dealer.send(encode_message(AskStatus(operation="watch")))
            poller.wait(LOOK_S)
            self._waker.clear()

    def _tell(self, text: str) -> None:
        if text:
            self._on_trouble(text)
