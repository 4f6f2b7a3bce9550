"""The `folder` source: one folder a class, images at any depth below it.

In:  a `FolderSource`.
Out: samples in the order of their relative paths' bytes; a class is a folder's name, classes in the order of theirs.
Never reads an image while indexing, unless `content` is set.

Taken: regular files ending in .jpg, .jpeg, .png or .webp, in any case. Left out: other endings, images beside the
class folders, and names that begin with a dot (as the shell does: editors and file managers keep thumbnails there).
Links to files and folders are followed. A link to nothing is a sample that can't be read: it is named and counted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NoReturn

from pipeline.errors import ConfigError, Problem
from pipeline.index_file import IndexBuilder, Witness, cache_key, cached_index, printable
from pipeline.job import FolderSource
from pipeline.sources.files import IndexedFiles
from pipeline.sources.split import is_on_side

IMAGE_ENDINGS = (b".jpg", b".jpeg", b".png", b".webp")


def open_folder(config: FolderSource, wanted: str = "") -> IndexedFiles:
    """The samples of a folder; the first time it is listed, later starts map the index of the first."""
    root = os.fsencode(os.path.abspath(config.path))
    if not os.path.isdir(root):
        got = "a file" if os.path.exists(root) else "nothing there"
        _refuse(root, "a folder with one folder a class", got, "correct `path`")
    key = cache_key({"path": os.fsdecode(root), **config.model_dump(mode="json", exclude={"path"})})
    return IndexedFiles(cached_index(key, lambda: _scan(config, root), wanted))


def _scan(config: FolderSource, root: bytes) -> IndexBuilder:
    builder = IndexBuilder(base=root, content=config.content)
    builder.witnesses.append(Witness.of(root))
    entries = _list(root)
    class_names = sorted(entry.name for entry in entries if _is_folder(entry))
    if not class_names:
        loose = sum(_is_image(entry.name) for entry in entries)
        got = f"{loose} images without a class folder" if loose else "no folder in it"
        _refuse(root, "one folder a class, as in cats/ and dogs/", got, "move each class's images into a folder")
    builder.classes = tuple(class_names)
    # With the slash, as in the paths: `a-b/1.png` comes before `a/1.png`.
    for label, name in sorted(enumerate(class_names), key=lambda item: item[1] + b"/"):
        num_found = 0
        for path, size in _walk(root, name, builder, (_identity(root),)):
            num_found += 1
            if is_on_side(path, config.split):
                builder.add(path, size, label)
        if not num_found:
            folder = os.path.join(root, name)
            _refuse(folder, "at least one jpg, jpeg, png or webp", "none", "add images or remove the folder")
    if not builder.sizes:
        _refuse(root, "samples on this side of the split", "none", "change `held_out` or `salt`")
    return builder


def _walk(
    root: bytes, folder: bytes, builder: IndexBuilder, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[bytes, int]]:
    """(relative path, size) below `folder` in byte order; memory is one folder's listing for each level."""
    absolute = os.path.join(root, folder)
    builder.witnesses.append(Witness.of(absolute))
    identity = _identity(absolute)
    if identity in above:
        _refuse(absolute, "folders without a loop", "a link to a folder that it lies in", "remove the link")
    # A folder sorts as its name and a slash, so that whole paths come out in byte order.
    for name, entry in sorted((entry.name + b"/" * _is_folder(entry), entry) for entry in _list(absolute)):
        path = folder + b"/" + entry.name
        if name.endswith(b"/"):
            yield from _walk(root, path, builder, (*above, identity))
        elif _is_image(name):
            yield path, _size(entry)


def _list(folder: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(b".")]
    except OSError as error:
        _refuse(folder, "a folder that can be listed", str(error.strerror), "see to its permissions")


def _identity(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _size(entry: os.DirEntry[bytes]) -> int:
    """Bytes of the file; -1 for a link to nothing and for what is no regular file: reading it fails and names it."""
    try:
        status = entry.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _refuse(folder: bytes, expected: str, got: str, way_out: str) -> NoReturn:
    raise ConfigError(Problem(file=printable(folder), line=0, path="", expected=expected, got=got, way_out=way_out))
