"""A trainer's sockets: what they hold while nobody is at the other end."""

from __future__ import annotations

from pathlib import Path

from pipeline.transport import REPEATED_HWM, Context, Poller
from tests.unit.test_conversation import Talk
from trainer.buffers import BufferPool
from trainer.notes import Notes
from trainer.receiver import Receiver
from trainer.stall import StallPolicy


def test_what_a_trainer_says_while_the_dispatcher_is_away_does_not_pile_up(tmp_path: Path) -> None:
    """Two registrations a second, for hours: each holds all that the ones before it said."""
    talk, endpoint = Talk(), f"ipc://{tmp_path}/d"
    receiver = Receiver(
        stream="run/train", incarnation=7, spec=talk.conversation._spec, course=talk.course, head_step=0,
        dispatcher=endpoint, policy=talk.policy, pool=BufferPool(max_free=1),
        notes=Notes(lambda action, **fields: None), stall=StallPolicy(1.0, "wait", "photos", "ipc:///d"),
    )  # fmt: skip
    context, poller = Context(), Poller()
    try:
        for _ in range(10 * REPEATED_HWM):
            receiver._conversation.speak()
            receiver._send()
        router = context.router(endpoint)
        poller.add(router)
        num_heard = 0
        while poller.wait(5.0 if not num_heard else 0.2):
            while router.receive() is not None:
                num_heard += 1
        assert num_heard == REPEATED_HWM
    finally:
        receiver._context.close()
        receiver._waker.close()
        context.close()
