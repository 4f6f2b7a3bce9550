"""The `plugin` source: an object of the source protocol, made by the user's own factory.

In:  a `PluginSource`, the folder that its factory is looked for in.
Out: what the factory returned, checked once for the protocol's shape.
Never catches what `read` raises: OSError, MemoryError and SampleError mean what the protocol says.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, cast

from pipeline.errors import ConfigError, HeadraceError, Problem
from pipeline.job import PluginSource
from pipeline.sources.protocol import Source
from pipeline.user_code import load_attribute


def open_plugin(config: PluginSource, base: Path) -> Source:
    """The factory's object; a factory that fails or returns something else is a ConfigError naming it."""
    factory = load_attribute(config.factory, base)
    if not callable(factory):
        _refuse(config, "a function or class", type(factory).__name__)
    try:
        source = factory(**config.options)
    except (HeadraceError, MemoryError):
        raise
    except Exception as error:
        options = ", ".join(config.options) or "no options"
        got = f"{type(error).__name__}: {error}"
        raise ConfigError(_problem(config, f"a factory that works with {options}", got)) from error
    _check(config, source)
    return cast(Source, source)


def _check(config: PluginSource, source: object) -> None:
    missing = [name for name in ("__len__", "read", "describe") if not callable(getattr(source, name, None))]
    missing += [name for name in ("fingerprint", "classes") if not hasattr(source, name)]
    if missing:
        _refuse(config, "len, read, describe, fingerprint and classes", f"{type(source).__name__} without {missing}")
    found = cast(Source, source)
    if not isinstance(found.fingerprint, str) or not found.fingerprint:
        _refuse(config, "a fingerprint: a string that names the content", repr(found.fingerprint))
    if not isinstance(found.classes, tuple | list) or not all(isinstance(name, str) for name in found.classes):
        _refuse(config, "classes: a tuple of names", repr(found.classes))
    if len(found) < 1:
        _refuse(config, "at least one sample", "none")


def _problem(config: PluginSource, expected: str, got: str) -> Problem:
    way_out = "see pipeline/sources/protocol.py for what a source is"
    return Problem(file=config.factory, line=0, path="factory", expected=expected, got=got, way_out=way_out)


def _refuse(config: PluginSource, expected: str, got: str) -> NoReturn:
    raise ConfigError(_problem(config, expected, got))
