"""The `digits` source: the 1,797 handwritten digits that scikit-learn ships, 8x8 and grey.

In:  a `DigitsSource`.
Out: images (8, 8) uint8 from 0 to 255, labels 0 to 9.
Never imports scikit-learn: its datasets module takes a worker 1.5 s, for 57 kB of data; so the file is read directly.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import NoReturn

import numpy as np

from pipeline.errors import ConfigError, Problem
from pipeline.job import DigitsSource
from pipeline.sources.protocol import RawSample
from pipeline.sources.split import rows_on_side

_PLACE_IN_SCIKIT_LEARN = Path("datasets", "data", "digits.csv.gz")
_LARGEST_VALUE = 16  # a pixel counts the dots that were set in a 4x4 block


class Digits:
    """Handwritten digits, the same for every version of scikit-learn with the same fingerprint."""

    classes = tuple("0123456789")

    def __init__(self, images_NHW: np.ndarray, labels_N: np.ndarray) -> None:
        self._images_NHW = images_NHW
        self._labels_N = labels_N
        content = images_NHW.tobytes() + labels_N.astype("<i4").tobytes()
        self._fingerprint = hashlib.sha256(b"headrace digits 1" + content).hexdigest()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._labels_N)

    def read(self, index: int) -> RawSample:
        return RawSample(self._images_NHW[index], int(self._labels_N[index]))

    def describe(self, index: int) -> str:
        return f"digits[{index}]"


def open_digits(config: DigitsSource) -> Digits:
    """All digits, or one side of the split; without scikit-learn a ConfigError that says what to install."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        _refuse("it is not installed")
    file = Path(package.origin).parent / _PLACE_IN_SCIKIT_LEARN
    try:
        with gzip.open(file, "rt", encoding="ascii") as opened:
            table = np.loadtxt(opened, delimiter=",", dtype=np.int32, ndmin=2)
    except (OSError, ValueError) as error:
        _refuse(f"no readable {_PLACE_IN_SCIKIT_LEARN} in it ({error})")
    rows = np.asarray(rows_on_side(len(table), config.split))
    if not len(rows):
        _refuse("no digit on this side of the split")
    values = table[rows, :-1].reshape(-1, 8, 8)
    # 255/16 is no whole number: the nearest value, in integers so that no rounding mode matters.
    images_NHW = ((values * 255 + _LARGEST_VALUE // 2) // _LARGEST_VALUE).astype(np.uint8)
    return Digits(images_NHW, table[rows, -1])


def _refuse(got: str) -> NoReturn:
    raise ConfigError(
        Problem(
            file="source `digits`",
            line=0,
            path="",
            expected="scikit-learn with its handwritten digits",
            got=got,
            way_out="pip install headrace[digits]",
        )
    )
