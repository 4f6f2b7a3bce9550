"""Admission: which workers a dispatcher accepts, and which registrations and beats of a trainer.

In:  decoded messages, well typed but with any numbers.
Out: why a worker or a resumed run is refused; a registration's `Timeline`; RemoteProtocolError for numbers that would
     cost unbounded memory.
Pure. Never judges whether a stream makes sense, only whether it can be served.
"""

from __future__ import annotations

from pipeline.errors import RemoteProtocolError
from pipeline.message import PROTOCOL_VERSION
from pipeline.messages import Join, Register, StreamBeat
from pipeline.timeline import Timeline
from pipeline.wire import MAX_SLICE_SAMPLES

MAX_WINDOW_SAMPLES = 1 << 24
"""Samples in flight of one stream: 16 million; their bitmap (2 MiB) fits a message. A window of GPU batches is a few
thousand."""


def worker_refusal(message: Join, fingerprint: str | None) -> str:
    """Why the worker can't be admitted, "" if it can; `fingerprint`: what all workers here have, None if it is open."""
    if message.protocol_version != PROTOCOL_VERSION:
        return f"protocol version: the dispatcher speaks {PROTOCOL_VERSION}, the worker {message.protocol_version}"
    if fingerprint is not None and message.fingerprint != fingerprint:
        return (
            "its bytes would differ\n"
            f"  admitted here: {fingerprint}\n"
            f"  this worker:   {message.fingerprint}\n"
            "  to go on: start it with the same library versions, or end the streams that were begun with them"
        )
    return ""


def other_fingerprint(promised: str, binding: str | None) -> str:
    """Why a stream whose slices came from other workers can't go on with those here, "" if it can."""
    if not promised or binding is None or promised == binding:
        return ""
    return (
        "workers here would make other bytes than those that made this run so far\n"
        f"  the run:      {promised}\n"
        f"  workers here: {binding}\n"
        "  to go on: start workers with the run's library versions, or begin a new run"
    )


def accepted_timeline(message: Register) -> Timeline:
    """The registered stream's timeline, if its numbers can be served."""
    spec = message.spec
    try:
        timeline = Timeline(
            spec.timeline, num_samples=spec.num_samples, last_batch=spec.last_batch, end_position=spec.end_position
        )
    except ValueError as error:
        raise RemoteProtocolError(f"stream {message.stream}: {error}") from error
    if not 1 <= spec.slice_size <= MAX_SLICE_SAMPLES:
        raise RemoteProtocolError(
            f"stream {message.stream}: slice_size {spec.slice_size}, not in 1..{MAX_SLICE_SAMPLES}"
        )
    check_progress(message, timeline)
    return timeline


def check_progress(message: Register | StreamBeat, timeline: Timeline) -> None:
    """Head and window lie in the stream, and the window is of a size that can be kept."""
    first_step = timeline.entries[0].step
    if not first_step <= message.head_step <= max(first_step, timeline.num_steps):
        raise RemoteProtocolError(f"stream {message.stream}: head_step {message.head_step} is not in the stream")
    largest = max(entry.batch_size for entry in timeline.entries)
    if not 0 <= message.window * largest <= MAX_WINDOW_SAMPLES:
        raise RemoteProtocolError(
            f"stream {message.stream}: a window of {message.window} batches of {largest} samples, "
            f"at most {MAX_WINDOW_SAMPLES} samples may be in flight"
        )
