"""A run's checkpoints as folders: written whole, verified byte by byte, thinned out.

In:  functions that write a checkpoint's files; a step.
Out: checkpoints/step-00000200 with state.json; what is wrong with a damaged one.
Never looks into the tensors, never imports torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.durable import PARTIAL_PREFIX, remove_partial, sync_folder, synced_sha256, write_whole
from pipeline.json_lines import write_failure

_REPLACED_PREFIX = ".replaced-"
_SURPLUS_PREFIX = ".surplus-"
"""Of a checkpoint that is being thinned out: what a kill leaves of it is no loss to tell of."""
_DAMAGED_PREFIX = "damaged-"
_NAME = re.compile(r"step-([0-9]{8,})")


class Damaged(Exception):
    """A checkpoint is not as it was written; the text says which file and how."""


def checkpoint_name(step: int) -> str:
    """The folder's name: `step` steps were done."""
    return f"step-{step:08d}"


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps that there is a checkpoint of, rising; good or not."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(match[1]) for path in checkpoints.iterdir() if (match := _NAME.fullmatch(path.name)))


def write_checkpoint(folder: Path, write_files: Mapping[str, Callable[[Path], None]], state: Mapping[str, Any]) -> None:
    """`folder` appears whole or not at all, and replaces one of its name; state.json has every file's SHA-256."""
    partial = folder.with_name(PARTIAL_PREFIX + folder.name)
    replaced = folder.with_name(_REPLACED_PREFIX + folder.name)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        sha256_by_file = {}
        for name, write in write_files.items():
            write(partial / name)
            sha256_by_file[name] = synced_sha256(partial / name)
        write_whole(partial / "state.json", _state_text({**state, "files_sha256": sha256_by_file}))
        if folder.exists():
            folder.rename(replaced)  # between these two lines the older one stands under this name only: see `tidy`
        partial.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise write_failure(folder, error) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json; Damaged unless it and every file it names are as they were written."""
    state = _read_state_text(folder / "state.json")
    for name, digest in state["files_sha256"].items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from error
        if found != digest:
            raise Damaged(f"{name}: its SHA-256 is {found[:16]}…, state.json says {digest[:16]}…")
    return state


def tidy(checkpoints: Path) -> list[str]:
    """What a crash left half done is removed or put back; the names of the checkpoints that it left half written."""
    if not checkpoints.is_dir():
        return []
    for surplus in checkpoints.glob(f"{_SURPLUS_PREFIX}*"):
        shutil.rmtree(surplus)
    for replaced in checkpoints.glob(f"{_REPLACED_PREFIX}*"):
        whole = checkpoints / replaced.name.removeprefix(_REPLACED_PREFIX)
        if whole.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(whole)
    return remove_partial(checkpoints)


def keep_only(checkpoints: Path, num_newest: int, also: Iterable[int]) -> None:
    """All but the newest checkpoints, and those of the steps `also`, are removed."""
    steps = checkpoint_steps(checkpoints)
    for step in set(steps[:-num_newest]) - set(also):
        path = checkpoints / checkpoint_name(step)
        surplus = path.with_name(_SURPLUS_PREFIX + path.name)
        try:
            path.rename(surplus)  # under its own name it is whole or not there
            shutil.rmtree(surplus)
        except OSError as error:
            raise write_failure(path, error) from error


def set_aside(checkpoints: Path, steps: Iterable[int]) -> None:
    """Damaged checkpoints get another name, so that they are neither resumed from nor counted among those kept."""
    for step in steps:
        path = checkpoints / checkpoint_name(step)
        aside = checkpoints / f"{_DAMAGED_PREFIX}{path.name}"
        number = 1
        while aside.exists():
            number += 1
            aside = checkpoints / f"{_DAMAGED_PREFIX}{path.name}-{number}"
        os.rename(path, aside)


def _state_text(state: Mapping[str, Any]) -> bytes:
    """Readable JSON, whose first field is the digest of the rest: a flipped bit in it must not pass unnoticed."""
    body = msgspec.json.encode(state)
    digest = hashlib.sha256(body).hexdigest()
    whole = b'{"sha256_of_the_rest":"%s",' % digest.encode() + body[1:]
    return msgspec.json.format(whole, indent=2) + b"\n"


def _read_state_text(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
        state = msgspec.json.decode(text, type=dict[str, Any])
        digest = state.pop("sha256_of_the_rest")
        files = msgspec.convert(state["files_sha256"], dict[str, str])
    except OSError as error:
        raise Damaged(f"state.json: {error.strerror}") from error
    except KeyError as error:
        raise Damaged(f"state.json: it has no {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"state.json: {error}") from error
    # Written again from what was read: only a state that says the same gives the same text.
    if hashlib.sha256(msgspec.json.encode(state)).hexdigest() != digest or _state_text(state) != text:
        raise Damaged("state.json: it is not as it was written (its digest differs)")
    if not all(Path(name).name == name for name in files):
        raise Damaged("state.json: it names a file outside the checkpoint's folder")
    return state
