"""A worker: asks for leases, makes slices, sends them to their trainers. Owns nothing.

In:  control messages from the dispatcher.
Out: slices to trainers; failures and probe answers to the dispatcher.
Two threads: the main one makes and sends slices, the other (`workers/control.py`) talks with the dispatcher. Never
imports torch.
"""

from __future__ import annotations

import faulthandler
import gc
import signal
import sys
import traceback

from pipeline.errors import EXIT_USER_INPUT, ConfigError, HeadraceError
from pipeline.messages import (
    CloseStream,
    Lease,
    OpenStream,
    Probe,
    ProbeAnswer,
    ProbeFailed,
    SliceFailed,
    StreamBroken,
)
from pipeline.recipe import BatchSpec
from pipeline.transport import Context, Push
from pipeline.wire import encode_slice
from workers.control import Control, Work
from workers.environment import die_with_parent, tune_malloc
from workers.fingerprint import fingerprint
from workers.produce import ReadFailed
from workers.progress import ProgressSlot
from workers.streams import OpenStreams
from workers.unserved import CannotServe
from workers.worker_config import REFUSAL, WorkerConfig


def run(config: WorkerConfig) -> None:
    """A worker process, until its pool ends it or asks it to leave."""
    die_with_parent()
    tune_malloc()
    # Ctrl-C reaches the whole terminal group; the pool decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trace = open(config.trace_path, "w")  # noqa: SIM115 (open as long as the process)
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR1, trace)
    progress = ProgressSlot(config.progress_path)
    try:
        streams = OpenStreams(config.sources, config.plugins, config.base, config.name, progress)
    except HeadraceError as error:
        trace.write(f"{REFUSAL}{error}")
        trace.flush()  # a forked process ends without
        sys.exit(EXIT_USER_INPUT)
    progress.end_slice(delivered=False)  # a first sign of life: what all workers need is here
    context = Context()
    control = Control(config, context, fingerprint())
    control.leave_on_sigterm()
    control.start()
    gc.freeze()  # what was imported lives as long as the process
    sockets: dict[str, Push] = {}
    while (item := control.inbox.get()) is not None:
        _handle(item, control, streams, context, sockets, progress)
    control.join()
    context.close()


def _handle(
    item: Work,
    control: Control,
    streams: OpenStreams,
    context: Context,
    sockets: dict[str, Push],
    progress: ProgressSlot,
) -> None:
    match item:
        case OpenStream():
            streams.open(item)
        case CloseStream():
            streams.close((item.stream, item.incarnation))
            for endpoint in set(sockets) - streams.endpoints():
                sockets.pop(endpoint).close()
        case Probe() if not streams.is_open((item.stream, item.incarnation), item.recipe):
            control.ask_stream(item.stream, item.incarnation)
        case Probe():
            answer = _guarded_probe(item, streams, control)
            progress.end_slice(delivered=False)
            if answer is not None:
                control.say(answer)
        case Lease():
            delivered = False
            data_endpoint = streams.endpoint(item)
            if data_endpoint is None:
                if control.holds(item):
                    control.ask_stream(item.stream, item.incarnation, item.number)
            elif control.holds(item):
                if data_endpoint not in sockets:
                    sockets[data_endpoint] = context.push(data_endpoint)
                delivered = _make_and_send(item, control, streams, sockets[data_endpoint])
            progress.end_slice(delivered=delivered)
            control.let_go(item)


def _make_and_send(lease: Lease, control: Control, streams: OpenStreams, push: Push) -> bool:
    try:
        header, arrays = streams.make(lease)
    except ConfigError as error:
        # The recipe was probed, so it can be built: what is wrong is this worker's own.
        control.decline(lease, error)
    except ReadFailed as error:
        control.say(
            SliceFailed(
                worker=control.worker,
                lease=lease.number,
                position=error.position,
                attempt=error.attempt,
                cause=str(error),
                bad_before=error.bad_before,
            )
        )
    except Exception as error:
        cause = str(error) if isinstance(error, HeadraceError) else "".join(traceback.format_exception(error))
        control.say(StreamBroken(stream=lease.stream, incarnation=lease.incarnation, cause=cause))
    else:
        return push.send(encode_slice(header, arrays))
    return False


def _guarded_probe(probe: Probe, streams: OpenStreams, control: Control) -> ProbeAnswer | ProbeFailed | None:
    try:
        outcome = streams.probe((probe.stream, probe.incarnation), probe.recipe, probe.skip)
    except CannotServe as error:
        control.decline(probe, error)
        return None
    except (OSError, MemoryError) as error:
        return ProbeFailed(
            worker=control.worker,
            stream=probe.stream,
            incarnation=probe.incarnation,
            recipe=probe.recipe,
            cause=str(error) or type(error).__name__,
        )
    except Exception as error:
        cause = str(error) if isinstance(error, HeadraceError) else "".join(traceback.format_exception(error))
        control.say(StreamBroken(stream=probe.stream, incarnation=probe.incarnation, cause=cause))
        return None
    return ProbeAnswer(
        worker=control.worker,
        stream=probe.stream,
        incarnation=probe.incarnation,
        recipe=probe.recipe,
        spec=outcome if isinstance(outcome, BatchSpec) else None,
        problems=() if isinstance(outcome, BatchSpec) else outcome,
    )
