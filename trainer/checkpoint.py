"""Checkpoints: tensors in model.pt, the rest in a JSON file that a person can read.

In:  a model and where its run stands; or a checkpoint's folder.
Out: the folder's files; or the model.
Never unpickles: torch.load reads tensors only.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from pipeline.job import JobConfig, ModelSection
from pipeline.run_folder import RunFolder
from trainer.models import build_model


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `build_model` needs to make the same architecture again."""

    section: dict[str, Any]
    input_shape_CHW: tuple[int, int, int]
    num_classes: int
    base: str
    """The folder a `file.py:factory` is relative to."""

    def build(self) -> nn.Module:
        """`build_model` with the recorded arguments: fresh weights."""
        section = ModelSection.model_validate(self.section)
        return build_model(section, self.input_shape_CHW, self.num_classes, Path(self.base))


def save_checkpoint(
    folder: RunFolder, model: nn.Module, record: ModelRecord, step: int, state: Mapping[str, Any]
) -> Path:
    """The checkpoint's folder; `load_model` of it gives a model with equal `weights_sha256`.

    `state` is added to state.json as it is: plain values.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}

    def write_model(path: Path) -> None:
        # Through a file of ours: given a path, torch reports a full disk as a RuntimeError about positions.
        with path.open("wb") as file:
            torch.save(weights, file)

    everything = {
        "step": step,
        **state,
        "model": msgspec.to_builtins(record),
        "weights_sha256": weights_sha256(model),
        "torch_threads": torch.get_num_threads(),
        "environment": _environment(),
    }
    return folder.write_checkpoint(step, {"model.pt": write_model}, everything)


def load_model(checkpoint: Path | str) -> nn.Module:
    """The saved model, on the CPU, in eval mode, from a folder such as runs/NAME/checkpoints/step-00000200."""
    checkpoint = Path(checkpoint)
    state = msgspec.json.decode((checkpoint / "state.json").read_bytes())
    model = msgspec.convert(state["model"], ModelRecord).build()
    model.load_state_dict(torch.load(checkpoint / "model.pt", map_location="cpu", weights_only=True))
    return model.eval()


def weights_sha256(model: nn.Module) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of parameters and buffers, sorted by name.

    Equal for equal values, whatever device or memory format they are in.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_sha256(config: JobConfig) -> str:
    """Hex SHA-256 of the checked job, `--set` included; comments, key order and written defaults don't change it."""
    plain = config.model_dump(mode="json")
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()


def _environment() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("headrace", "torch", "numpy")}
    return {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}", **versions}
