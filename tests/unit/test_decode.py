"""Decode: whatever is in the file becomes what the job asks for, or a SampleError with a reason."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SampleError
from pipeline.recipe import Decode
from tests.images import animated, bomb, encoded, photo, png, png_16_bit, png_chunk, rotated
from workers.decode import decode

RGB, GRAY = Decode(), Decode(color="gray")
ALL_SETTINGS = [Decode(color=color, depth=depth) for color in ("rgb", "gray") for depth in (8, 16)]
STILL = {
    **{f"{mode} jpeg": encoded("JPEG", mode) for mode in ("RGB", "L", "CMYK")},
    **{f"{mode} png": encoded("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")},
    **{f"{mode} webp": encoded("WEBP", mode) for mode in ("RGB", "RGBA")},
    "progressive jpeg": encoded("JPEG", progressive=True),
    "lossless webp": encoded("WEBP", lossless=True),
    "interlaced-size 1x1 png": encoded("PNG", image=photo(1, 1)),
    "16-bit grey png": png_16_bit(photo()[:, :, 0].astype(np.uint16) * 257),
    "16-bit RGB png": png_16_bit(photo().astype(np.uint16) * 257),
}


def reason(data: bytes | np.ndarray, settings: Decode = RGB) -> str:
    with pytest.raises(SampleError) as caught:
        decode(data, settings)
    return str(caught.value)


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda s: f"{s.color}{s.depth}")
@pytest.mark.parametrize("name", STILL)
def test_every_kind_of_file_becomes_what_the_job_asks_for(name: str, settings: Decode) -> None:
    image = decode(STILL[name], settings)
    expected_shape = (1, 1) if "1x1" in name else (48, 64)
    assert (*expected_shape, 3 if settings.color == "rgb" else 1) == image.shape
    assert (np.uint8 if settings.depth == 8 else np.uint16) == image.dtype
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize(
    "name", ["RGB jpeg", "CMYK jpeg", "progressive jpeg", "RGBA png", "RGB webp", "16-bit RGB png"]
)
def test_colours_are_red_green_blue_in_this_order(name: str) -> None:
    """Within the loss of the format; a swap of channels or inverted CMYK would be off by a hundred."""
    difference = decode(STILL[name], RGB).astype(int) - photo()
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("name", ["RGB png", "lossless webp", "16-bit RGB png", "RGB jpeg"])
def test_grey_is_the_same_mixture_for_every_format(name: str) -> None:
    """OpenCV's own PNG reader mixes with other weights than its JPEG reader."""
    expected = cv2.cvtColor(photo(), cv2.COLOR_RGB2GRAY).astype(int)
    assert np.abs(decode(STILL[name], GRAY)[:, :, 0] - expected).mean() < (2 if "jpeg" in name else 0.01)


def test_grey_is_repeated_and_alpha_dropped() -> None:
    assert np.array_equal(decode(encoded("PNG", "L"), RGB), np.repeat(decode(encoded("PNG", "L"), GRAY), 3, axis=2))
    clear = np.dstack([photo(), np.zeros((48, 64), np.uint8)])
    assert np.array_equal(photo(), decode(encoded("PNG", "RGBA", clear), RGB))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda s: f"{s.color}{s.depth}")
def test_exif_orientation_is_always_applied(format_name: str, orientation: int, settings: Decode) -> None:
    upright = decode(rotated(format_name, 1), settings)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright),
    }[orientation]
    assert np.array_equal(turned, decode(rotated(format_name, orientation), settings))


@given(st.integers(0, 65535))
def test_depth_is_scaled_over_the_full_range(value: int) -> None:
    """8 -> 16 is x * 257, 16 -> 8 the nearest, for files and arrays alike."""
    wide = np.full((2, 3), value, np.uint16)
    nearest = round(value / 257)
    for data in (wide, png_16_bit(wide)):
        assert nearest == decode(data, GRAY)[0, 0, 0]
        assert value == decode(data, Decode(color="gray", depth=16))[0, 0, 0]
    assert nearest * 257 == decode(np.full((2, 3), nearest, np.uint8), Decode(depth=16))[0, 0, 0]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda s: f"{s.color}{s.depth}")
def test_arrays_become_what_the_job_asks_for_and_stay_as_they_were(
    shape: tuple[int, ...], dtype: str, settings: Decode
) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    array.flags.writeable = False
    image = decode(array, settings)
    assert (5, 7, 3 if settings.color == "rgb" else 1) == image.shape
    assert np.dtype(np.uint8 if settings.depth == 8 else np.uint16) == image.dtype
    assert image.flags.writeable
    assert not np.shares_memory(image, array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4), np.int8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
    ids=["float", "signed", "flat", "five channels", "no rows"],
)
def test_an_array_that_is_no_image_is_a_bad_sample(array: np.ndarray) -> None:
    assert "array of" in reason(array)


ODD = {
    "empty": (b"", "empty file"),
    "one byte": (b"\xff", "neither JPEG, PNG nor WebP"),
    "text": (b"<!DOCTYPE html><html></html>", "text or markup"),
    "GIF": (animated("GIF"), "a GIF file"),
    "BMP": (encoded("BMP"), "a BMP file"),
    "animated WebP": (animated("WEBP"), "WebP: animated"),
    "animated PNG": (animated("PNG"), "PNG: animated"),
    "bomb JPEG": (bomb("JPEG"), "60000x60000"),
    "bomb PNG": (bomb("PNG"), "60000x60000"),
    "lying JPEG": (bomb("JPEG"), "can't hold"),
    "lying PNG": (bomb("PNG"), "can't hold"),
    "PNG with too few rows": (png(64, 48, 8, 2, b"\0" * 4000), "damaged"),
    "JPEG without a picture": (b"\xff\xd8\xff\xd9", "no frame header"),
    "12-bit JPEG": (encoded("JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "12 bits"),
    "WebP of unknown kind": (b"RIFF\x20\0\0\0WEBPVP9 " + bytes(40), "unknown first chunk"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_image_is_a_bad_sample_with_its_reason(name: str) -> None:
    data, expected = ODD[name]
    settings = Decode(max_pixels=2**40) if name.startswith("lying") else RGB
    assert expected in reason(data, settings)


@pytest.mark.parametrize("name", [name for name in STILL if "1x1" not in name])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_a_bad_sample(name: str, share: float) -> None:
    """Some versions of OpenCV fill the missing part with grey."""
    assert reason(STILL[name][: int(len(STILL[name]) * share)])


def test_a_jpeg_whose_tail_is_zeros_is_a_bad_sample() -> None:
    """What a download leaves that reserved its space and broke off."""
    whole = encoded("JPEG")
    assert "cut short" in reason(whole[: len(whole) // 2] + bytes(len(whole) // 2))


def test_bytes_after_the_end_of_a_jpeg_change_nothing() -> None:
    """Cameras append previews and maker notes."""
    assert np.array_equal(decode(encoded("JPEG"), RGB), decode(encoded("JPEG") + b"maker notes", RGB))


def test_max_pixels_is_the_largest_size_that_is_taken() -> None:
    for data in (encoded("JPEG"), encoded("PNG"), encoded("WEBP"), photo()):
        assert decode(data, Decode(max_pixels=48 * 64)).shape == (48, 64, 3)
        assert "max_pixels" in reason(data, Decode(max_pixels=48 * 64 - 1))


def test_a_lying_header_allocates_nothing() -> None:
    tracemalloc.start()
    try:
        for format_name in ("JPEG", "PNG"):
            reason(bomb(format_name), Decode(max_pixels=2**40))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_png_that_says_animated_after_its_pixels_is_refused_too() -> None:
    whole = encoded("PNG")
    assert "animated" in reason(whole[:-12] + png_chunk(b"acTL", bytes(8)) + whole[-12:])


@given(
    name=st.sampled_from(sorted(STILL)),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=20),
    cut=st.integers(0, 3),
)
def test_damaged_bytes_give_the_same_image_each_time_or_a_bad_sample(
    name: str, changes: list[tuple[int, int]], cut: int
) -> None:
    """Law 1 for broken files: nothing of an earlier image, and no uninitialised memory, may show."""
    data = bytearray(STILL[name])
    for place, value in changes:
        data[place % len(data)] = value
    damaged = bytes(data[: len(data) - cut])
    outcomes = []
    for earlier in (0, 255):
        decode(np.full((48, 64, 3), earlier, np.uint8), RGB)
        try:
            outcomes.append(decode(damaged, Decode(max_pixels=100_000)).tobytes())
        except SampleError as error:
            outcomes.append(str(error).encode())
    assert outcomes[0] == outcomes[1]


def test_codecs_write_nothing_to_the_terminal_and_python_still_can() -> None:
    """In a process of its own: libjpeg and libpng print from C, below Python's streams."""
    program = (
        "import sys\n"
        "from pipeline.errors import SampleError\n"
        "from pipeline.recipe import Decode\n"
        "from tests.images import encoded, png\n"
        "from workers.decode import decode\n"
        "jpeg = bytearray(encoded('JPEG', quality=95))\n"
        "jpeg[len(jpeg) // 2 : len(jpeg) // 2 + 40] = bytes(40)\n"
        "for data in (bytes(jpeg), png(64, 48, 8, 2, bytes(4000))):\n"
        "    try:\n"
        "        decode(data, Decode())\n"
        "    except SampleError:\n"
        "        pass\n"
        "print('still here', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "still here\n"
    assert done.stdout == ""
