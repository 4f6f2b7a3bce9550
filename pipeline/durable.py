"""Files that are whole or not there, and folders whose names are on disk.

In:  a path, its content.
Out: the file, synced; a full disk as a RunFailed that says so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from pipeline.json_lines import write_failure

PARTIAL_PREFIX = ".partial-"
"""What begins with it was being written when its process died."""


def write_whole(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    """The file is there with all its content, on disk, or as it was before.

    Not `is_synced`: readers never see half of it, but a machine that loses power may have lost it.
    """
    partial = path.with_name(PARTIAL_PREFIX + path.name)
    try:
        with partial.open("wb") as file:
            file.write(content)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        partial.rename(path)
        if is_synced:
            sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_failure(path, error) from error


def sync_folder(path: Path) -> None:
    """A rename is on disk only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def synced_sha256(path: Path) -> str:
    """The digest of a file that is on disk afterwards."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_partial(folder: Path) -> list[str]:
    """Removes what a crash left half written in a folder; the names of it."""
    left = sorted(path for path in folder.glob(f"{PARTIAL_PREFIX}*"))
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name.removeprefix(PARTIAL_PREFIX) for path in left]
