"""Decode: one stored sample becomes one image array; the only home of image codecs beside the chain.

In:  the bytes of a JPEG, PNG or WebP file, or an array HW or HWC (sources `arrays` and `digits`), and the
     recipe's `Decode` settings.
Out: a fresh, contiguous array (H, W, 3) RGB or (H, W, 1) grey, uint8 or uint16, EXIF orientation applied.
     What can't become one is a `SampleError` with the reason: a function of the bytes alone (law 1).
     Most JPEGs can also be decoded from the top down to a row (`opened`): the work is the rows', not the file's.
Never reads a file, never resizes, never writes to the terminal.

Colour: grey is repeated, alpha dropped, palettes expanded, CMYK converted (as Adobe stores it); RGB to grey is
0.299 R + 0.587 G + 0.114 B. Depth: 8 -> 16 bits is x * 257, 16 -> 8 is the nearest of x / 257. Animations (WebP,
PNG) are refused, as their first frame may be blank or partial: no frame is chosen in silence.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct

import cv2
import numpy as np

from pipeline.errors import SampleError
from pipeline.recipe import Decode
from workers.image_header import Header, read_header

_NARROW = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)
"""uint16 -> the nearest uint8 of the full range."""

_ROWS_BELOW = 8
"""Smoothing colours over the rows of an MCU reaches the next sample of colour, which covers four rows at most."""


class JpegRows:
    """A JPEG that is decoded from the top down, no further than need be: `top(n)` is `decode(...)[:n]`.

    Damage below the rows that are asked for goes unnoticed.
    """

    __slots__ = ("_data", "_header", "_settings", "shape")

    def __init__(self, data: bytes, header: Header, settings: Decode) -> None:
        self._data = data
        self._header = header
        self._settings = settings
        self.shape = (header.height, header.width, 3 if settings.color == "rgb" else 1)
        """(H, W, C) of the whole image."""

    def top(self, num_rows: int) -> np.ndarray:
        """The first `num_rows` rows; what makes the file no image is a SampleError."""
        data: bytes | bytearray = self._data
        header = self._header
        num_decoded = min(num_rows + _ROWS_BELOW, header.height)
        if num_decoded < header.height:
            # The decoder believes the header: it stops after this many rows, and skips the data that is left.
            data = bytearray(data)
            struct.pack_into(">H", data, header.height_at, num_decoded)
        image = _finished(_decode_file(data, header, self._settings), self._settings)
        if image.shape[:2] != (num_decoded, header.width):
            raise SampleError(f"JPEG: another size inside than the {header.width}x{header.height} pixels of the header")
        return image[:num_rows]


def opened(data: bytes | np.ndarray, settings: Decode) -> np.ndarray | JpegRows:
    """The decoded image, or what it takes to decode its first rows only; errors are those of `decode`."""
    if isinstance(data, np.ndarray):
        return _finished(_checked_array(data, settings.max_pixels), settings)
    header = read_header(data, settings.max_pixels)
    # libjpeg tells C's stderr of the data it skips.
    if header.height_at and _silence_codecs():
        return JpegRows(data, header, settings)
    return _finished(_decode_file(data, header, settings), settings)


def decode(data: bytes | np.ndarray, settings: Decode) -> np.ndarray:
    """Equal inputs give equal arrays (H, W, 3) or (H, W, 1), uint8 or uint16; all else raises SampleError.

    MemoryError passes through: that is no property of the sample.
    """
    image = opened(data, settings)
    return image if isinstance(image, np.ndarray) else image.top(image.shape[0])


def _finished(image: np.ndarray, settings: Decode) -> np.ndarray:
    image = _to_rgb(image) if settings.color == "rgb" else _to_gray(image)
    if settings.depth == 8:
        return image if image.dtype == np.uint8 else _NARROW[image]
    return image if image.dtype == np.uint16 else image.astype(np.uint16) * np.uint16(257)


def _decode_file(data: bytes | bytearray, header: Header, settings: Decode) -> np.ndarray:
    """(H, W, 3) RGB or (H, W) grey, at the depth the file has."""
    _silence_codecs()
    if header.kind == "JPEG" and settings.color == "gray":
        flags = cv2.IMREAD_GRAYSCALE  # the luma plane as stored: no colour conversion at all
    elif header.bits == 16:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
    else:
        flags = cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            raise MemoryError(f"no memory for a {header.kind} of {header.width}x{header.height} pixels") from error
        raise SampleError(f"{header.kind}: OpenCV refuses it: {error.err}") from error
    if image is None:
        raise SampleError(f"{header.kind}: the data inside is damaged")
    return image


def _checked_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    """A copy in the machine's byte order: the chain may write to it, the source's array is never touched."""
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise SampleError(f"array of {array.dtype}; uint8 and uint16 are read")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise SampleError(f"array of shape {array.shape}; (H, W) and (H, W, 1 to 4) are read")
    if not 0 < array.shape[0] * array.shape[1] <= max_pixels:
        raise SampleError(f"array of shape {array.shape}; 1 to {max_pixels} pixels are read (max_pixels)")
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3); two channels are grey and alpha, four are RGB and alpha."""
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.ndim == 3 and image.shape[2] == 4:
        return np.ascontiguousarray(image[:, :, :3])
    gray = image if image.ndim == 2 else image[:, :, 0]
    return np.repeat(gray[:, :, np.newaxis], 3, axis=2)


def _to_gray(image: np.ndarray) -> np.ndarray:
    """(H, W, 1)."""
    if image.ndim == 3 and image.shape[2] >= 3:
        image = cv2.cvtColor(np.ascontiguousarray(image[:, :, :3]), cv2.COLOR_RGB2GRAY)
    gray = image if image.ndim == 2 else image[:, :, 0]
    return np.ascontiguousarray(gray)[:, :, np.newaxis]


@functools.cache
def _silence_codecs() -> bool:
    """libjpeg, libpng and OpenCV write nothing to the terminal from the first decode on; False if they still may.

    libjpeg and libpng print to C's `stderr` and offer no switch from here. In the GNU C library that is a variable
    which programs may set ("Standard Streams" in its manual), so it gets a stream to the null device: no cost a
    call, and no race with other threads, which moving file descriptor 2 to and fro would have. Python's sys.stderr,
    faulthandler and abort messages write to the descriptor and stay. Other C libraries: messages appear.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    null_stream = libc.fopen(os.devnull.encode(), b"w")
    if null_stream:
        ctypes.c_void_p.in_dll(libc, "stderr").value = null_stream
    return bool(null_stream)
