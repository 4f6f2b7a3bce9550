"""Wire: messages and slices as bytes, and back.

In:  records of `pipeline/messages.py`, arrays; or frames from a peer.
Out: frames; or records. Whatever a peer sends is parsed or refused with RemoteProtocolError, never trusted with an
     allocation. No sockets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.digests import SAMPLE_DIGEST_NBYTES
from pipeline.errors import LocalProtocolError, RemoteProtocolError
from pipeline.message import PROTOCOL_VERSION
from pipeline.messages import AnyMessage
from pipeline.recipe import FieldSpec
from pipeline.slice_header import SliceHeader

MAX_MESSAGE_NBYTES = 8 << 20
"""A control message or slice header; a chain of the permitted 500 nodes takes about 100 kB."""
MAX_SLICE_NBYTES = 1 << 30
MAX_SLICE_SAMPLES = 1 << 16
MAX_NDIM = 8
DTYPES = ("uint8", "uint16", "int64", "float32")
"""What a field may be on the wire; no objects, no structures."""

Record = TypeVar("Record")

_PREFIX = bytes([PROTOCOL_VERSION])
_encoder = msgspec.msgpack.Encoder()
_message_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_header_decoder = msgspec.msgpack.Decoder(SliceHeader)


def encode_message(message: AnyMessage) -> bytes:
    """One frame: a version byte, then msgpack."""
    return _PREFIX + _encoder.encode(message)


def decode_message(frame: bytes | memoryview) -> AnyMessage:
    """The record a peer sent; RemoteProtocolError for anything else."""
    return _decode(_message_decoder, frame)


def encode_slice(header: SliceHeader, arrays: Sequence[NDArray[np.generic]]) -> list[bytes | memoryview]:
    """Frames of a slice: header, then each field's memory without a copy."""
    for spec, array in zip(header.fields, arrays, strict=True):
        if array.shape != (header.stop - header.start, *spec.shape) or array.dtype.name != spec.dtype:
            raise LocalProtocolError(f"field {spec.name}: spec says {spec}, array is {array.dtype} {array.shape}")
        if not array.flags.c_contiguous:
            raise LocalProtocolError(f"field {spec.name} is not contiguous")
    return [_PREFIX + _encoder.encode(header), *(array.data.cast("B") for array in arrays)]


def decode_header(frame: bytes | memoryview) -> SliceHeader:
    """A slice's header, consistent in itself: counts, sizes and dtypes are within bounds."""
    header = _decode(_header_decoder, frame)
    num_samples = header.stop - header.start
    if header.start < 0 or not 1 <= num_samples <= MAX_SLICE_SAMPLES:
        raise RemoteProtocolError(f"slice {header.start}..{header.stop}: expected 1 to {MAX_SLICE_SAMPLES} positions")
    if len(header.sample_ids) != num_samples or len(header.digests) != num_samples * SAMPLE_DIGEST_NBYTES:
        raise RemoteProtocolError(f"slice of {num_samples} samples with {len(header.sample_ids)} ids")
    if not all(0 <= sample_id < 2**63 for sample_id in header.sample_ids):
        raise RemoteProtocolError("a sample id is outside 0 .. 2**63 - 1")
    if sum(field_nbytes(field, num_samples) for field in header.fields) > MAX_SLICE_NBYTES:
        raise RemoteProtocolError(f"slice larger than {MAX_SLICE_NBYTES} bytes")
    return header


def field_nbytes(field: FieldSpec, num_samples: int) -> int:
    """Bytes of one field's frame; RemoteProtocolError if the spec is not one we would send."""
    if field.dtype not in DTYPES or len(field.shape) > MAX_NDIM or any(not 1 <= size < 2**31 for size in field.shape):
        raise RemoteProtocolError(f"field {field.name!r}: {field.dtype!r} of shape {field.shape} is not allowed")
    return num_samples * math.prod(field.shape) * np.dtype(field.dtype).itemsize


def _decode(decoder: msgspec.msgpack.Decoder[Record], frame: bytes | memoryview) -> Record:
    if len(frame) > MAX_MESSAGE_NBYTES:
        raise RemoteProtocolError(f"message of {len(frame)} bytes, at most {MAX_MESSAGE_NBYTES} are allowed")
    if bytes(frame[:1]) != _PREFIX:
        raise RemoteProtocolError(f"protocol version: expected {PROTOCOL_VERSION}, got {bytes(frame[:1])!r}")
    try:
        return decoder.decode(memoryview(frame)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as error:
        raise RemoteProtocolError(f"not a message of this protocol: {error}") from error
