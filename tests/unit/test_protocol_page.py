"""PROTOCOL.md: it is what the code says, and says enough to read its own examples."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec

from pipeline import protocol_page
from pipeline.messages import AnyMessage, Granted, Join, WorkerBeat
from pipeline.wire import decode_header, decode_message

PAGE = Path(protocol_page.__file__).with_name("PROTOCOL.md")


def test_the_page_is_up_to_date() -> None:
    """If this fails: python -m pipeline.protocol_page > pipeline/PROTOCOL.md"""
    assert PAGE.read_text() == protocol_page.page()


def test_every_message_and_each_of_its_fields_is_described() -> None:
    text = protocol_page.page()
    for struct in typing.get_args(AnyMessage):
        start = text.index(f"**{struct.__name__}**: ")
        chapter = re.split(r"\n(?:\*\*|###)", text[start:])[0]
        for field in msgspec.structs.fields(struct):
            assert f"- `{field.name}: " in chapter, f"{struct.__name__}.{field.name}"


def test_the_examples_are_whole_frames() -> None:
    """As a reader in another language would try them."""
    blocks = re.findall(r"```\n(.*?)```", protocol_page.page(), re.S)
    decoded = [decode_message(bytes.fromhex(block.replace("\n", ""))) for block in blocks[:-1]]
    assert [type(message) for message in decoded] == [Join, WorkerBeat, Granted]
    header = decode_header(bytes.fromhex(blocks[-1].replace("\n", "")[: -2 * (12 + 16)]))
    assert (header.stop - header.start, header.worker) == (2, "w-1")


def test_no_line_is_wider_than_our_own_code() -> None:
    assert [line for line in protocol_page.page().splitlines() if len(line) > 120 and not line.startswith("|")] == []
