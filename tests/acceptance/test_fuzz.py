"""Rubbish on the sockets of a running job: its batches don't change."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from headrace.embedded import open_streams
from pipeline.config import load_job
from pipeline.digests import sample_digest
from pipeline.errors import EXIT_STOPPED_RESUMABLE
from pipeline.message import PROTOCOL_VERSION
from pipeline.messages import Lease, StreamBeat, WorkerBeat, WorkerDied
from pipeline.recipe import FieldSpec
from pipeline.run_lock import LiveRun, live_run
from pipeline.service_messages import AskScale, AskSwap, PoolBeat
from pipeline.slice_header import SliceHeader
from pipeline.wire import encode_message, encode_slice
from tests.acceptance.test_kills import slow_job
from tests.home import Home
from tests.processes import Headrace, lines_of, run_headrace
from trainer.inline import InlineReceiver
from trainer.placing import MAX_WRONG_DIGESTS

OVERSIZED_NBYTES = 64 << 20
SLEEP_S = 0.01
"""A slow run: what is awaited when it is looked at is still awaited when rubbish in its place arrives."""
SEND_TIMEOUT_MS = 60_000
"""Guards against a hang only."""
NUM_DAMAGED = MAX_WRONG_DIGESTS // 2
"""Slices with wrong bytes where right ones are awaited: many more would end the run, as they should."""

Make = Callable[[int, int, str], tuple[SliceHeader, Sequence[np.ndarray]]]
"""Positions start..stop-1 under a recipe, as any worker of the job makes them."""


def control_frames(coin: random.Random, run: LiveRun) -> list[bytes]:
    """Random bytes; true messages cut short or with a bit flipped; old messages; messages of other streams."""
    old = [
        StreamBeat(stream=run.stream, incarnation=1, number=10**6, head_step=3, arrived=b"\xff" * 99, window=99),
        StreamBeat(stream="other/train", incarnation=5, number=1, head_step=0, arrived=b"", window=1),
        WorkerBeat(worker="worker-none", number=1, received=5, holding=(3,)),
        WorkerDied(worker="worker-none", cause="a rumour", by_itself=True, position=3),
        AskSwap(operation="x", stream="other/train"),
        AskScale(operation="y", pool="pool-none", num_workers=5),
        PoolBeat(
            pool="pool-none",
            host="h",
            pid=1,
            started_ns=1,
            number=1,
            size=1,
            min_workers=1,
            max_workers=1,
            automatic=False,
            num_restarts=0,
            workers=(),
        ),
    ]
    frames = [encode_message(message) for message in old]
    frames += [coin.randbytes(coin.randrange(200)) for _ in range(20)]
    frames += [bytes([PROTOCOL_VERSION]) + coin.randbytes(coin.randrange(200)) for _ in range(20)]
    frames += [frame[: coin.randrange(len(frame))] for frame in frames[: len(old)]]
    frames += [flipped(coin, frame) for frame in frames[: len(old)] for _ in range(5)]
    return frames


def flipped(coin: random.Random, frame: bytes) -> bytes:
    at = coin.randrange(len(frame))
    return frame[:at] + bytes([frame[at] ^ 1 << coin.randrange(8)]) + frame[at + 1 :]


def slices(coin: random.Random, run: LiveRun, incarnation: int, recipe: str, start: int) -> list[list[bytes]]:
    """Slices that look right and are of an earlier incarnation, another stream, another recipe, or damaged."""
    images_NHWC = np.frombuffer(coin.randbytes(5 * 24 * 20 * 3), np.uint8).reshape(5, 24, 20, 3)
    lease = Lease(number=1, stream=run.stream, incarnation=incarnation, start=start, stop=start + 5, recipe=recipe)
    header = SliceHeader(
        stream=lease.stream,
        incarnation=lease.incarnation,
        worker="worker-none",
        start=lease.start,
        stop=lease.stop,
        recipe=lease.recipe,
        fields=(
            FieldSpec(name="image", dtype="uint8", shape=(24, 20, 3)),
            FieldSpec(name="label", dtype="int64", shape=()),
        ),
        sample_ids=tuple(range(5)),
        digests=b"".join(map(sample_digest, images_NHWC, range(5))),
    )
    wrong = [
        msgspec.structs.replace(header, incarnation=incarnation - 1),
        msgspec.structs.replace(header, stream="other/train"),
        msgspec.structs.replace(header, recipe="0" * 16),
        msgspec.structs.replace(header, start=10**12, stop=10**12 + 5),
        msgspec.structs.replace(header, quarantined={start: 1}),
    ]
    made = [[bytes(frame) for frame in encode_slice(each, [images_NHWC, np.arange(5)])] for each in wrong]
    made += [[frames[0]] for frames in made]  # without its fields
    made += [[frames[0], frames[1][:-7], frames[2]] for frames in made[:5]]
    made += [[frames[0], *frames[1:], b"one more"] for frames in made[:5]]
    made += [[coin.randbytes(coin.randrange(300)) for _ in range(coin.randrange(1, 5))] for _ in range(10)]
    return made


def nearly_right_slices(run: LiveRun, incarnation: int, make: Make, recipe: str, position: int) -> list[list[bytes]]:
    """Slices of this very incarnation, where the window is now or was, spoilt behind their right headers."""
    spoilt = []
    for start in range(position + 20, position + 100, 5):
        frames = sent(run, incarnation, make(start, start + 5, recipe))
        header, images, labels = frames
        spoilt += [
            [header],
            [header, images],
            [header, images[:-7], labels],
            [header, images, labels[:-1]],
            [header, images + b"x", labels],
            [header, labels, images],
        ]
    past = sent(run, incarnation, make(position - 20, position - 15, recipe)) if position >= 20 else []
    return [*spoilt, *([past] if past else [])]


def damaged_slice(run: LiveRun, incarnation: int, make: Make, recipe: str, start: int) -> list[bytes]:
    """What a broken machine sends: awaited, whole, and one bit of one image is wrong."""
    header, images, labels = sent(run, incarnation, make(start, start + 5, recipe))
    return [header, images[:-1] + bytes([images[-1] ^ 1]), labels]


def sent(run: LiveRun, incarnation: int, made: tuple[SliceHeader, Sequence[np.ndarray]]) -> list[bytes]:
    header, fields = made
    header = msgspec.structs.replace(header, stream=run.stream, incarnation=incarnation, worker="worker-none")
    return [bytes(frame) for frame in encode_slice(header, fields)]


def data_endpoint(run: LiveRun) -> tuple[str, int]:
    """The train stream's data socket, which carries its incarnation in its name."""
    (path,) = Path(run.endpoint.removeprefix("ipc://")).parent.glob("train-*")
    return f"ipc://{path}", int(path.name.rpartition("-")[2], 16)


def unreached(run_dir: Path) -> list[str]:
    """What the run has not yet noticed of what it should."""
    told = " ".join(line.get("note", "") for line in lines_of(run_dir / "journal.jsonl"))
    wanted = ("slices were dropped: wrong_size", "arrived with other bytes than it was sent with")
    return [text for text in wanted if text not in told]


def fuzz(run_dir: Path, seconds: float, seed: int, make: Make) -> int:
    """Send rubbish to both sockets, until it has reached what it is meant for; how many frames."""
    coin = random.Random(seed)
    run = live_run(run_dir)
    endpoint, incarnation = data_endpoint(run)
    context = zmq.Context()
    num_sent = num_damaged = 0
    try:
        push = context.socket(zmq.PUSH)
        push.setsockopt(zmq.SNDTIMEO, SEND_TIMEOUT_MS)
        push.connect(endpoint)
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s or (unreached(run_dir) and time.monotonic() < until_s + 60):
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.LINGER, 100)
            if coin.random() < 0.5:
                dealer.setsockopt(zmq.IDENTITY, b"worker-" + coin.randbytes(4).hex().encode())
            dealer.connect(run.endpoint)
            for frame in control_frames(coin, run):
                dealer.send(frame)
                num_sent += 1
            dealer.send_multipart([b"a", b"b", b"c"])
            newest = lines_of(run_dir / "metrics.jsonl")[-1]
            recipe, position = newest["recipe"], newest["position"]
            if num_damaged < NUM_DAMAGED:  # at once: it must be there before the right one
                num_damaged += 1
                push.send_multipart(damaged_slice(run, incarnation, make, recipe, position + 5 * coin.randrange(8, 20)))
            rubbish = slices(coin, run, incarnation, recipe, position + 40)
            rubbish += nearly_right_slices(run, incarnation, make, recipe, position)
            for frames in rubbish:
                push.send_multipart(frames)  # zmq.Again: nobody takes it any more
                num_sent += len(frames)
            dealer.close()
            time.sleep(0.05)
        for socket in (context.socket(zmq.DEALER), context.socket(zmq.PUSH)):
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(run.endpoint if socket.type == zmq.DEALER else endpoint)
            socket.send(bytes(OVERSIZED_NBYTES))
            time.sleep(0.5)
            socket.close()
        push.close(linger=0)
    finally:
        context.destroy(linger=0)
    return num_sent


def steps_of(run_dir: Path) -> list[tuple[str, float]]:
    """Digest and loss of each step; a loss tells of all weights before it."""
    return [(line["digest"], line["loss"]) for line in lines_of(run_dir / "metrics.jsonl")]


def check_fuzz_changes_nothing(folder: Path, arrays: Path, home: Home, seconds: float) -> None:
    """The run has no end of its own: however slow the machine, rubbish comes while it trains, and steps come after."""
    job = slow_job(folder, arrays, num_epochs=100_000)
    environment = {**home.environment, "TEST_SLEEP_S": str(SLEEP_S)}
    run_dir = folder / "fuzzed"
    with Headrace("train", job, "--workers", "2", "--run-dir", run_dir, folder=folder, environment=environment) as run:
        run.wait_until(lambda: bool(lines_of(run_dir / "metrics.jsonl")), "the first step")
        with open_streams(load_job(job), 0) as streams:
            receiver = streams.train._receiver
            assert isinstance(receiver, InlineReceiver)
            num_sent = fuzz(run_dir, seconds, seed=1, make=receiver._made)
        num_steps = len(steps_of(run_dir))
        run.wait_until(lambda: len(steps_of(run_dir)) >= num_steps + 20, "steps after the rubbish")
        run.process.send_signal(signal.SIGTERM)
        ended = run.finish()
    assert ended.code == EXIT_STOPPED_RESUMABLE, ended.err
    home.assert_empty_soon()
    print(f"{num_sent} frames of rubbish")
    assert unreached(run_dir) == []
    num_epochs = 1 + lines_of(run_dir / "metrics.jsonl")[-1]["epoch"]
    command = ("train", job, "--workers", "1", "--run-dir", folder / "calm", "--set", f"train.epochs={num_epochs}")
    calm = run_headrace(*command, folder=folder, environment=home.environment)
    assert calm.code == 0, calm.err
    fuzzed = steps_of(run_dir)
    assert fuzzed == steps_of(folder / "calm")[: len(fuzzed)]


def test_rubbish_on_the_sockets_changes_no_batch_and_leaves_nothing(tmp_path, arrays, empty_home):
    """Law 8's other half: what a peer sends is parsed or refused."""
    check_fuzz_changes_nothing(tmp_path, arrays, empty_home, seconds=3)


@pytest.mark.long
def test_much_rubbish_on_the_sockets_changes_no_batch_and_leaves_nothing(tmp_path, arrays, empty_home):
    """The same for longer."""
    check_fuzz_changes_nothing(tmp_path, arrays, empty_home, seconds=30)
