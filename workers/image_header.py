"""What an encoded image claims to be: its kind, size and bit depth, read before any pixel is decoded.

In:  the bytes of a JPEG, PNG or WebP file; the type is told by the bytes, never by a file name.
Out: a `Header`, or `SampleError` for what is empty, unknown, cut short, animated, too large, or claims
     more pixels than so few bytes can hold (nothing is ever allocated for such a claim).
Never decodes, never touches a file.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.errors import SampleError

# Most pixels that one byte of Huffman-coded JPEG can hold: each 8x8 block costs at least one bit.
JPEG_PIXELS_PER_BYTE = 512
# Deflate's limit: no byte of a zlib stream unpacks to more than 1,032 bytes.
DEFLATE_RATIO = 1032

_JPEG_END = b"\xff\xd9"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> values a pixel
# Markers that start a frame and carry the size: SOF0..SOF15 without DHT (c4), JPG (c8) and DAC (cc).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_MARKERS = frozenset([0xC0, 0xC1])
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_ORIENTATION_TAG = 0x0112
# What may stand between a frame and its scan: tables, restart interval, APPn, comment.
_PLAIN_SEGMENTS = frozenset([0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE])
_MARKERS_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}
_OTHER_KINDS = (
    (b"GIF8", "a GIF file"),
    (b"BM", "a BMP file"),
    (b"II*\x00", "a TIFF file"),
    (b"MM\x00*", "a TIFF file"),
    (b"<", "text or markup"),
)


class Header(NamedTuple):
    """The claim of one encoded image; width and height are as stored, before EXIF orientation."""

    kind: str
    width: int
    height: int
    bits: int
    """Bits a channel: 16 for a 16-bit PNG, else 8 (smaller depths decode to 8)."""
    height_at: int = 0
    """Where a JPEG's height stands, if its pixels are stored row by row in the order they are shown; else 0."""


def read_header(data: bytes, max_pixels: int) -> Header:
    """The header of a whole, still image of at most `max_pixels`; anything else is a SampleError."""
    if data[:3] == b"\xff\xd8\xff":
        header = _read_jpeg(data)
    elif data[:8] == _PNG_MAGIC:
        header = _read_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _read_webp(data)
    else:
        raise SampleError(_not_an_image(data))
    pixels = header.width * header.height
    if pixels == 0:
        raise SampleError(f"{header.kind}: the header says {header.width}x{header.height} pixels")
    if pixels > max_pixels:
        raise SampleError(
            f"{header.kind}: the header says {header.width}x{header.height} pixels, max_pixels is {max_pixels}"
        )
    return header


def _not_an_image(data: bytes) -> str:
    if not data:
        return "an empty file (0 bytes)"
    if data[4:8] == b"ftyp":
        return "an AVIF, HEIC or video file; JPEG, PNG and WebP are read"
    for magic, name in _OTHER_KINDS:
        if data.startswith(magic):
            return f"{name}; JPEG, PNG and WebP are read"
    return f"neither JPEG, PNG nor WebP: begins with {data[:8].hex(' ')}"


def _read_jpeg(data: bytes) -> Header:
    """Walks the markers up to the frame header, then wants the end marker: OpenCV may fill in what is missing."""
    nbytes = len(data)
    at = 2
    is_upright = True
    while at + 9 <= nbytes:
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)  # stray bytes between segments: libjpeg skips them too
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            bits, height, width = struct.unpack_from(">BHH", data, at + 4)
            if bits != 8:
                raise SampleError(f"JPEG: {bits} bits a channel; only 8 are read")
            if data.rfind(_JPEG_END, at) < 0:
                raise SampleError(f"JPEG: cut short, no end marker in {nbytes} bytes")
            if width * height > nbytes * JPEG_PIXELS_PER_BYTE:
                raise SampleError(f"JPEG: {nbytes} bytes can't hold the {width}x{height} pixels of the header")
            is_in_rows = is_upright and marker in _SEQUENTIAL_MARKERS and _is_one_scan(data, at)
            return Header("JPEG", width, height, 8, at + 5 if is_in_rows else 0)
        if marker in (0xD9, 0xDA):
            break
        if marker == 0xFF:
            at += 1  # a fill byte
        elif marker in _MARKERS_WITHOUT_LENGTH:
            at += 2
        else:
            is_upright = is_upright and (marker != _APP1 or not _may_turn(data, at))
            at += 2 + max(2, (data[at + 2] << 8) | data[at + 3])
    raise SampleError(f"JPEG: no frame header in {nbytes} bytes")


def _is_one_scan(data: bytes, frame_at: int) -> bool:
    """Whether the scan after this frame header holds all channels, grey or three; with EXIF between, it says no."""
    if frame_at + 9 >= len(data):
        return False
    num_channels = data[frame_at + 9]
    at = frame_at + 2 + ((data[frame_at + 2] << 8) | data[frame_at + 3])
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            return num_channels in (1, 3) and data[at + 4] == num_channels
        if marker == _APP1 or marker not in _PLAIN_SEGMENTS:
            return False
        at += 2 + ((data[at + 2] << 8) | data[at + 3])
    return False


def _may_turn(data: bytes, segment_at: int) -> bool:
    """Whether this APP1 segment is anything but XMP, or EXIF that can be followed and has no orientation but 1."""
    body = data[segment_at + 4 : segment_at + 2 + ((data[segment_at + 2] << 8) | data[segment_at + 3])]
    if body.startswith(b"http://ns.adobe.com/"):
        return False
    order = {b"Exif\0\0II*\0": "<", b"Exif\0\0MM\0*": ">"}.get(body[:10])
    if order is None:
        return True  # OpenCV isn't strict about these bytes
    tiff = body[6:]
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
            tag, orientation = struct.unpack_from(f"{order}H6xH", tiff, entry)
            if tag == _ORIENTATION_TAG and orientation != 1:
                return True
    except struct.error:
        return True
    return False


def _read_png(data: bytes) -> Header:
    """Walks the chunks from IHDR to IEND; the decoder checks what is inside them."""
    if data[8:16] != b"\x00\x00\x00\rIHDR" or len(data) < 33:
        raise SampleError("PNG: no IHDR chunk")
    width, height, bits, color_type = struct.unpack_from(">IIBB", data, 16)
    at = 33
    while data[at + 4 : at + 8] != b"IEND":
        if at + 12 > len(data):
            raise SampleError(f"PNG: cut short, no IEND chunk in {len(data)} bytes")
        if data[at + 4 : at + 8] == b"acTL":
            raise SampleError("PNG: animated; only still images are read")
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    row_nbytes = (width * bits * _PNG_CHANNELS.get(color_type, 1) + 7) // 8
    if row_nbytes * height > len(data) * DEFLATE_RATIO:
        raise SampleError(f"PNG: {len(data)} bytes can't hold the {width}x{height} pixels of the header")
    return Header("PNG", width, height, 16 if bits == 16 else 8)


def _read_webp(data: bytes) -> Header:
    """The first chunk says it all: VP8 (lossy), VP8L (lossless) or VP8X (either, with extras)."""
    if len(data) < 30 or len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise SampleError(f"WebP: cut short at {len(data)} bytes")
    chunk = data[12:16]
    if chunk == b"VP8X":
        if data[20] & 0x02:
            raise SampleError("WebP: animated; only still images are read")
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif chunk == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    elif chunk == b"VP8 ":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    else:
        raise SampleError(f"WebP: unknown first chunk {chunk!r}")
    return Header("WebP", width, height, 8)
