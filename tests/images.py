"""Encoded images, sound and odd, for tests; made with Pillow, so that OpenCV is never compared with itself.

In:  sizes and kinds.
Out: bytes of image files.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION_TAG = 0x0112


def photo(height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: smooth colours, no two corners alike, so that turning it shows."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = 255 * x // width, 255 * y // height, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def encoded(format_name: str, mode: str = "RGB", image: np.ndarray | None = None, **options: Any) -> bytes:
    """The photo in a Pillow format (JPEG, PNG, WEBP, GIF, BMP) and mode (RGB, RGBA, L, LA, P, 1, CMYK)."""
    out = io.BytesIO()
    Image.fromarray(photo() if image is None else image).convert(mode).save(out, format_name, **options)
    return out.getvalue()


def rotated(format_name: str, orientation: int) -> bytes:
    """The photo with an EXIF orientation tag from 1 to 8."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return encoded(format_name, exif=exif.tobytes())


def animated(format_name: str) -> bytes:
    """Two frames: WEBP, PNG or GIF."""
    second = Image.fromarray(photo()[::-1].copy())
    return encoded(format_name, save_all=True, append_images=[second])


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, color_type: int, rows: bytes) -> bytes:
    """A PNG put together by hand: `rows` are the raw rows, each after its filter byte."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_16_bit(image: np.ndarray) -> bytes:
    """A PNG of a uint16 array (H, W) or (H, W, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    return png(image.shape[1], image.shape[0], 16, 0 if image.ndim == 2 else 2, rows)


def bomb(format_name: str) -> bytes:
    """A few bytes whose header claims 60,000 x 60,000 pixels."""
    side = 60_000
    if format_name == "PNG":
        return png(side, side, 8, 2, b"\0" * 100)
    jpeg = bytearray(encoded("JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(jpeg)
