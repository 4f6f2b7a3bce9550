"""The library: `Stream` inside somebody's own loop, wherever that loop runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.home import GONE_WITHIN_S, Home, small_job
from tests.processes import ROOT, run_headrace
from workers.environment import kernel_environment

SIX_LINES = """\
from headrace import Stream
with Stream("job.yaml", ["train.epochs=1"], workers=1) as stream:
    for batch in stream:
        print(batch.step, tuple(batch.images.shape), batch.digest)
"""
THEIR_TRAINER = """\
from . import helper
def name():
    import trainer.late
    return "their trainer, " + trainer.late.NAME + ", " + helper.NAME
"""


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


def start_python(home: Home, folder: Path, *arguments: str, script: str = "") -> subprocess.Popen[str]:
    """A user's own Python; -W error as in their tests, and headrace found as if it was installed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        # With workers' kernels: NumPy has others by itself on some machines, and a stream without workers says so.
        env={**os.environ, **kernel_environment(), **home.environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(script)
    process.stdin.close()
    process.stdin = None
    return process


def run_python(home: Home, folder: Path, *arguments: str, script: str = "") -> str:
    """What it printed; it must end well, say nothing on stderr and leave nothing."""
    out, err = start_python(home, folder, *arguments, script=script).communicate(timeout=120)
    if "-i" not in arguments:  # an interactive one prints its prompts there
        assert err == ""
    assert "Traceback" not in err, err
    home.assert_empty_soon()
    return out


def run_script(home: Home, folder: Path, text: str) -> list[str]:
    (folder / "script.py").write_text(text)
    return run_python(home, folder, "script.py").splitlines()


def write_their_packages(folder: Path) -> None:
    """Packages with the names of ours; one imports itself late and from a sibling."""
    for name in ("trainer", "pipeline", "workers"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"NAME = 'their {name}'\n")
    (folder / "trainer/__init__.py").write_text(THEIR_TRAINER)
    (folder / "trainer/helper.py").write_text("NAME = 'helper'\n")
    (folder / "trainer/late.py").write_text("NAME = 'late'\n")


@pytest.mark.parametrize(
    "mode", ["script.py", pytest.param("-", marks=pytest.mark.long), pytest.param("-i", marks=pytest.mark.long)]
)
def test_six_lines_train_anywhere(mode: str, home: Home, tmp_path: Path) -> None:
    """An unguarded script, `python -` and an interactive interpreter: no main guard, no file to import again."""
    small_job(tmp_path)
    (tmp_path / "script.py").write_text(SIX_LINES)
    assert len(SIX_LINES.splitlines()) <= 6

    out = run_python(home, tmp_path, mode, script="" if mode == "script.py" else SIX_LINES + "\n")

    digest = run_headrace(
        "digest", "job.yaml", "--batches", "8", "--workers", "0", folder=tmp_path, environment=home.environment
    )
    expected = [f"{step} (32, 3, 32, 32) {line.split()[-1]}" for step, line in enumerate(digest.out.splitlines())]
    assert len(expected) == 8
    assert out.splitlines() == expected


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_folder_with_packages_of_our_names_keeps_both_working(
    ours_first: bool, num_workers: int, home: Home, tmp_path: Path
) -> None:
    """A user's `trainer/` beside the script is likely; theirs stays theirs, and ours finds ours, late imports too."""
    small_job(tmp_path)
    write_their_packages(tmp_path)
    imports = ["from headrace import Stream", "import trainer, pipeline, workers"]
    lines = run_script(
        home,
        tmp_path,
        "\n".join(imports if ours_first else imports[::-1])
        + f"""
with Stream("job.yaml", ["train.epochs=1"], workers={num_workers}) as stream:
    print(trainer.name())
    print(sum(1 for batch in stream))
    import trainer as again
    from workers import NAME
    print(again is trainer, NAME, pipeline.NAME)
""",
    )
    assert lines == ["their trainer, late, helper", "8", "True their workers their pipeline"]


@pytest.mark.long
@pytest.mark.parametrize("reference", ["model.py:make", "model:make"])
def test_the_command_works_from_a_folder_with_packages_of_our_names(reference: str, home: Home, tmp_path: Path) -> None:
    """`python -m headrace` puts the folder first on sys.path; a model factory from there is the user's own code."""
    job = small_job(tmp_path, epochs=1)
    write_their_packages(tmp_path)
    (tmp_path / "model.py").write_text(
        "import math\nfrom torch import nn\n"
        "def make(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))\n"
    )
    model = f'model={{"kind": "factory", "factory": "{reference}"}}'
    process = start_python(home, tmp_path, "-m", "headrace", "train", job.name, "--workers", "1", "--set", model)
    out, err = process.communicate(timeout=120)

    assert (process.returncode, err) == (0, "")
    assert "Run finished" in out
    home.assert_empty_soon()


@pytest.mark.long
def test_two_streams_in_one_process_do_not_disturb_each_other(home: Home, tmp_path: Path) -> None:
    """Each has its own services; taken in turns they give the same batches."""
    small_job(tmp_path)
    lines = run_script(
        home,
        tmp_path,
        """
from headrace import Stream
first, second = (Stream("job.yaml", ["train.epochs=1"], workers=1) for _ in range(2))
pairs = list(zip(first, second, strict=True))
print(len(pairs), all(a.digest == b.digest and a.images.equal(b.images) for a, b in pairs))
first.close()
first.close()
second.close()
""",
    )
    assert lines == ["8 True"]


@pytest.mark.long
def test_a_loop_that_breaks_or_raises_can_go_on_where_it_was(home: Home, tmp_path: Path) -> None:
    """Each batch exactly once, whatever the user's loop does between two of them."""
    small_job(tmp_path)
    lines = run_script(
        home,
        tmp_path,
        """
from headrace import Stream
steps = []
with Stream("job.yaml", ["train.epochs=1"], workers=1) as stream:
    for batch in stream:
        steps.append(batch.step)
        break
    try:
        for batch in stream:
            steps.append(batch.step)
            raise ArithmeticError("theirs")
    except ArithmeticError:
        pass
    steps += [batch.step for batch in stream]
print(steps)
""",
    )
    assert lines == [str(list(range(8)))]


def test_an_error_in_the_loop_is_the_users_own_and_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """Their traceback, not one of ours, and no service that outlives it, even without `with`."""
    small_job(tmp_path)
    script = """
from headrace import Stream
stream = Stream("job.yaml", workers=1)
for batch in stream:
    raise ArithmeticError("theirs")
"""
    process = start_python(home, tmp_path, "-c", script)
    _, err = process.communicate(timeout=120)

    assert process.returncode == 1
    assert err.splitlines()[-1] == "ArithmeticError: theirs"
    assert "headrace/" not in err
    home.assert_empty_soon()


@pytest.mark.long
def test_a_stream_that_is_forgotten_or_left_open_ends_its_services(home: Home, tmp_path: Path) -> None:
    """Forgotten: at once, while the program goes on. Left open: at the interpreter's end, which does not hang."""
    small_job(tmp_path)
    lines = run_script(
        home,
        tmp_path,
        """
import gc, os, psutil
from headrace import Stream
forgotten = Stream("job.yaml", workers=1)
batch = next(iter(forgotten))
del forgotten
gc.collect()
print(len(psutil.Process().children(recursive=True)))
left_open = Stream("job.yaml", workers=1)
batches = iter(left_open)
print(next(batches).step)
""",
    )
    assert lines == ["0", "0"]


@pytest.mark.long
def test_forks_of_the_users_process_neither_break_nor_hang(home: Home, tmp_path: Path) -> None:
    """A DataLoader's workers inherit our descriptors and objects: their ends must not end what is their parent's, and
    one that iterates is told, since it has no receiver thread and would wait until the stall timeout."""
    small_job(tmp_path)
    lines = run_script(
        home,
        tmp_path,
        """
import os, sys, torch
from torch.utils.data import DataLoader, TensorDataset
from headrace import Stream
with Stream("job.yaml", ["train.epochs=2"], workers=1) as stream:
    batches = iter(stream)
    next(batches)
    loader = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=4, num_workers=1, multiprocessing_context="fork")
    print([tuple(batch.shape) for (batch,) in loader], flush=True)
    child = os.fork()
    if child == 0:
        try:
            for batch in stream:
                pass
        except Exception as error:
            print(str(error).splitlines()[0], flush=True)
        sys.exit()  # runs the finalizers that it inherited, the stream's included
    os.waitpid(child, 0)
    print(1 + sum(1 for batch in batches))
""",
    )
    assert lines == [
        "[(4,), (4,)]",
        "this process was forked from the one that opened the stream, and a stream can't be shared",
        "16",
    ]


@pytest.mark.long
def test_a_forked_child_that_outlives_a_killed_trainer_keeps_no_service_alive(home: Home, tmp_path: Path) -> None:
    """The child inherited the lifeline; held open there, the workers would live as long as it does."""
    small_job(tmp_path)
    process = start_python(
        home,
        tmp_path,
        "-c",
        """
import os, time
from headrace import Stream
stream = Stream("job.yaml", workers=1)
next(iter(stream))
child = os.fork()
if child == 0:
    time.sleep(300)
print(child, flush=True)
time.sleep(300)
""",
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))

    os.kill(process.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while home.processes() != [child] or home.left_files():
        assert time.monotonic() < deadline_s, (home.processes(), home.left_files())
        time.sleep(0.05)
    child.kill()
    process.communicate(timeout=10)
