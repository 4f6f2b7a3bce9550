"""Wire: what we send comes back equal; what others send is parsed or refused."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
import typing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import messages, wire
from pipeline.digests import SAMPLE_DIGEST_NBYTES
from pipeline.errors import LocalProtocolError, RemoteProtocolError
from pipeline.messages import AnyMessage, StreamBeat
from pipeline.recipe import ChainNode, FieldSpec
from pipeline.slice_header import SliceHeader
from pipeline.wire import DTYPES, decode_header, decode_message, encode_message, encode_slice
from tests.sizes import cases

GOLDEN = Path(__file__).parents[1] / "golden" / "wire.json"
MESSAGE_TYPES = typing.get_args(AnyMessage)
WHOLE = st.integers(-(2**63), 2**63 - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
"""What YAML can hold, and so a transform's arguments."""


def of_type(kind: object) -> st.SearchStrategy[object]:
    """Any value of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
    if origin is dict and arguments[1] is typing.Any:
        return st.dictionaries(st.text(max_size=4), PLAIN, max_size=2)
    if origin is dict:
        return st.dictionaries(of_type(arguments[0]), of_type(arguments[1]), max_size=2)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is not None:  # a union with None
        return st.one_of(*map(of_type, arguments))
    if kind is ChainNode:  # refers to itself
        leaf = {"children": st.just(()), "params": of_type(dict[str, typing.Any])}
        return st.builds(ChainNode, name=st.text(), **leaf, line=WHOLE) | st.builds(
            ChainNode,
            name=st.text(),
            children=st.lists(st.builds(ChainNode, name=st.text(), **leaf), max_size=2).map(tuple),
        )
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return any_of(kind)
    simple = {int: WHOLE, float: st.floats(allow_nan=False), str: st.text(max_size=12), bytes: st.binary(max_size=40)}
    simple |= {bool: st.booleans(), type(None): st.none()}
    return simple[typing.cast(type, kind)]


def any_of(struct: type[msgspec.Struct]) -> st.SearchStrategy[typing.Any]:
    """Any record of a type, built from the types of its fields."""
    return st.builds(struct, **{name: of_type(kind) for name, kind in typing.get_type_hints(struct).items()})


ANY_MESSAGE = st.one_of(*(any_of(kind) for kind in MESSAGE_TYPES))


@st.composite
def slices(draw: st.DrawFn) -> tuple[SliceHeader, list[np.ndarray]]:
    """A header and the arrays it describes, of every permitted dtype."""
    num_samples = draw(st.integers(1, 5))
    shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
    fields = draw(
        st.lists(st.builds(FieldSpec, name=st.text(), dtype=st.sampled_from(DTYPES), shape=shapes), max_size=3)
    )
    start = draw(st.integers(0, 2**62))
    header = msgspec.structs.replace(
        draw(any_of(SliceHeader)),
        start=start,
        stop=start + num_samples,
        fields=tuple(fields),
        sample_ids=tuple(draw(st.lists(st.integers(0, 2**63 - 1), min_size=num_samples, max_size=num_samples))),
        digests=draw(st.binary(min_size=16 * num_samples, max_size=16 * num_samples)),
    )
    coin = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = [coin.integers(0, 200, (num_samples, *field.shape)).astype(field.dtype) for field in fields]
    return header, arrays


ANY_RECORD = ANY_MESSAGE | slices().map(lambda made: made[0])


def make_header(**changes: typing.Any) -> SliceHeader:
    fields = (FieldSpec(name="image", dtype="uint8", shape=(2, 2, 3)), FieldSpec(name="label", dtype="int64", shape=()))
    header = SliceHeader(
        stream="r/train", incarnation=7, worker="w", start=32, stop=34, recipe="00ff", fields=fields, sample_ids=(5, 9),
        digests=bytes(range(32)), read_s=0.5, make_s=0.25,
    )  # fmt: skip
    return msgspec.structs.replace(header, **changes)


def header_frame(header: SliceHeader) -> bytes:
    return bytes([messages.PROTOCOL_VERSION]) + msgspec.msgpack.encode(header)


def parse_or_refuse(frame: bytes) -> None:
    """Both readers of frames; any other exception fails the test."""
    for decode in (decode_message, decode_header):
        with contextlib.suppress(RemoteProtocolError):
            decode(frame)


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_equal(kind: type[msgspec.Struct]) -> None:
    """Every type, and so every type of field; a new message is covered as soon as it is in the union."""

    @settings(max_examples=cases(20))
    @given(message=any_of(kind))
    def comes_back(message: typing.Any) -> None:
        assert decode_message(encode_message(message)) == message

    comes_back()


@settings(max_examples=cases(100))
@given(made=slices())
def test_every_slice_comes_back_equal(made: tuple[SliceHeader, list[np.ndarray]]) -> None:
    """Header and the bytes of each field, for every dtype and scalar fields too."""
    header, arrays = made

    first, *frames = encode_slice(header, arrays)

    assert decode_header(first) == header
    assert [bytes(frame) for frame in frames] == [array.tobytes() for array in arrays]


@settings(max_examples=2_500)
@given(garbage=st.binary(max_size=200))
def test_random_bytes_are_parsed_or_refused(garbage: bytes) -> None:
    """5,000 cases, with and without our version byte before them."""
    parse_or_refuse(garbage)
    parse_or_refuse(bytes([messages.PROTOCOL_VERSION]) + garbage)


@settings(max_examples=300)
@given(message=ANY_RECORD, seed=st.integers(0, 2**32))
def test_damaged_frames_are_parsed_or_refused(message: AnyMessage | SliceHeader, seed: int) -> None:
    """6,000 cases: truncated, with bytes replaced, repeated or cut out, as a broken link or peer may do."""
    coin = random.Random(seed)
    whole = header_frame(message) if isinstance(message, SliceHeader) else encode_message(message)
    for _ in range(20):
        parse_or_refuse(damaged(whole, coin))


def damaged(whole: bytes, coin: random.Random) -> bytes:
    frame = bytearray(whole)
    for _ in range(coin.randint(1, 4)):
        place = coin.randrange(1, max(2, len(frame)))
        match coin.randrange(4):
            case 0:
                del frame[place:]
            case 1:
                frame[place : place + 1] = bytes([coin.randrange(256)])
            case 2:
                frame[place:place] = frame[place : place + coin.randint(1, 16)]
            case 3:
                del frame[place : place + coin.randint(1, 8)]
    return bytes(frame)


@settings(max_examples=cases(200))
@given(message=ANY_RECORD, others=st.lists(PLAIN | st.binary(max_size=8), min_size=4, max_size=4))
def test_values_of_another_type_are_parsed_or_refused(message: AnyMessage | SliceHeader, others: list[object]) -> None:
    """Thousands of cases: well-formed msgpack with a field swapped for anything, missing, or new."""
    plain = msgspec.to_builtins(message, builtin_types=(bytes,))
    changed = [{**plain, name: other} for name in plain for other in others]
    changed += [{kept: plain[kept] for kept in plain if kept != name} for name in plain]
    changed += [{**plain, "new": other} for other in others]
    for variant in changed:
        parse_or_refuse(bytes([messages.PROTOCOL_VERSION]) + msgspec.msgpack.encode(variant))


@pytest.mark.parametrize(
    "claim",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"],
    ids=["array", "map", "string", "bytes"],
)
def test_a_huge_declared_length_allocates_nothing(claim: bytes) -> None:
    """Five bytes that announce four billion items; the claim is checked against what is there."""
    beat = StreamBeat(stream="s", incarnation=1, number=1, head_step=0, arrived=b"", window=1)
    inside = encode_message(beat).replace(b"\xa7arrived\xc4\x00", b"\xa7arrived" + claim)
    assert claim in inside
    whole = bytes([messages.PROTOCOL_VERSION]) + claim
    tracemalloc.start()
    try:
        for frame in (whole, inside, whole + claim * 1000):
            with pytest.raises(RemoteProtocolError):
                decode_message(frame)
            with pytest.raises(RemoteProtocolError):
                decode_header(frame)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_refused() -> None:
    """A thousand lists in each other would overflow a parser that recurses."""
    nested = bytes([messages.PROTOCOL_VERSION]) + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(RemoteProtocolError):
        decode_message(nested)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": -1, "stop": 1},
        {"start": 5, "stop": 5},
        {"start": 9, "stop": 5},
        {"stop": 2**63 - 1},
        {"sample_ids": (1,)},
        {"sample_ids": (1, -1)},
        {"sample_ids": (1, 2**63)},
        {"digests": bytes(SAMPLE_DIGEST_NBYTES)},
        {"fields": (FieldSpec(name="x", dtype="object", shape=()),)},
        {"fields": (FieldSpec(name="x", dtype="U8", shape=()),)},
        {"fields": (FieldSpec(name="x", dtype="uint8", shape=(-1, 4)),)},
        {"fields": (FieldSpec(name="x", dtype="uint8", shape=(0, 4)),)},
        {"fields": (FieldSpec(name="x", dtype="uint8", shape=(2**31,)),)},
        {"fields": (FieldSpec(name="x", dtype="uint8", shape=(2**15, 2**15)),)},
        {"fields": (FieldSpec(name="x", dtype="uint8", shape=(1,) * (wire.MAX_NDIM + 1)),)},
        {"fields": (FieldSpec(name="x", dtype="uint8", shape=(2**20,)),) * 1000},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(changes: dict[str, typing.Any]) -> None:
    """The receiver places and allocates by a header alone, so counts, sizes and dtypes must fit each other."""
    decode_header(header_frame(make_header()))
    with pytest.raises(RemoteProtocolError):
        decode_header(header_frame(make_header(**changes)))


def test_another_version_and_an_oversized_frame_are_refused_unread() -> None:
    """A peer of another version is told from garbage; a frame above the limit is not even looked at."""
    frame = encode_message(messages.JoinAgain(worker="w"))
    with pytest.raises(RemoteProtocolError, match="version"):
        decode_message(bytes([messages.PROTOCOL_VERSION + 1]) + frame[1:])
    with pytest.raises(RemoteProtocolError, match="version"):
        decode_message(b"")
    with pytest.raises(RemoteProtocolError, match="at most"):
        decode_message(bytes(wire.MAX_MESSAGE_NBYTES + 1))


def test_a_slice_whose_arrays_differ_from_its_header_is_our_own_fault() -> None:
    """It would be refused by its receiver; better not sent."""
    header = make_header()
    image, label = np.zeros((2, 2, 2, 3), np.uint8), np.zeros(2, np.int64)
    encode_slice(header, [image, label])
    for wrong in (image[:1], image.astype(np.uint16), np.asfortranarray(np.ones((2, 2, 2, 3), np.uint8))):
        with pytest.raises(LocalProtocolError):
            encode_slice(header, [wrong, label])


def test_the_bytes_on_the_wire_are_those_of_this_protocol_version() -> None:
    """A peer of the same version from an older checkout must understand us: new bytes need a new version."""
    golden = json.loads(GOLDEN.read_text())
    beat = StreamBeat(
        stream="r/train", incarnation=7, number=3, head_step=2, arrived=b"\x0f\x80", window=8, quarantined={40: 1}
    )
    image, label = np.zeros((2, 2, 2, 3), np.uint8), np.zeros(2, np.int64)

    assert golden["protocol_version"] == messages.PROTOCOL_VERSION
    assert golden["stream_beat"] == encode_message(beat).hex()
    assert golden["slice_header"] == bytes(encode_slice(make_header(), [image, label])[0]).hex()
