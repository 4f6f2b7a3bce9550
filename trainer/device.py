"""Where torch computes, and how.

In:  the job's `device`, `seed`, `deterministic`, `torch_threads`.
Out: a torch device; torch's process-wide settings.
Never touches a tensor.
"""

from __future__ import annotations

import os

import torch

from pipeline.errors import ConfigError, Problem
from pipeline.job import JobConfig
from trainer.random_state import seed_random_state


def choose_device(kind: str) -> torch.device:
    """`auto` is CUDA where torch sees a GPU; `cuda` where it sees none is refused."""
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            Problem(
                file="job",
                line=0,
                path="device",
                expected="a GPU that torch can use",
                got=f"none (torch {torch.__version__})",
                way_out="device: auto, or a torch built for CUDA",
            )
        )
    return torch.device(kind)


def prepare_torch(config: JobConfig) -> None:
    """Seeds every global generator, and sets threads and determinism for the whole process; call it before the
    model is built."""
    seed_random_state(config.seed)
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    if config.deterministic:
        # cuBLAS reads this when CUDA starts; without it torch refuses deterministic matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
