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

from pipeline.errors import ConfigError, Problem
from pipeline.job import JobConfig, ModelSection
from pipeline.run_folder import RunFolder
from trainer.models import Factory, build_model


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to make the same architecture again."""

    section: dict[str, Any]
    input_shape_CHW: tuple[int, int, int]
    num_classes: int

    def build(self, factory: Factory | None) -> nn.Module:
        """The model with fresh weights; `factory` is the function itself, for kind `factory`."""
        section = ModelSection.model_validate(self.section)
        return build_model(section, self.input_shape_CHW, self.num_classes, factory)


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


def load_model(checkpoint: Path | str, factory: Factory | None = None) -> nn.Module:
    """The saved model, on the CPU, in eval mode, from a folder such as runs/NAME/checkpoints/step-00000200.

    It takes finished images (N,C,H,W), as the job's `eval` stream delivers them, and gives (N, classes) logits; its
    attribute `classes` names them. A model of the user's own factory needs that `factory`: a checkpoint is data, and
    nothing it names is imported. Raises ConfigError if the folder is no checkpoint, or the factory is missing.
    """
    checkpoint = Path(checkpoint)
    try:
        state = msgspec.json.decode((checkpoint / "state.json").read_bytes())
        record = msgspec.convert(state["model"], ModelRecord)
    except (OSError, msgspec.MsgspecError, KeyError) as error:
        raise _refusal(checkpoint, "a checkpoint's folder", str(error), "name one of runs/NAME/checkpoints") from error
    if record.section["kind"] == "factory" and factory is None:
        made_by = record.section["factory"]
        raise _refusal(checkpoint, "the function that made the model", "none", f"load_model(…, factory={made_by})")
    model = record.build(factory)
    model.load_state_dict(torch.load(checkpoint / "model.pt", map_location="cpu", weights_only=True))
    model.classes = tuple(state["classes"])  # type: ignore[assignment]
    return model.eval()


def _refusal(checkpoint: Path, expected: str, got: str, way_out: str) -> ConfigError:
    return ConfigError(Problem(file=str(checkpoint), line=0, path="", expected=expected, got=got, way_out=way_out))


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
