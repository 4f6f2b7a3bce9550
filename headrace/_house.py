"""Our packages `pipeline`, `workers` and `trainer`, also where a user has folders of the same names.

A script's own folder stands first on sys.path, so beside a user's `trainer/` a plain `import trainer` inside headrace
would find theirs. `own_house` imports ours from where headrace itself lies, and afterwards gives the user's names
back. Then both work: ours hold references to each other, the user's `import trainer` finds the user's.
Where nothing is in the way, nothing is done. A process of our own begins with `house_command` and `house_environment`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
"""Where headrace, pipeline, workers and trainer stand side by side."""

_NAMES = ("pipeline", "workers", "trainer")
_lock = threading.RLock()
_ours: dict[str, ModuleType] = {}
_depth = 0


@contextmanager
def own_house() -> Iterator[None]:
    """Inside, `import trainer` and the like find ours; outside they find the user's again."""
    global _depth
    with _lock:
        if _depth or not _is_shadowed():
            yield
            return
        theirs = _take_out()
        sys.modules.update(_ours)
        sys.path.insert(0, str(ROOT))
        importlib.invalidate_caches()
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
            sys.path.remove(str(ROOT))
            _ours.update(_take_out())
            sys.modules.update(theirs)
            importlib.invalidate_caches()


def house_command(module: str, *arguments: str) -> list[str]:
    """Runs a module of ours with this Python; to be started in `house_environment`."""
    # -P: without the current folder on sys.path, where a user may have a `trainer/`.
    return [sys.executable, "-P", "-m", module, *arguments]


def house_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, and `more`, where our packages are found first and whatever the user had on PYTHONPATH next."""
    environment = {**os.environ, **(more or {})}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    return environment


def _is_shadowed() -> bool:
    """True if any of our names is loaded from elsewhere, or would be."""
    for name in _NAMES:
        loaded = sys.modules.get(name)
        if loaded is not None:
            found = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", [])), None)
        else:
            spec = PathFinder.find_spec(name)
            found = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or []), None)
        if found is not None and ROOT not in Path(found).resolve().parents:
            return True
    return False


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in _NAMES]
    return {name: sys.modules.pop(name) for name in names}
