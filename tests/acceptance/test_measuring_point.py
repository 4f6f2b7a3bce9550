"""Every norm that a step reports is that of the whole batch's gradient: all micro-batches, all ranks, no loss scale."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from pipeline.job_clip import ClipSection
from trainer.batch import Batch
from trainer.step import Measured, Stepper, StepResult

NUM_RANKS = 2
LOSS_SCALE = 65536.0
NUM_MICRO_BATCHES = 4
NUM_STEPS = 3
SIZES = {"equal": (16, 16), "unequal": (17, 9), "poisoned": (16, 16)}
"""Samples a rank; 17 and 9 make micro-batches of 5, 4, 4, 4 and 3, 2, 2, 2."""
REPOSITORY = Path(__file__).resolve().parents[2]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 20), nn.Tanh(),
        nn.Linear(20, 5),
    )  # fmt: skip


def whole_batch(step: int, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(num_samples, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 5, (num_samples,), generator=generator)


class Noting:
    """What was reported, as plain values."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def before_forward(self, step: int) -> None:
        pass

    def measured(self, measured: Measured) -> None:
        norms = dict(zip(measured.names_P, measured.norms_P.tolist(), strict=True))
        self.steps.append({"norms": norms, "norm": measured.grad_norm, "scale": measured.loss_scale})

    def stepped(self, result: StepResult) -> None:
        fault = result.maybe_fault
        self.steps[-1] |= {
            "loss": result.loss,
            "clipped_norm": result.clipped_norm,
            "num_samples": result.num_samples,
            "num_correct": result.num_correct,
            "cause": fault.cause if fault else "",
            "micro_batch": fault.micro_batch if fault else None,
            "bad_samples": list(fault.bad_samples) if fault else [],
        }


def train_rank(rank: int, folder: Path) -> None:
    """One of the two processes: each scenario once."""
    torch.set_num_threads(1)
    store = (folder / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=NUM_RANKS)
    noted = {name: train_scenario(rank, sizes, is_poisoned=name == "poisoned") for name, sizes in SIZES.items()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(noted))
    torch.distributed.destroy_process_group()


def train_scenario(rank: int, sizes: tuple[int, int], *, is_poisoned: bool) -> dict[str, Any]:
    model, noting = make_model(), Noting()
    stepper = Stepper(
        DistributedDataParallel(model),
        SGD(model.parameters(), lr=0.1),
        clip=ClipSection(kind="norm", threshold=0.5),
        accumulate=NUM_MICRO_BATCHES,
        initial_scale=LOSS_SCALE,
        observer=noting,
    )
    for step in range(NUM_STEPS):
        images, labels = whole_batch(step, sum(sizes))
        ours = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        images, labels = images[ours].clone(), labels[ours]
        if is_poisoned and rank == 1 and step == 1:
            images[-1, 0, 0, 0] = math.nan
        batch = Batch(
            step=step, epoch=0, start=0, stop=len(labels), recipe="r", digest="d", images=images, labels=labels,
            sample_ids=torch.arange(len(labels)),
        )  # fmt: skip
        stepper.step(batch, lr=0.1)
    weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return {"steps": noting.steps, "weights": weights}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has noted, by scenario. (One start for all: a process takes seconds to import torch.)"""
    folder = tmp_path_factory.mktemp("ranks")
    code = f"from pathlib import Path; from {__name__} import train_rank; train_rank(RANK, Path({str(folder)!r}))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code.replace("RANK", str(rank))], cwd=REPOSITORY, stderr=subprocess.PIPE
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(NUM_RANKS)]


@pytest.mark.parametrize("scenario", ["equal", "unequal"])
def test_with_a_loss_scale_four_micro_batches_and_two_ranks_every_norm_is_the_float64_reference(
    scenario: str, ranks: list[dict[str, Any]]
) -> None:
    """In each step, global and per parameter, on both ranks, also where ranks and micro-batches are not equally long.

    The reference is one float64 model on the whole batch, which is clipped and stepped by hand.
    """
    sizes, noted_by_rank = SIZES[scenario], [rank[scenario] for rank in ranks]
    double = copy.deepcopy(make_model()).double()
    for step in range(NUM_STEPS):
        images, labels = whole_batch(step, sum(sizes))
        double.zero_grad()
        logits = double(images.double())
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        norms = {name: p.grad.norm().item() for name, p in double.named_parameters() if p.grad is not None}
        norm = math.hypot(*norms.values())
        for rank in noted_by_rank:
            noted = rank["steps"][step]
            assert noted["norms"] == pytest.approx(norms, rel=1e-5)
            assert noted["norm"] == pytest.approx(norm, rel=1e-5)
            assert noted["clipped_norm"] == pytest.approx(min(norm, 0.5), rel=1e-5)
            assert noted["loss"] == pytest.approx(loss.item(), rel=1e-5)
            assert (noted["scale"], noted["cause"], noted["num_samples"]) == (LOSS_SCALE, "", sum(sizes))
            assert noted["num_correct"] == (logits.argmax(1) == labels).sum()
        with torch.no_grad():
            for parameter in double.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * min(1.0, 0.5 / norm) * parameter.grad
    assert noted_by_rank[0]["weights"] == noted_by_rank[1]["weights"]
    for name, tensor in double.state_dict().items():
        torch.testing.assert_close(
            torch.tensor(noted_by_rank[0]["weights"][name], dtype=torch.float64), tensor, rtol=1e-4, atol=1e-6
        )


def test_a_sample_that_is_not_finite_on_one_rank_skips_the_step_on_both(ranks: list[dict[str, Any]]) -> None:
    """Else their weights would part. The rank that has it names it; the other's own micro-batches are clean."""
    first, second = (rank["poisoned"] for rank in ranks)
    assert [noted["cause"] for noted in first["steps"]] == ["", "loss", ""]
    assert [noted["cause"] for noted in second["steps"]] == ["", "loss", ""]
    assert (first["steps"][1]["micro_batch"], first["steps"][1]["bad_samples"]) == (None, [])
    assert (second["steps"][1]["micro_batch"], second["steps"][1]["bad_samples"]) == (3, [15])
    assert first["weights"] == second["weights"]
    assert first["steps"][2]["scale"] == LOSS_SCALE / 2
