"""The script that a clean clone must pass: what may run out of time and what may not; with stubs for all it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTEST = """#!/bin/sh
echo "seeds ${TEST_CHAOS_SEEDS:-all}: $*" >> calls
case "$*" in
    *--deselect*) exit $OTHERS ;;
    *) exit $CHAOS ;;
esac
"""
FIRST = ("tests/acceptance/test_chaos.py", "tests/acceptance/test_readme.py")
OUT_OF_TIME = 124
"""Of `timeout`, which ends pytest; the stub ends so itself."""


@pytest.mark.parametrize(
    ("chaos", "others", "code", "num_steps"),
    [(0, 0, 0, 2), (0, OUT_OF_TIME, 0, 2), (0, 1, 1, 2), (1, 0, 1, 1), (OUT_OF_TIME, 0, OUT_OF_TIME, 1)],
)
def test_a_chaos_seed_must_pass_and_only_the_other_long_tests_may_be_cut_off(
    chaos: int, others: int, code: int, num_steps: int, tmp_path: Path
) -> None:
    """A seed that ran out of time has shown nothing."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    for name, text in {".venv/bin/pytest": PYTEST, "bin/make": "#!/bin/sh\n"}.items():
        stub = tmp_path / name
        stub.parent.mkdir(parents=True)
        stub.write_text(text)
        stub.chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CHAOS": str(chaos), "OTHERS": str(others)}
    environment.pop("TEST_CHAOS_SEEDS", None)

    ended = subprocess.run([tmp_path / ".ci/run"], env=environment, capture_output=True, text=True)

    steps = (tmp_path / "calls").read_text().splitlines()
    assert ended.returncode == code, ended.stderr
    assert steps[0] == f"seeds 1: -m long {' '.join(FIRST)}"
    rest = " ".join(f"--deselect={path}" for path in FIRST)
    assert steps[1:] == [f"seeds all: -m long {rest} --maxfail=1"][: num_steps - 1]
