"""`headrace demo-data DIR`: writes the demo's image folder.

In:  a folder that is absent, empty, or holds the finished demo data.
Out: DIR/train/CLASS/*.jpg, DIR/held_out/CLASS/*.jpg, DIR/LICENSES.md and the stamp demo-data.json.
Never touches a folder with anything else in it. All is written beside DIR and renamed at the end: DIR is whole or
not there, and what an interrupted run left is removed by the next.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from pipeline.errors import ConfigError, Problem
from pipeline.extras import DEMO, require_extras

STAMP = "demo-data.json"
FORMAT = 1
"""Raised whenever other images would be written."""


def demo_data(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must be absent or empty.")],
) -> None:
    """Writes a small image data set, cut from free photographs, to train and try things on."""
    console = Console()
    if _is_finished(directory):
        console.print(f"{directory} already has the demo images: nothing to do", soft_wrap=True)
        return
    if directory.is_dir() and any(directory.iterdir()):
        raise _refusal(directory, "an absent or empty folder", "a folder with other files in it", "name another folder")
    if directory.exists() and not directory.is_dir():
        raise _refusal(directory, "a folder", "a file", "name another folder")
    require_extras("headrace demo-data", DEMO)
    num_images, nbytes = _write(directory, console)
    console.print(f"{directory}: wrote {num_images} JPEGs, {nbytes / 1e6:.1f} MB", soft_wrap=True)
    console.print("  train/ and held_out/ (from separate regions), one folder a class; sources in LICENSES.md")


def _is_finished(directory: Path) -> bool:
    """True if the folder has our stamp and every image; another version's data, or a part of it, is refused."""
    try:
        stamp = json.loads((directory / STAMP).read_bytes())
    except (OSError, ValueError):
        return False
    num_found = sum(1 for _ in directory.glob("*/*/*.jpg"))
    if stamp == {"format": FORMAT, "num_images": num_found}:
        return True
    way_out = "delete the folder and run this again"
    raise _refusal(directory, f"all of the demo data, format {FORMAT}", f"{num_found} images, stamp {stamp}", way_out)


def _write(directory: Path, console: Console) -> tuple[int, int]:
    """Number of images and their bytes."""
    from headrace import demo_images  # needs Pillow, which is there once scikit-image is

    target = directory.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        _lock(descriptor, directory)
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        total_nbytes = 0
        total = demo_images.num_images()
        quiet = not console.is_terminal
        for name, encoded in track(
            demo_images.make_images(), "cutting images", total, console=console, transient=True, disable=quiet
        ):
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            total_nbytes += file.write_bytes(encoded)
        (partial / "LICENSES.md").write_text(demo_images.licenses_text(), encoding="utf-8")
        stamp = {"format": FORMAT, "num_images": total}
        (partial / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
        partial.rename(target)  # replaces an empty folder, fails on any other
    finally:
        os.close(descriptor)
    return total, total_nbytes


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise _refusal(directory, "one writer", "another demo-data is writing it", "wait until it is done") from error


def _refusal(directory: Path, expected: str, got: str, way_out: str) -> ConfigError:
    return ConfigError(Problem(file=str(directory), line=0, path="", expected=expected, got=got, way_out=way_out))
