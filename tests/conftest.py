"""What every test starts from: users' code that an earlier test loaded is forgotten."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.sizes import cases

# The suite starts hundreds of processes. Where Python is told to write no bytecode, as in many containers, each would
# compile our 290 files again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A deadline is an absolute time, and so is what hypothesis calls slow: they say more of the machine than of the code.
settings.register_profile(
    "headrace", max_examples=cases(100), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("headrace")


@pytest.fixture(autouse=True)
def _users_code_is_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Loading users' code appends their folder to sys.path and keeps their modules, as it should in a real process."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    written_by_tests = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(written_by_tests):
            del sys.modules[name]
