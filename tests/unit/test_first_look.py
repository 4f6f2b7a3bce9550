"""The first look: what a new run does before its optimizer is made, and a resumed one does not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.resume import Resumption
from tests.memory_streams import NUM_CLASSES, SPEC, batches, make_job
from trainer.batch import Batch
from trainer.first_look import FirstLook, prepare
from trainer.health.suite import one_thread
from trainer.models import build_model
from trainer.trainable import require_trainable


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


class Looks:
    """Counts how often it was asked, and whether each stream was read to its end."""

    def __init__(self) -> None:
        self.num_asked = self.num_ended = 0

    def __call__(self, num_batches: int) -> Iterator[Batch]:
        self.num_asked += 1
        yield from islice(batches(1, 10, seed=1), num_batches)
        self.num_ended += 1


def look_at(tmp_path: Path, resumed: Resumption | None = None, **fields: Any) -> tuple[nn.Module, FirstLook, Looks]:
    job = make_job(tmp_path, **fields)
    torch.manual_seed(7)
    model = build_model(job.config.model, (1, 8, 8), NUM_CLASSES)
    looks = Looks()
    found = prepare(job, model, looks, resumed, num_classes=NUM_CLASSES)
    return model, found, looks


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


LSUV = {"model": {"kind": "mlp", "width": 16, "depth": 3, "init": "lsuv"}}
PLAIN = {"model": {"kind": "mlp", "width": 16, "depth": 3}}


@pytest.mark.parametrize("fields", [LSUV, PLAIN])
def test_lint_changes_neither_weights_nor_draws(tmp_path: Path, fields: dict[str, Any]) -> None:
    """With it and without it the run begins alike."""
    with_lint, found, looks = look_at(tmp_path, **fields)
    state = torch.get_rng_state()
    without, not_found, _ = look_at(tmp_path, **fields, health={"lint": False})
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, weights(with_lint), weights(without)))
    assert (found.lint is not None, not_found.lint) == (True, None)
    assert (looks.num_asked, looks.num_ended) == (1, 1)


def test_lsuv_scales_a_new_runs_model_on_its_first_batch(tmp_path: Path) -> None:
    """Also one that ended before its first checkpoint, which has to begin with the same weights."""
    model, found, _ = look_at(tmp_path, **LSUV)
    assert len(found.lsuv) == 4
    assert all(layer.std_after == pytest.approx(1.0, abs=0.1) for layer in found.lsuv)
    again, found_again, looks = look_at(tmp_path, Resumption(step=0, checkpoint=None), **LSUV)
    assert all(map(torch.equal, weights(model), weights(again)))
    assert (found_again.lint, looks.num_asked) == (None, 1)
    assert [action for action, _ in found.events()] == ["lsuv", "lint"]
    assert [line.split(":")[0] for line in found.lines] == ["lsuv", "lint"]


@pytest.mark.parametrize("fields", [LSUV, PLAIN])
def test_nothing_is_looked_at_when_a_run_goes_on_from_a_checkpoint(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Its weights are in the checkpoint, and its user has read the lint."""
    _, found, looks = look_at(tmp_path, Resumption(step=200, checkpoint=tmp_path), **fields)
    assert (found, looks.num_asked) == (FirstLook(), 0)


def test_without_lint_and_lsuv_no_batch_is_asked_for(tmp_path: Path) -> None:
    """A run that wants no look is not kept waiting for one."""
    _, found, looks = look_at(tmp_path, **PLAIN, health={"lint": False})
    assert (found, looks.num_asked) == (FirstLook(), 0)


def test_a_healthy_run_has_one_line_and_a_sick_one_its_fix(tmp_path: Path) -> None:
    _, healthy, _ = look_at(tmp_path, **PLAIN)
    assert healthy.lines[0].startswith("lint: fine; 4 layers")
    assert "\n" not in healthy.lines[0]
    deep = {"kind": "mlp", "width": 32, "depth": 12, "activation": "sigmoid", "init": "xavier_normal"}
    _, sick, _ = look_at(tmp_path, model=deep)
    assert "CRITICAL VANISH_BWD" in sick.lines[0]
    assert "--set model.activation=relu --set model.init=auto; the same command with --try-fix" in sick.lines[0]
    _, off, _ = look_at(tmp_path, model=deep, health={"off": ["VANISH_BWD", "COLLAPSE_FWD"]})
    assert off.lines[0].startswith("lint: fine")


def test_lsuv_is_refused_where_it_cannot_work(tmp_path: Path) -> None:
    """A batch of one has no deviation: said before anything is made; a batch with a NaN when it is seen."""
    job = make_job(tmp_path, **LSUV)
    require_trainable(job, SPEC, ("a", "b", "c"))
    one = job.config.model_copy(update={"train": job.config.train.model_copy(update={"batch_size": 1})})
    object.__setattr__(job, "config", one)
    with pytest.raises(ConfigError, match=r"job\.yaml: train\.batch_size(.|\n)*at least 2 with `model.init: lsuv`"):
        require_trainable(job, SPEC, ("a", "b", "c"))

    def bad_look(num_batches: int) -> Iterator[Batch]:
        for batch in islice(batches(1, 10, seed=1), num_batches):
            batch.images[3] = float("nan")
            yield batch

    model = build_model(job.config.model, (1, 8, 8), NUM_CLASSES)
    with pytest.raises(ConfigError, match=r"job\.yaml: model\.init(.|\n)*not finite"):
        prepare(make_job(tmp_path, **LSUV), model, bad_look, None, num_classes=NUM_CLASSES)
