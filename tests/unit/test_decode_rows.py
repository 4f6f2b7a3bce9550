"""A JPEG's first rows, decoded alone, are those of the whole image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SampleError
from pipeline.recipe import Decode
from tests.images import encoded, rotated
from tests.sizes import cases
from workers.decode import JpegRows, decode, opened
from workers.image_header import read_header

SAMPLINGS = {name: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("411", "420", "422", "440", "444")}
ALL_SETTINGS = [Decode(color=color, depth=depth) for color in ("rgb", "gray") for depth in (8, 16)]


def noise(height: int = 61, width: int = 45, channels: int = 3) -> np.ndarray:
    """Colours that differ from row to row, so that smoothing over the last row would show."""
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


def jpeg(sampling: str, *options: int, image: np.ndarray | None = None) -> bytes:
    image = noise() if image is None else image
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling], *options])
    assert done
    return bytes(data)


def rows(data: bytes, settings: Decode) -> JpegRows:
    image = opened(data, settings)
    assert isinstance(image, JpegRows)
    return image


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda s: f"{s.color}{s.depth}")
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_first_rows_are_those_of_the_whole_image(sampling: str, settings: Decode) -> None:
    """Every number of rows: blocks, colours of two or four rows and their smoothing end at different ones."""
    for options in ((), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2), (cv2.IMWRITE_JPEG_OPTIMIZE, 1)):
        data = jpeg(sampling, *options)
        whole = decode(data, settings)
        image = rows(data, settings)
        assert whole.shape == image.shape
        for num_rows in range(1, whole.shape[0] + 1):
            assert np.array_equal(whole[:num_rows], image.top(num_rows)), num_rows


def test_fewer_rows_are_really_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    imdecode = cv2.imdecode

    def watched(data: np.ndarray, flags: int) -> Any:
        image = imdecode(data, flags)
        decoded.append(image.shape[0])
        return image

    monkeypatch.setattr(cv2, "imdecode", watched)
    image = rows(jpeg("420"), Decode())
    assert [len(image.top(num_rows)) for num_rows in (10, 52, 53, 61)] == [10, 52, 53, 61]
    assert decoded == [18, 60, 61, 61]


@settings(max_examples=cases(150))
@given(st.data())
def test_damage_changes_the_first_rows_as_it_changes_the_whole(data: st.DataObject) -> None:
    """The decoder goes through the data from the front, so what it makes of it doesn't depend on where it stops."""
    sound = jpeg(data.draw(st.sampled_from(sorted(SAMPLINGS))), cv2.IMWRITE_JPEG_QUALITY, 60)
    damaged = bytearray(sound)
    first = sound.index(b"\xff\xda") + 14
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(first, len(sound) - 3), st.integers(0, 255)), max_size=4)
    ):
        damaged[at] = value
    image = rows(bytes(damaged), Decode())
    num_rows = data.draw(st.integers(1, 61))
    try:
        whole = decode(bytes(damaged), Decode())
    except SampleError:
        return
    assert np.array_equal(whole[:num_rows], image.top(num_rows))


@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG", progressive=True),
        encoded("JPEG", "CMYK"),
        *(rotated("JPEG", orientation) for orientation in range(2, 9)),
        encoded("PNG"),
        encoded("WEBP"),
    ],
    ids=["progressive", "CMYK", *(f"orientation {orientation}" for orientation in range(2, 9)), "PNG", "WebP"],
)
def test_what_is_not_stored_row_by_row_is_decoded_whole(data: bytes) -> None:
    assert read_header(data, 10**6).height_at == 0
    image = opened(data, Decode())
    assert isinstance(image, np.ndarray)
    assert np.array_equal(decode(data, Decode()), image)


def with_app1(data: bytes, body: bytes) -> bytes:
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def exif(order: Any, *entries: tuple[int, int]) -> bytes:
    """EXIF with one directory of (tag, 16-bit value) after eight bytes that nobody refers to."""
    head = (b"II*\0" if order == "little" else b"MM\0*") + (16).to_bytes(4, order) + b"\x12\x01\x12\x01" * 2
    directory = len(entries).to_bytes(2, order)
    for tag, value in entries:
        directory += tag.to_bytes(2, order) + (3).to_bytes(2, order) + (1).to_bytes(4, order)
        directory += value.to_bytes(2, order) + b"\0\0"
    return b"Exif\0\0" + head + directory + b"\0\0\0\0"


@pytest.mark.parametrize("order", ["little", "big"])
def test_an_upright_photograph_is_decoded_by_rows_whatever_else_its_exif_says(order: Any) -> None:
    """And OpenCV turns none that we hold to be upright: the whole image is as without EXIF, or decoded whole."""
    plain = jpeg("420")
    bodies = [
        exif(order), exif(order, (0x0112, 1)), exif(order, (0x010F, 6), (0x0112, 1)), exif(order, (0x0128, 2)),
        b"http://ns.adobe.com/xap/1.0/\0<x/>", b"Exif\0\0", b"", *(exif(order, (0x0112, turn)) for turn in (0, 9, 99)),
        *(exif(order, (0x0112, 1))[:cut] for cut in range(6, 36)),
    ]  # fmt: skip
    by_rows = []
    for body in bodies:
        data = with_app1(plain, body)
        assert np.array_equal(decode(plain, Decode()), decode(data, Decode()))
        by_rows.append(isinstance(opened(data, Decode()), JpegRows))
    assert by_rows[:7] == [True] * 5 + [False] * 2
    for turn in range(2, 9):
        assert isinstance(opened(with_app1(plain, exif(order, (0x010F, 1), (0x0112, turn))), Decode()), np.ndarray)
        both = with_app1(with_app1(plain, exif(order, (0x0112, turn))), exif(order, (0x0112, 1)))
        assert isinstance(opened(both, Decode()), np.ndarray)


def test_channels_in_scans_of_their_own_are_decoded_whole() -> None:
    """Their scans follow each other, so the first rows of the last channel stand near the end."""
    data = jpeg("444")
    at = data.index(b"\xff\xda")
    one_channel = data[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[at + 14 :]
    assert read_header(data, 10**6).height_at > 0
    assert read_header(one_channel, 10**6).height_at == 0


@given(cut=st.integers(2, 700), stray=st.binary(max_size=12))
def test_a_header_of_any_bytes_is_read_or_refused(cut: int, stray: bytes) -> None:
    data = jpeg("420")[:cut] + stray + b"\xff\xd9"
    try:
        header = read_header(data, 10**6)
    except SampleError:
        return
    assert (
        header.height_at == 0 or int.from_bytes(data[header.height_at : header.height_at + 2], "big") == header.height
    )


def test_an_array_is_opened_as_an_array() -> None:
    image = opened(noise(), Decode())
    assert isinstance(image, np.ndarray)
    assert np.array_equal(noise(), image)
