"""The `manifest` source: a CSV file with one row a sample.

In:  a `ManifestSource`.
Out: samples in the order of their paths' bytes (then labels), whatever the order of the rows.
Never reads an image while indexing, unless `content` is set.

Paths are relative to the CSV. Absolute paths and `..` are taken too: the list is the user's own, and says where the
user's files are (the fingerprint then holds those paths as written). A row that is listed twice is two samples.
Labels: if every label is a whole number, it is the class itself, and the classes are 0 to the largest; else labels
are names, and the classes are the distinct names in the order of their bytes.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator
from typing import NoReturn

from pipeline.errors import ConfigError, Problem
from pipeline.index_file import IndexBuilder, Witness, cache_key, cached_index
from pipeline.job import ManifestSource
from pipeline.sources.files import IndexedFiles
from pipeline.sources.split import is_on_side

MAX_NUMBERED_CLASSES = 65_536
"""A number label above this is a mistake (an id, a year with a day): every smaller number would become a class."""
MAX_PROBLEMS = 20
"""Wrong rows named in one message."""


def open_manifest(config: ManifestSource, wanted: str = "") -> IndexedFiles:
    """The samples of a CSV; the first time each row's file is looked up, later starts map the index of the first."""
    file = os.path.abspath(config.path)
    if not os.path.isfile(file):
        _refuse(config, 0, "", "a CSV file", "a folder" if os.path.isdir(file) else "nothing there", "correct `path`")
    key = cache_key({"path": file, **config.model_dump(mode="json", exclude={"path"})})
    return IndexedFiles(cached_index(key, lambda: _scan(config, file), wanted))


def _scan(config: ManifestSource, file: str) -> IndexBuilder:
    builder = IndexBuilder(base=os.fsencode(os.path.dirname(file)), content=config.content)
    builder.witnesses.append(Witness.of(os.fsencode(file)))
    samples: list[tuple[bytes, str, int]] = []
    problems: list[Problem] = []
    for line, path_text, label in _rows(config):
        path = path_text.encode("utf-8", "surrogateescape")
        size, fault = _size(os.path.join(builder.base, path))
        if not path_text:
            fault = "an empty path"
        if fault:
            problems.append(_problem(config, line, config.path_column, "the path of a file", fault, ""))
        if not label:
            problems.append(_problem(config, line, config.label_column, "a class name or number", "nothing", ""))
        if len(problems) >= MAX_PROBLEMS:
            break
        samples.append((path, label, size))
    if problems:
        raise ConfigError(problems)
    if not samples:
        _refuse(config, 0, "", "at least one row below the column names", "none", "add rows")
    builder.classes, label_numbers = _classes(config, {label for _, label, _ in samples})
    for path, label, size in sorted(samples):
        if is_on_side(path, config.split):
            builder.add(path, size, label_numbers[label])
    if not builder.sizes:
        _refuse(config, 0, "", "samples on this side of the split", "none", "change `held_out` or `salt`")
    return builder


def _rows(config: ManifestSource) -> Iterator[tuple[int, str, str]]:
    """(line, path, label) of each row that is not empty."""
    # utf-8-sig drops the mark that spreadsheets put first; surrogateescape carries file names that are not UTF-8.
    with open(config.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        reader = csv.reader(opened, strict=True)
        try:
            columns = next(reader, [])
            for column in (config.path_column, config.label_column):
                if columns.count(column) != 1:
                    got = f"{columns.count(column)} of them among: {', '.join(columns) or 'no columns'}"
                    way_out = "name the columns in the first row, or set path_column and label_column"
                    _refuse(config, 1, "", f"one column {column!r}", got, way_out)
            path_at, label_at = columns.index(config.path_column), columns.index(config.label_column)
            for row in reader:
                if row and len(row) != len(columns):
                    got = f"{len(row)} values"
                    _refuse(config, reader.line_num, "", f"{len(columns)} values, one a column", got, "quote commas")
                if row:
                    yield reader.line_num, row[path_at], row[label_at].strip()
        except csv.Error as error:
            _refuse(config, reader.line_num, "", "a row of comma-separated values", str(error), "")


def _size(path: bytes) -> tuple[int, str]:
    """Bytes of the file, and what is wrong with it if anything."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return -1, f"{os.fsdecode(path)!r}: {getattr(error, 'strerror', None) or error}"
    return status.st_size, "" if stat.S_ISREG(status.st_mode) else f"{os.fsdecode(path)!r}: no regular file"


def _classes(config: ManifestSource, labels: set[str]) -> tuple[tuple[bytes, ...], dict[str, int]]:
    """Class names, and the number of each label."""
    if all(label.isascii() and label.isdigit() for label in labels):
        numbers = {label: int(label) for label in labels}
        largest = max(numbers.values())
        if largest >= MAX_NUMBERED_CLASSES:
            expected = f"class numbers below {MAX_NUMBERED_CLASSES}"
            _refuse(config, 0, config.label_column, expected, str(largest), "number the classes 0, 1, 2, ...")
        return tuple(b"%d" % number for number in range(largest + 1)), numbers
    names = sorted(label.encode("utf-8", "surrogateescape") for label in labels)
    return tuple(names), {name.decode("utf-8", "surrogateescape"): number for number, name in enumerate(names)}


def _problem(config: ManifestSource, line: int, path: str, expected: str, got: str, way_out: str) -> Problem:
    got = got.encode("utf-8", "backslashreplace").decode()
    return Problem(file=str(config.path), line=line, path=path, expected=expected, got=got, way_out=way_out)


def _refuse(config: ManifestSource, line: int, path: str, expected: str, got: str, way_out: str) -> NoReturn:
    raise ConfigError(_problem(config, line, path, expected, got, way_out))
