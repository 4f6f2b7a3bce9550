"""PROTOCOL.md, made from the message classes: `python -m pipeline.protocol_page > pipeline/PROTOCOL.md`.

In:  the records of the wire: their fields, types, defaults and docstrings, read from their source.
Out: the page, as text on stdout.
Never describes a message twice: prose is in `pipeline/protocol_prose.py`, all else comes from the code.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType

import msgspec
import numpy as np

from pipeline import message, messages, recipe, service_messages, slice_header, stream_spec, timeline, wire
from pipeline.digests import SAMPLE_DIGEST_NBYTES, sample_digest
from pipeline.lease_workers import LEASES_IN_HAND
from pipeline.leases import Leases
from pipeline.messages import Granted, Join, Lease, WorkerBeat
from pipeline.order import Order
from pipeline.protocol_prose import EXAMPLES, LIFE, MESSAGES, OPENING
from pipeline.recipe import FieldSpec
from pipeline.slice_header import SliceHeader
from pipeline.transport import MAX_IPC_PATH_NBYTES

Struct = type[msgspec.Struct]
_MODULES = (message, messages, recipe, service_messages, slice_header, stream_spec, timeline)
_DIRECTIONS: tuple[tuple[str, object], ...] = (
    ("From a worker (or, for WorkerDied, its pool) to the dispatcher", messages.WorkerMessage),
    ("From the dispatcher to a worker", messages.ToWorker),
    ("From a worker to a trainer, before the fields of a slice", SliceHeader),
    ("From a trainer to the dispatcher", messages.TrainerMessage),
    ("From the dispatcher to a trainer", messages.ToTrainer),
    ("From a pool to the dispatcher", service_messages.PoolBeat),
    ("From the dispatcher to a pool", service_messages.ToPool),
    ("From an operator to the dispatcher", service_messages.OperatorMessage),
    ("From the dispatcher to an operator", service_messages.ToOperator),
)
_ORDER_NUM_SAMPLES, _ORDER_SEED = 10, 7


def page() -> str:
    """The whole page."""
    defaults = {name: each.default for name, each in inspect.signature(Leases).parameters.items()}
    example = np.arange(16, dtype=np.uint8)
    order = Order(_ORDER_NUM_SAMPLES, seed=_ORDER_SEED, shuffle=True)
    words = np.array([[_ORDER_SEED, 0, 0, 0], [0, 0, 1, 2]], dtype=np.uint64)
    philox = np.random.Philox(key=words[0, :2], counter=words[1])
    opening = OPENING.format(
        version=message.PROTOCOL_VERSION,
        version_byte=f"{message.PROTOCOL_VERSION:02x}",
        max_ipc_path_nbytes=MAX_IPC_PATH_NBYTES,
        max_message_nbytes=wire.MAX_MESSAGE_NBYTES,
        max_slice_nbytes=wire.MAX_SLICE_NBYTES,
        max_slice_samples=wire.MAX_SLICE_SAMPLES,
        max_ndim=wire.MAX_NDIM,
        dtypes=", ".join(f"`{dtype}`" for dtype in wire.DTYPES),
        losing=_losing(),
    )
    life = LIFE.format(
        worker_ttl_s=defaults["worker_ttl_s"],
        resend_s=defaults["resend_s"],
        leases_in_hand=LEASES_IN_HAND,
        order_num_samples=_ORDER_NUM_SAMPLES,
        order_seed=_ORDER_SEED,
        order_indices=", ".join(str(key.sample_index) for key in order.keys(0, _ORDER_NUM_SAMPLES)),
        philox_example=", ".join(f"`{int(word):016x}`" for word in philox.random_raw(4)),
        digest_nbytes=SAMPLE_DIGEST_NBYTES,
        digest_example=sample_digest(example, 3).hex(),
    )
    return "\n".join([opening, life, MESSAGES, *_reference(), EXAMPLES, *_examples()]).rstrip() + "\n"


def _losing() -> str:
    """What the docstring of `pipeline/messages.py` says of lost messages."""
    assert messages.__doc__ is not None
    return "\n".join(line for line in messages.__doc__.splitlines() if line.startswith(("- ", "  ")))


def _reference() -> Iterator[str]:
    """A chapter for each direction, then one for the records inside them."""
    shown: list[Struct] = []
    for title, union in _DIRECTIONS:
        yield f"### {title}\n"
        for struct in typing.get_args(union) or (typing.cast(Struct, union),):
            shown.append(struct)
            yield from _describe(struct)
    yield "### Records inside messages\n"
    for struct in _inside(shown):
        yield from _describe(struct)


def _describe(struct: Struct) -> Iterator[str]:
    definition = _definitions()[struct.__name__]
    yield _filled(f"**{struct.__name__}**: {_one_line(struct.__doc__ or '')}") + "\n"
    docs = _field_docs(definition)
    fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    for node in fields:
        name, default = ast.unparse(node.target), f" = {_default(node.value)}" if node.value else ""
        text = f": {docs[name]}" if name in docs else ""
        line = f"- `{name}: {ast.unparse(node.annotation)}{default}`{text}"
        yield _filled(line, "  ")
    if fields:
        yield ""


def _default(node: ast.expr) -> str:
    """As a reader of msgpack needs it: a constant of ours as its value."""
    names = {"PROTOCOL_VERSION": str(message.PROTOCOL_VERSION)}
    return names.get(text := ast.unparse(node), text)


@cache
def _definitions() -> dict[str, ast.ClassDef]:
    """Class name -> its source, parsed: a field's docstring is nowhere else."""
    return {node.name: node for module in _MODULES for node in _classes(module)}


def _classes(module: ModuleType) -> Iterator[ast.ClassDef]:
    return (node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef))


def _field_docs(definition: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and is_text:
            assert isinstance(after, ast.Expr)
            docs[ast.unparse(field.target)] = _one_line(ast.literal_eval(after.value))
    return docs


def _inside(structs: Iterable[Struct]) -> list[Struct]:
    """The records that fields of these have, and those inside them, each once, in the order in which they are met."""
    waiting, found, known = list(structs), list[Struct](), set(structs)
    while waiting:
        for kind in typing.get_type_hints(waiting.pop(0)).values():
            for struct in _structs_of(kind):
                if struct not in known:
                    known.add(struct)
                    found.append(struct)
                    waiting.append(struct)
    return found


def _structs_of(kind: object) -> Iterator[Struct]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for argument in typing.get_args(kind):
        yield from _structs_of(argument)


def _examples() -> Iterator[str]:
    fingerprint = "3f2a"
    join = Join(worker="w-1", host="h", pid=7, fingerprint=fingerprint, sources=("photos",))
    lease = Lease(number=1, stream="r/train", incarnation=7, start=32, stop=34, recipe="00ff", quarantined={33: 1})
    fields = (FieldSpec(name="image", dtype="uint8", shape=(1, 2, 3)), FieldSpec(name="label", dtype="int64", shape=()))
    images, labels = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3), np.array([3, 4], dtype=np.int64)
    header = SliceHeader(
        stream="r/train",
        incarnation=7,
        worker="w-1",
        start=32,
        stop=34,
        recipe="00ff",
        fields=fields,
        sample_ids=(5, 9),
        digests=b"".join(map(sample_digest, images, labels.tolist())),
        quarantined={33: 1},
    )
    for record in (
        join,
        WorkerBeat(worker="w-1", number=1, received=1, holding=(1,)),
        Granted(lease=lease),
    ):
        yield from _example(record, [wire.encode_message(record)])
    yield from _example(header, [bytes(frame) for frame in wire.encode_slice(header, [images, labels])])


def _example(record: msgspec.Struct, frames: list[bytes]) -> Iterator[str]:
    yield _filled(f"`{record!r}`") + "\n"
    yield "```"
    yield from ("\n".join(textwrap.wrap(frame.hex(), 96)) for frame in frames)
    yield "```\n"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.write(page())
