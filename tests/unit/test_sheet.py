"""The contact sheet: every picture is there, at its place, with its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from headrace import sheet
from headrace.sheet import Card, Line, Picture, displayable, draw_sheet, write_png
from pipeline.errors import ConfigError

RED, BLUE = (250, 1, 2), (3, 4, 240)


def picture(color: tuple[int, int, int], height: int = 20, width: int = 30, *lines: Line) -> Picture:
    return Picture(image_HWC=np.full((height, width, 3), color, dtype=np.uint8), lines=lines)


def count(image: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == color).all(axis=2).sum())


@pytest.mark.parametrize("num_cards", [1, 5, 64])
def test_each_card_shows_its_pictures_enlarged_by_a_whole_factor(num_cards: int) -> None:
    """30x20 pixels fit six times into the box; none is smoothed, so their number is exact."""
    cards = [Card(pictures=(picture(RED), picture(BLUE)))] * num_cards
    drawn = draw_sheet([Line(text="a title")], cards)
    assert num_cards * 30 * 20 * 36 == count(drawn, RED) == count(drawn, BLUE)
    assert drawn.width <= 2100


def test_large_pictures_are_made_smaller_and_keep_their_form() -> None:
    drawn = draw_sheet([Line(text="a title")], [Card(pictures=(picture(RED, 600, 400),))])
    rows, columns = np.nonzero((np.asarray(drawn) == RED).all(axis=2))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    assert (208, 139) == (height, width)


def test_long_text_is_wrapped_inside_its_card() -> None:
    """Nothing is written beyond the card's edges, also of a word without spaces."""
    lines = (Line(text="x" * 300, tone="alarm"), Line(text="many words " * 40, tone="alarm"))
    drawn = draw_sheet([Line(text="t")], [Card(pictures=(picture(RED, 20, 30, *lines),))])
    pixels = np.asarray(drawn).astype(int)
    is_ink = (pixels[:, :, 0] - pixels[:, :, 1] > 60) & ~(pixels == RED).all(axis=2)
    columns = np.nonzero(is_ink.any(axis=0))[0]
    assert columns.size
    assert columns.min() >= 24
    assert columns.max() < drawn.width - 24


def test_without_a_font_of_the_system_other_letters_are_spelled_as_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own font would draw equal empty boxes for them."""
    real = ImageFont.truetype

    def no_file_of_that_name(font: Any, *arguments: Any, **options: Any) -> ImageFont.FreeTypeFont:
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return real(font, *arguments, **options)

    monkeypatch.setattr(ImageFont, "truetype", no_file_of_that_name)
    sheet._font.cache_clear()
    try:
        _, knows_all = sheet._font(13, False)
        assert not knows_all
        assert "caf\\xe9" == sheet._drawable("café", knows_all)
        assert "café" == sheet._drawable("café", True)
        draw_sheet([Line(text="café", tone="strong")], [Card(pictures=(picture(RED, 20, 30, Line(text="é" * 99)),))])
    finally:
        sheet._font.cache_clear()


@pytest.mark.parametrize(
    ("given", "expected", "note"),
    [
        (np.uint8([[[7]]]), 7, ""),
        (np.uint16([[[7 * 256 + 9]]]), 7, "16 bits, upper 8 shown"),
        (np.float32([[[0.5]]]), 128, ""),
        (np.float32([[[-1.0], [3.0]]]), 0, "float32, -1 to 3 stretched"),
        (np.float32([[[np.nan], [1.0]]]), 0, ""),
        (np.uint8([[[7, 200]]]), 7, ""),
        (np.uint8([[[7, 8, 9, 10]]]), 7, ""),
    ],
)
def test_any_wire_image_can_be_looked_at(given: np.ndarray, expected: int, note: str) -> None:
    shown, said = displayable(given)
    assert (np.uint8, (*given.shape[:2], 3)) == (shown.dtype, shown.shape)
    assert (expected, note) == (shown[0, 0, 0], said)


def test_the_file_is_whole_or_not_there(tmp_path: Path) -> None:
    drawn = draw_sheet([Line(text="t")], [Card(pictures=(picture(RED),))])
    write_png(drawn, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as read:
        assert drawn.size == read.size
    with pytest.raises(ConfigError, match="--out"):
        write_png(drawn, tmp_path / "missing" / "sheet.png")
    assert ["sheet.png"] == [path.name for path in tmp_path.iterdir()]
