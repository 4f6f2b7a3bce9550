"""What a job's receivers tell of swaps: on the terminal and in the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace import receivers as receivers_module
from headrace import worker_conditions
from headrace.bad_samples import BadSamples
from headrace.receivers import Receivers
from headrace.services import scaled_text
from pipeline.recipe import Chain, Recipe
from pipeline.stream_start import StreamStart
from tests.memory_streams import make_job
from trainer.notes import Notes
from trainer.swapping import Outcome, Wish

WISH = Wish(operation="o", recipe=Recipe(chain=Chain(file="pets.yaml", nodes=(), line=1)))


@pytest.mark.parametrize(
    ("outcome", "action", "told"),
    [
        (Outcome(done=True, text="recipe ab from pets.yaml takes over at step 120", step=120), "swap", True),
        (Outcome(done=False, text="refused; the present chain goes on"), "swap_refused", False),
        (Outcome(done=True, text="nothing changes"), "swap_without_effect", False),
    ],
)
def test_a_swap_that_is_accepted_is_one_line_on_the_terminal(
    tmp_path: Path, outcome: Outcome, action: str, told: bool
) -> None:
    """One that is refused stands in the log, as an error does."""
    journal: list[str] = []
    lines: list[str] = []

    def write(action: str, **fields: Any) -> None:
        journal.append(action)

    job = make_job(tmp_path)
    bad = BadSamples(job, None, StreamStart())
    receivers = Receivers(job, None, None, bad_samples=bad, notes=Notes(write), tell=lines.append)
    receivers._swap_ended(WISH, outcome)
    assert journal == [action]
    assert lines == ([f"chain: {outcome.text}"] if told else [])


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ((2, False), (4, False), "workers: 4 now, 2 before"),
        ((2, False), (2, True), "workers: 2 (auto) now, 2 before"),
        ((3, True), (3, False), "workers: 3 now, 3 (auto) before"),
        ((2, False), (2, False), ""),
        ((2, True), (3, True), ""),
    ],
)
def test_what_an_operator_has_scaled_is_told_and_what_a_pool_does_by_itself_is_not(
    before: tuple[int, bool], now: tuple[int, bool], text: str
) -> None:
    """An automatic pool may change its size for days."""
    assert scaled_text(before, now) == text


@pytest.mark.parametrize(
    ("run", "way_out"),
    [
        ("numpy=2 probe=workers", "start Python with OPENBLAS_CORETYPE=Haswell, or use worker processes"),
        ("numpy=1 probe=older", "install the versions that the run was begun with: others make other bytes"),
    ],
)
def test_a_run_that_can_t_go_on_in_this_process_says_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, run: str, way_out: str
) -> None:
    """Other versions are no cure where only NumPy's kernels are others, nor the reverse."""
    monkeypatch.setattr(worker_conditions, "take_kernels_of_workers", lambda: ("OPENBLAS_CORETYPE=Haswell",))
    for module in (worker_conditions, receivers_module):
        monkeypatch.setattr(module, "fingerprint_of_workers", lambda: "numpy=2 probe=workers")
    error = receivers_module._other_libraries(run, "numpy=2 probe=here")
    assert [problem.way_out for problem in error.problems] == [way_out]
