"""A contact sheet: cards of pictures with text below each, as one image.

In:  cards, in order: arrays (H,W,C) of any depth, lines of text.
Out: a PNG file. Small images are enlarged without smoothing, so that pixels stay what they are.
Never decodes a sample, knows nothing of runs.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import ConfigError, Problem

Tone = Literal["strong", "plain", "faint", "alarm"]

_BOX = 208
"""Pixels that a picture may be wide and high."""
_GAP, _PADDING, _MARGIN = 12, 12, 24
_MAX_WIDTH = 2100
"""Of the whole sheet: four cards of two pictures. Wider ones are scaled down by most viewers."""
_LINE_HEIGHT, _FONT_SIZE, _TITLE_SIZE = 17, 13, 19
_PAGE, _CARD, _MARKED, _EDGE = (238, 240, 243), (255, 255, 255), (255, 243, 214), (205, 209, 215)
_TONES: dict[Tone, tuple[int, int, int]] = {
    "strong": (20, 24, 30),
    "plain": (60, 66, 76),
    "faint": (110, 117, 128),
    "alarm": (190, 30, 30),
}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Sheet = Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A paragraph; it is wrapped where it is too wide."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image and what is written below it."""

    image_HWC: np.ndarray
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Pictures side by side; a marked one stands out."""

    pictures: tuple[Picture, ...]
    is_marked: bool = False


def draw_sheet(title: Sequence[Line], cards: Sequence[Card]) -> Sheet:
    """The sheet: the title's lines, then rows of cards, as many side by side as fit."""
    assert cards
    num_pictures = max(len(card.pictures) for card in cards)
    card_width = num_pictures * _BOX + (num_pictures - 1) * _GAP + 2 * _PADDING
    num_columns = max(1, min(len(cards), (_MAX_WIDTH - 2 * _MARGIN + _GAP) // (card_width + _GAP)))
    rows = [cards[at : at + num_columns] for at in range(0, len(cards), num_columns)]
    width = 2 * _MARGIN + num_columns * (card_width + _GAP) - _GAP
    title_lines = [
        (wrapped, line.tone, _TITLE_SIZE if number == 0 else _FONT_SIZE)
        for number, line in enumerate(title)
        for wrapped in _wrap(line, width - 2 * _MARGIN, _TITLE_SIZE if number == 0 else _FONT_SIZE)
    ]
    title_height = sum(size + 8 for _, _, size in title_lines) + _GAP
    heights = [max(_card_height(card) for card in row) for row in rows]
    sheet = Image.new("RGB", (width, 2 * _MARGIN + title_height + sum(heights) + _GAP * (len(rows) - 1)), _PAGE)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for text, tone, size in title_lines:
        _write(draw, (_MARGIN, y), text, tone, size)
        y += size + 8
    y += _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            x = _MARGIN + column * (card_width + _GAP)
            color = _MARKED if card.is_marked else _CARD
            draw.rounded_rectangle((x, y, x + card_width - 1, y + height - 1), radius=6, fill=color)
            _draw_card(sheet, draw, card, x + _PADDING, y + _PADDING)
        y += height + _GAP
    return sheet


def write_png(sheet: Sheet, path: Path) -> None:
    """The file is there whole or not at all; ConfigError if it can't be written."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with partial.open("wb") as file:
            sheet.save(file, "PNG", optimize=True)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        expected, got = "a place where a PNG file can be written", error.strerror or str(error)
        raise ConfigError(Problem(file=str(path), line=0, path="--out", expected=expected, got=got)) from error


def displayable(image_HWC: np.ndarray) -> tuple[np.ndarray, str]:
    """uint8 (H,W,3) to look at, and what was done to the values if anything; one channel is shown as grey.

    16 bits are shown by their upper eight; floats from 0 to 1 as they are, others stretched from their least to
    their greatest value.
    """
    shown, note = image_HWC, ""
    if shown.dtype == np.uint16:
        shown, note = (shown >> 8).astype(np.uint8), "16 bits, upper 8 shown"
    elif shown.dtype != np.uint8:
        values = np.nan_to_num(shown.astype(np.float64), posinf=0.0, neginf=0.0)
        least, greatest = float(values.min()), float(values.max())
        if least < 0 or greatest > 1:
            note = f"{image_HWC.dtype}, {least:.3g} to {greatest:.3g} stretched"
            values = (values - least) / ((greatest - least) or 1.0)
        shown = np.rint(values * 255).astype(np.uint8)
    channels = shown.shape[2]
    if channels < 3:
        shown = np.repeat(shown[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(shown[:, :, :3]), note


def _draw_card(sheet: Sheet, draw: ImageDraw.ImageDraw, card: Card, x: int, y: int) -> None:
    text_y = y + max(_size_of(picture)[1] for picture in card.pictures) + 6
    for number, picture in enumerate(card.pictures):
        left = x + number * (_BOX + _GAP)
        shown, _ = displayable(picture.image_HWC)
        image, size = Image.fromarray(shown), _size_of(picture)
        is_enlarged = size[0] > image.width
        kind = Image.Resampling.NEAREST if is_enlarged else Image.Resampling.LANCZOS
        sheet.paste(image.resize(size, kind), (left, y))
        # A white image on a white card has an edge, too.
        draw.rectangle((left - 1, y - 1, left + size[0], y + size[1]), outline=_EDGE)
        for row, (text, tone) in enumerate(_text_of(picture)):
            _write(draw, (left, text_y + row * _LINE_HEIGHT), text, tone, _FONT_SIZE)


def _card_height(card: Card) -> int:
    images = max(_size_of(picture)[1] for picture in card.pictures)
    text = max(len(_text_of(picture)) for picture in card.pictures) * _LINE_HEIGHT
    return images + 6 + text + 2 * _PADDING


def _size_of(picture: Picture) -> tuple[int, int]:
    """Width and height on the sheet: enlarged by a whole factor, or made smaller, to fit the box."""
    height, width = picture.image_HWC.shape[:2]
    factor = _BOX / max(height, width)
    factor = int(factor) if factor >= 1 else factor
    return max(1, round(width * factor)), max(1, round(height * factor))


def _text_of(picture: Picture) -> list[tuple[str, Tone]]:
    return [(text, line.tone) for line in picture.lines for text in _wrap(line, _BOX, _FONT_SIZE)]


def _wrap(line: Line, width: int, size: int) -> list[str]:
    """The paragraph's lines, broken at spaces, or inside a word that is too wide for a line of its own."""

    def fits(text: str) -> bool:
        return _text_width(text, line.tone, size) <= width

    lines, current = [], ""
    for word in line.text.split():
        candidate = f"{current} {word}" if current else word
        if current and not fits(candidate):
            lines.append(current)
            candidate = word
        while not fits(candidate):
            cut = next(end for end in range(len(candidate) - 1, 0, -1) if end == 1 or fits(candidate[:end]))
            lines.append(candidate[:cut])
            candidate = candidate[cut:]
        current = candidate
    return [*lines, current] if current else lines


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, tone: Tone, size: int) -> None:
    font, knows_all = _font(size, tone == "strong")
    draw.text(place, _drawable(text, knows_all), fill=_TONES[tone], font=font)


def _text_width(text: str, tone: Tone, size: int) -> float:
    font, knows_all = _font(size, tone == "strong")
    return font.getlength(_drawable(text, knows_all))


def _drawable(text: str, knows_all: bool) -> str:
    return text if knows_all else text.encode("ascii", "backslashreplace").decode()


@cache
def _font(size: int, is_bold: bool) -> tuple[Font, bool]:
    """A font, and whether it has more than Latin letters: of one that has not, all others are equal empty boxes."""
    try:
        return ImageFont.truetype("DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf", size), True
    except OSError:  # not on this system: Pillow brings a small one of its own
        return ImageFont.load_default(size), False
