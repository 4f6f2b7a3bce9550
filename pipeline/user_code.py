"""Users' own code: plug-ins, factories and sources, loaded so that it can't shadow ours.

In:  a reference (`module`, `module:attribute`, `file.py`, `file.py:attribute`) and the folder it is relative to.
Out: the module, the attribute; the SHA-256 of the source that a module was loaded from, or of the file of one that
     need not be imported for it.
Never puts a user's folder before ours on sys.path: a `trainer/` or `pipeline/` beside a user's script stays theirs.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from pipeline.errors import ConfigError, Problem

PRIVATE_PREFIX = "_headrace_user_"
"""Modules loaded from a file are registered under this prefix, the file's stem and a hash of its path."""
_LOADED_DIGEST = "__headrace_source_sha256__"
"""Where a loaded module keeps the digest of its source."""
_OURS = tuple(Path(__file__).resolve().parents[1] / name for name in ("headrace", "pipeline", "trainer", "workers"))


def load_module(reference: str, base: Path) -> ModuleType:
    """The module of `reference`, the same object for the same file; any failure of it is a ConfigError.

    `base` (and the folder of a `file.py`) is appended to sys.path and stays there, since user code may import
    late. A dotted name is an ordinary import, a file is loaded under a private name.
    """
    module_part = _split(reference)[0]
    _append_to_path(base)
    if module_part.endswith(".py"):
        file = _existing_file(module_part, reference, base)
        _append_to_path(file.parent)
        module = _import_file(file, reference, base)
    else:
        module = _import_named(module_part, reference, base)
    if not hasattr(module, _LOADED_DIGEST):
        loader = module.__spec__.loader if module.__spec__ is not None else None
        # One that somebody else has imported before: its file now is the best that can be known.
        digest = loader.source_digest if isinstance(loader, _HashingLoader) else file_digest(module)
        setattr(module, _LOADED_DIGEST, digest)
    return module


def load_attribute(reference: str, base: Path) -> Any:
    """The attribute that `module:attribute` or `file.py:attribute` names; a missing one names the nearest."""
    module_part, attribute = _split(reference)
    if not attribute:
        raise _refusal(
            reference,
            expected="module:attribute or file.py:attribute",
            got=repr(reference),
            way_out=f"name what to call, as in {module_part or 'file.py'}:make",
        )
    found: Any = load_module(reference, base)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise _refusal(
                reference,
                expected=f"an attribute of {module_part}",
                got=f"{module_part} has no {name!r}",
                way_out=_did_you_mean(name, public),
            )
        found = getattr(found, name)
    return found


def source_digest(reference: str, base: Path) -> str:
    """Hex SHA-256 of the source file of the module in `reference`, which is not imported.

    Covers that one file only, not what it imports; of a package, its `__init__.py`.
    """
    module_part = _split(reference)[0]
    if module_part.endswith(".py"):
        file = _existing_file(module_part, reference, base)
    else:
        _append_to_path(base)
        file = _find_source(module_part, reference, base)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise _refusal(reference, expected="a readable source file", got=f"{file}: {error.strerror}") from error


def loaded_digest(module: ModuleType) -> str:
    """Hex SHA-256 of the source that `load_module` has run, whatever the file holds by now; "" for other modules."""
    return str(getattr(module, _LOADED_DIGEST, ""))


def file_digest(module: ModuleType) -> str:
    """Hex SHA-256 of a loaded module's source file as it is now; "" if it has none."""
    try:
        return hashlib.sha256(Path(module.__file__ or "").read_bytes()).hexdigest()
    except (AttributeError, OSError):
        return ""


def plugin_name(reference: str) -> str:
    """The name a plug-in is known by in recipes: the module's name, or the stem of a `file.py`."""
    module_part = _split(reference)[0]
    return Path(module_part).stem if module_part.endswith(".py") else module_part


def _split(reference: str) -> tuple[str, str]:
    module_part, _, attribute = reference.partition(":")
    names_a_module = all(part.isidentifier() for part in module_part.split("."))
    if not names_a_module and not module_part.endswith(".py"):
        raise _refusal(
            reference,
            expected="module, module:attribute, file.py or file.py:attribute",
            got=repr(reference),
            way_out="write the module's full name, or the path of its file",
        )
    return module_part, attribute


def _append_to_path(folder: Path) -> None:
    name = str(folder.resolve())
    if name not in sys.path:
        sys.path.append(name)


class _HashingLoader(SourceFileLoader):
    """Runs a source file as it is now, and knows the digest of the very bytes that it ran."""

    source_digest = ""

    def get_code(self, fullname: str) -> CodeType:
        # Never from a .pyc: a second edit within a second, of equal size, leaves the first one's valid.
        source = self.get_data(self.path)
        self.source_digest = hashlib.sha256(source).hexdigest()
        code: CodeType = self.source_to_code(source, self.path)
        return code


class _HashingFinder:
    """Finds one module where it would be found anyway, and has it loaded by a `_HashingLoader`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _HashingLoader(fullname, spec.loader.path)
        return spec


@contextmanager
def _hashing(name: str) -> Iterator[None]:
    finder = _HashingFinder(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _existing_file(module_part: str, reference: str, base: Path) -> Path:
    file = (base / module_part).resolve()
    if not os.path.isfile(file):  # unlike Path.is_file it is also False for a name that is too long
        siblings = [path.name for path in file.parent.glob("*.py")] if os.path.isdir(file.parent) else []
        raise _refusal(
            reference,
            expected="a Python file, relative to the folder of the file that names it",
            got=f"no file {file}",
            way_out=_did_you_mean(file.name, siblings),
        )
    return file


def _import_file(file: Path, reference: str, base: Path) -> ModuleType:
    name = f"{PRIVATE_PREFIX}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file, loader=_HashingLoader(name, str(file)))
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and pickle look a class's module up in sys.modules.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failure_inside(error, reference, base, file) from error
    return module


def _import_named(name: str, reference: str, base: Path) -> ModuleType:
    # A file written since the last import (a notebook's, a test's) is found only after this.
    importlib.invalidate_caches()
    try:
        with _hashing(name):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(missing + ".")):
            raise _not_found(name, reference, base) from error
        raise _failure_inside(error, reference, base, None) from error


def _find_source(name: str, reference: str, base: Path) -> Path:
    top, *rest = name.split(".")
    importlib.invalidate_caches()
    try:
        # Of a top-level name only: for a dotted one find_spec would import the parents.
        spec = importlib.util.find_spec(top)
    except ValueError:
        spec = None
    if spec is None:
        raise _not_found(name, reference, base)
    found = Path(spec.origin) if spec.has_location and spec.origin else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for part in rest:
        candidates = [path for folder in folders for path in (folder / part / "__init__.py", folder / f"{part}.py")]
        found = next((path for path in candidates if path.is_file()), None)
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
        if found is None and not folders:
            raise _not_found(name, reference, base)
    if found is None or found.suffix != ".py":
        raise _refusal(reference, expected="a module with a Python source file", got=f"{name} has none")
    return found


def _not_found(name: str, reference: str, base: Path) -> ConfigError:
    siblings = [path.stem for path in base.glob("*.py")] if base.is_dir() else []
    hint = _did_you_mean(name, siblings)
    return _refusal(
        reference,
        expected=f"an importable module (installed, or in {base})",
        got=f"no module named {name!r}",
        way_out=hint or f"install it, or give its file: {name.rpartition('.')[2]}.py",
    )


def _failure_inside(error: BaseException, reference: str, base: Path, file: Path | None) -> ConfigError:
    place, line = place_of(error, base.resolve(), file)
    got = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ConfigError(
        Problem(
            file=place or reference,
            line=line,
            path=reference,
            expected="a module that imports without an error",
            got=got,
            way_out="correct it there; the module must be importable on its own",
        )
    )


def place_of(error: BaseException, base: Path, file: Path | None) -> tuple[str, int]:
    """File and line of the last frame that is in `file` or below `base`, else of the last there is; "" if none."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 0
    # The user's own last line beats a line deep inside a library it called.
    return own_place(error, base, file) or next(reversed(_frames(error)), ("", 0))


def own_place(error: BaseException, base: Path, file: Path | None) -> tuple[str, int] | None:
    """File and line of the last frame in `file` or below `base` that is neither an installed library's nor ours."""
    for name, line in reversed(_frames(error)):
        path = Path(name)
        if any(path.is_relative_to(folder) for folder in _OURS):
            continue
        is_below = path.is_relative_to(base) and "site-packages" not in path.relative_to(base).parts
        if path == file or is_below:
            return name, line
    return None


def _frames(error: BaseException) -> list[tuple[str, int]]:
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    return [(name, line) for name, line in frames if name != __file__ and not name.startswith("<")]


def _refusal(reference: str, *, expected: str, got: str, way_out: str = "") -> ConfigError:
    return ConfigError(Problem(file=reference, line=0, path="", expected=expected, got=got, way_out=way_out))


def _did_you_mean(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]}?" if nearest else ""
