"""What a trainer's message means to the leases of its stream.

In:  registrations and beats, found sound (`pipeline/admission.py`).
Out: events for `pipeline/leases.py`.
Pure.
"""

from __future__ import annotations

from pipeline.lease_events import StreamBeaten, StreamRegistered
from pipeline.messages import Register, StreamBeat
from pipeline.timeline import Timeline


def registration(message: Register, timeline: Timeline) -> StreamRegistered:
    """The stream's whole truth; `timeline`: the registration's."""
    return StreamRegistered(
        stream=(message.stream, message.incarnation),
        source=message.spec.source,
        timeline=timeline,
        slice_size=message.spec.slice_size,
        head_step=message.head_step,
        arrived=int.from_bytes(message.arrived, "little"),
        window=message.window,
        quarantined=message.quarantined,
        revision=message.revision,
    )


def progress(message: StreamBeat) -> StreamBeaten:
    """What has arrived since."""
    return StreamBeaten(
        stream=(message.stream, message.incarnation),
        number=message.number,
        head_step=message.head_step,
        arrived=int.from_bytes(message.arrived, "little"),
        window=message.window,
        quarantined=message.quarantined,
        revision=message.revision,
    )
