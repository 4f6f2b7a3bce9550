"""Transport: the one home of ZeroMQ.

In:  endpoints, frames.
Out: sockets that move frames, a poller, a way to wake it from another thread.
LINGER is 0 but for a last message (`Dealer.close_when_sent`): whoever must not lose frames waits for their arrival
before closing. Each socket belongs to one
thread. Never fork after a `Context` was made.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket as plain_socket
import threading
from collections.abc import Iterable
from typing import Any

import zmq

from pipeline.errors import ConfigError, Problem
from pipeline.wire import MAX_MESSAGE_NBYTES, MAX_SLICE_NBYTES

Frame = bytes | memoryview

RECONNECT_MS = 20
"""A dispatcher that is just starting is found within this time."""
DATA_RECONNECT_MAX_MS = 1000
"""A trainer listens before its stream is known; one that is gone is looked for ever less often."""
MAX_IPC_PATH_NBYTES = 107
"""sun_path holds 108 bytes with its terminating zero."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
DATA_HWM = 1000
"""Messages a PUSH or PULL socket may queue: a last resort, since the window bounds what is under way."""
CONTROL_HWM = 10_000
REPEATED_HWM = 64
"""Of a peer that says all again in its next message (a trainer): what it said to a dispatcher that is away for hours
must neither fill its memory, nor reach the next dispatcher all at once. Chosen: room for a
beat and dozens of probes."""


class Context:
    """All sockets of one thread of activity; closing it closes them."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def router(self, endpoint: str) -> Router:
        """The dispatcher's control socket, bound."""
        socket = self._socket(zmq.ROUTER, hwm=CONTROL_HWM, max_nbytes=MAX_MESSAGE_NBYTES)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a peer that reconnects takes its name over
        _bind(socket, endpoint)
        return Router(socket)

    def dealer(self, endpoint: str, identity: str, *, max_unsent: int = CONTROL_HWM) -> Dealer:
        """A control socket of a worker, pool, trainer or operator, connecting (the peer may come later)."""
        socket = self._socket(zmq.DEALER, hwm=CONTROL_HWM, max_nbytes=MAX_MESSAGE_NBYTES)
        socket.setsockopt(zmq.SNDHWM, max_unsent)
        socket.setsockopt(zmq.IDENTITY, identity.encode())
        _connect(socket, endpoint)
        return Dealer(socket)

    def push(self, endpoint: str) -> Push:
        """A worker's data socket to one trainer, connecting."""
        socket = self._socket(zmq.PUSH, hwm=DATA_HWM, max_nbytes=MAX_SLICE_NBYTES)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, DATA_RECONNECT_MAX_MS)
        _connect(socket, endpoint)
        return Push(socket)

    def pull(self, endpoint: str) -> Pull:
        """A trainer's data socket, bound."""
        socket = self._socket(zmq.PULL, hwm=DATA_HWM, max_nbytes=MAX_SLICE_NBYTES)
        _bind(socket, endpoint)
        return Pull(socket)

    def close(self) -> None:
        """Close every socket; frames not yet sent are lost."""
        self._context.destroy(linger=0)

    def _socket(self, kind: int, *, hwm: int, max_nbytes: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, hwm)
        socket.setsockopt(zmq.RCVHWM, hwm)
        socket.setsockopt(zmq.MAXMSGSIZE, max_nbytes)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        return socket


class _Socket:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.raw = socket

    def close(self) -> None:
        self.raw.close(linger=0)


class Router(_Socket):
    """Talks to many peers, each known by its identity."""

    def send(self, identity: bytes, frame: bytes) -> None:
        """Send to one peer; a peer that is gone or full gets nothing (messages are cumulative)."""
        with contextlib.suppress(zmq.Again):
            self.raw.send_multipart((identity, frame), zmq.NOBLOCK)

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next (identity, frame), or None if nothing waits; messages of another form are passed over."""
        while True:
            try:
                frames = self.raw.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if len(frames) == 2:
                return frames[0], frames[1]


class Dealer(_Socket):
    """Talks to the dispatcher."""

    def send(self, frame: bytes) -> None:
        """Queue a frame; dropped when the peer has been gone so long that the queue is full."""
        with contextlib.suppress(zmq.Again):
            self.raw.send(frame, zmq.NOBLOCK)

    def receive(self) -> bytes | None:
        """The next frame, or None if nothing waits."""
        try:
            frames = self.raw.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return frames[0]

    def close_when_sent(self, wait_s: float) -> None:
        """Close; the context's end then waits until what was queued has been sent, but no longer than this."""
        self.raw.close(linger=math.ceil(wait_s * 1000))


class Push(_Socket):
    """Sends slices to one trainer."""

    def send(self, frames: Iterable[Frame]) -> bool:
        """Queue a slice without copying its large frames; False if the queue is full (the slice is dropped)."""
        try:
            self.raw.send_multipart(list(frames), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True


class Pull(_Socket):
    """Receives slices, frame by frame, into memory that the caller chose."""

    def receive_header(self) -> bytes | None:
        """The first frame of the next slice, or None if nothing waits."""
        try:
            return self.raw.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def has_more(self) -> bool:
        """True if the slice has further frames."""
        return bool(self.raw.getsockopt(zmq.RCVMORE))

    def receive_into(self, buffer: memoryview) -> int:
        """Copy the next frame into `buffer`; its true length is returned, even where it was cut."""
        return self.raw.recv_into(buffer)

    def skip_rest(self) -> None:
        """Drop the remaining frames of the slice."""
        while self.has_more():
            self.raw.recv(copy=False)


def remove_socket_file(endpoint: str) -> None:
    """Delete what a closed ipc socket left in the file system; harmless for other endpoints."""
    if endpoint.startswith("ipc://"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint.removeprefix("ipc://"))


class Waker:
    """Wakes a poller from another thread."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def wake(self) -> None:
        """Make the poller return; harmless after `close`."""
        # Under the lock: a descriptor that was closed may be another file's by now.
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._write_fd, b"\0")

    def clear(self) -> bytes:
        """Forget the wakes so far; the numbers of the signals among them, and a zero for each other."""
        try:
            return os.read(self.read_fd, 4096)
        except BlockingIOError:
            return b""

    def wake_on_signals(self) -> None:
        """Every signal that has a Python handler wakes it, at once, even while the main thread is in foreign code."""
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)

    def close(self) -> None:
        """Release both ends; harmless when done twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.read_fd)
                os.close(self._write_fd)


class Poller:
    """Waits until a socket or file descriptor can be read."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def add(self, source: _Socket | int) -> None:
        """Watch a socket or file descriptor for input."""
        self._poller.register(_raw(source), zmq.POLLIN)

    def remove(self, source: _Socket | int) -> None:
        """Watch it no more."""
        self._poller.unregister(_raw(source))

    def wait(self, timeout_s: float) -> set[Any]:
        """The file descriptors and raw sockets that can be read; empty after timeout_s."""
        return {source for source, _ in self._poller.poll(max(0, math.ceil(timeout_s * 1000)))}


def _raw(source: _Socket | int) -> Any:
    return source if isinstance(source, int) else source.raw


def check_endpoint(endpoint: str) -> None:
    """ConfigError for an address that nobody may or can use: TCP beyond this machine, a path too long for a socket."""
    scheme, separator, rest = endpoint.partition("://")
    host = rest.rpartition(":")[0]
    if not separator or scheme not in ("ipc", "tcp", "inproc") or not rest:
        raise _refused(endpoint, "ipc://PATH or tcp://127.0.0.1:PORT", repr(endpoint), "")
    if scheme == "tcp" and host not in LOOPBACK:
        # Law 8: closed by default. Keys (CURVE) are to come; until then nobody listens to a network.
        way_out = "use an ipc:// path, or tcp://127.0.0.1:PORT with a tunnel of yours between the machines"
        raise _refused(endpoint, f"TCP on this machine only ({', '.join(LOOPBACK)})", host or "no port", way_out)
    if scheme == "ipc" and rest[0] in "@*":
        # An abstract socket has no owner and no permissions: everyone on the machine could connect.
        raise _refused(endpoint, "the path of a socket file", repr(rest), "")
    if scheme == "ipc" and (nbytes := len(os.fsencode(rest))) > MAX_IPC_PATH_NBYTES:
        way_out = "choose a shorter path, such as one in $XDG_RUNTIME_DIR"
        raise _refused(endpoint, f"a path of at most {MAX_IPC_PATH_NBYTES} bytes", f"{nbytes} bytes", way_out)


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    check_endpoint(endpoint)
    path = endpoint.removeprefix("ipc://") if endpoint.startswith("ipc://") else ""
    if path and _is_listened_to(path):
        # ZeroMQ would take the path over, and the service there would be deaf from then on, without a word.
        way_out = "use that service, stop it, or choose another address"
        raise _refused(endpoint, "an address that is free", "another service listens there", way_out)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise _bad_endpoint(endpoint, error) from error


def _is_listened_to(path: str) -> bool:
    with plain_socket.socket(plain_socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its queue is full: it is stopped, but it is there
        except OSError:
            return False  # no such file, or what a dead service left
    return True


def _connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    check_endpoint(endpoint)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise _bad_endpoint(endpoint, error) from error


def _bad_endpoint(endpoint: str, error: zmq.ZMQError) -> ConfigError:
    expected = "an address that can be used here, such as ipc:///run/user/1000/headrace.sock"
    return _refused(endpoint, expected, str(error), "is another service using it? choose another address")


def _refused(endpoint: str, expected: str, got: str, way_out: str) -> ConfigError:
    return ConfigError(Problem(file="endpoint", line=0, path=endpoint, expected=expected, got=got, way_out=way_out))
