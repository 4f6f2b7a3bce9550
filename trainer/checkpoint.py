"""Checkpoints: tensors in model.pt and train.pt, the rest in a JSON file that a person can read.

In:  a model, an optimizer, and where their run stands; or a checkpoint's folder.
Out: a snapshot that no later step changes, and the functions that write it; or the model and the training state back.
Never unpickles: torch.load reads tensors, numbers and text only.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import msgspec
import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.checkpoint_folder import Damaged, read_state
from pipeline.errors import ConfigError, Problem
from pipeline.job import JobConfig, ModelSection
from pipeline.user_code import load_attribute
from trainer.checkpoint_fit import require_fitting_optimizer, require_fitting_weights
from trainer.models import Factory, build_model
from trainer.random_state import put_random_state, take_random_state


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to make the same architecture again."""

    section: dict[str, Any]
    input_shape_CHW: tuple[int, int, int]
    num_classes: int
    factory_sha256: str = ""
    """Of the source of kind `factory`'s own function; "" for the built-in models."""

    def build(self, factory: Factory | None) -> nn.Module:
        """The model with fresh weights; `factory` is the function itself, for kind `factory`."""
        section = ModelSection.model_validate(self.section)
        return build_model(section, self.input_shape_CHW, self.num_classes, factory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run between two steps; copied, so that training goes on while it is written."""

    step: int
    """Steps done."""
    weights: dict[str, torch.Tensor]
    training: dict[str, Any]
    """What train.pt holds: optimizer, random generators, and the named states of everything else."""
    state: dict[str, Any]
    """What state.json holds, but for what the weights give."""

    def files(self) -> dict[str, Callable[[Path], None]]:
        """File name -> function that writes it."""
        return {"model.pt": _writer(self.weights), "train.pt": _writer(self.training)}

    def full_state(self) -> dict[str, Any]:
        """Plain values for state.json; reads every weight, so it is not for the training thread."""
        return {
            **self.state,
            "weights_sha256": tensors_sha256(self.weights),
            "healthy": self.state["healthy"] and all(bool(torch.isfinite(one).all()) for one in self.weights.values()),
            "torch_threads": torch.get_num_threads(),
            "environment": environment(),
        }


class Copies:
    """Copies of tensors on the CPU, in the memory of the copies made before.

    The loop waits for them, and fresh pages cost several times what the copying does.
    """

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []
        self._num_used = 0

    def begin(self) -> None:
        """The copies made so far are needed no more."""
        self._num_used = 0

    def of(self, value: Any) -> Any:
        """The same structure of lists, tuples and dicts, its tensors copied."""
        if isinstance(value, torch.Tensor):
            return self._copy(value.detach())
        if isinstance(value, dict):
            return {key: self.of(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(entry) for entry in value)
        return value

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._num_used == len(self._kept):
            self._kept.append(torch.empty_like(tensor, device="cpu"))
        kept = self._kept[self._num_used]
        if (kept.shape, kept.dtype, kept.stride()) != (tensor.shape, tensor.dtype, tensor.stride()):
            kept = self._kept[self._num_used] = torch.empty_like(tensor, device="cpu")
        self._num_used += 1
        return kept.copy_(tensor)


def take_snapshot(
    model: nn.Module,
    optimizer: Optimizer,
    copies: Copies,
    *,
    step: int,
    states: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Snapshot:
    """`states`: name -> what else the next step depends on; tensors, numbers, text, lists and dicts of them.

    The snapshot before, taken with the same `copies`, is no snapshot any more.
    """
    copies.begin()
    return Snapshot(
        step=step,
        weights=copies.of(dict(model.state_dict())),
        training={
            "optimizer": copies.of(optimizer.state_dict()),
            "random": copies.of(take_random_state()),
            "states": copies.of(dict(states)),
        },
        state={"step": step, **state},
    )


def restore(folder: Path, model: nn.Module, optimizer: Optimizer, *, made_by: str) -> dict[str, Any]:
    """Model, optimizer and random generators are as they were at the snapshot; the named states are returned.

    The optimizer's own settings (weight decay, momentum) stay the job's: only what it has gathered comes back.
    ConfigError, naming the factory `made_by` ("" for a built-in model), if the model is not one that was saved.
    """
    weights = _load_weights(folder, model, made_by)
    training = torch.load(folder / "train.pt", map_location="cpu", weights_only=True)
    require_fitting_optimizer(folder / "train.pt", training["optimizer"], weights, model, optimizer, made_by)
    gathered = {**training["optimizer"], "param_groups": optimizer.state_dict()["param_groups"]}
    optimizer.load_state_dict(gathered)
    put_random_state(training["random"])
    states: dict[str, Any] = training["states"]
    return states


def load_model(checkpoint: Path | str, factory: Factory | str | None = None) -> nn.Module:
    """The saved model, on the CPU, in eval mode, from a folder such as runs/NAME/checkpoints/step-00000200.

    It takes finished images (N,C,H,W), as the job's `eval` stream delivers them, and gives (N, classes) logits; its
    attribute `classes` names them. A model of the user's own factory needs that `factory`, the function or its name as
    in a job (`file.py:make`): a checkpoint is data, and nothing it names is imported. Raises ConfigError if the folder
    is no checkpoint, or damaged, or the factory is missing or makes another model.
    """
    checkpoint = Path(checkpoint)
    try:
        state = read_state(checkpoint)
        record = msgspec.convert(state["model"], ModelRecord)
    except (Damaged, msgspec.MsgspecError, KeyError) as error:
        raise _refusal(checkpoint, "a checkpoint's folder", str(error), "name one of runs/NAME/checkpoints") from error
    if record.section["kind"] == "factory" and factory is None:
        made_by = record.section["factory"]
        way_out = f'load_model(…, factory="{made_by}")'
        raise _refusal(checkpoint, "the function that made the model", "none", way_out)
    if isinstance(factory, str):
        factory = cast(Factory, load_attribute(factory, Path.cwd()))
    model = record.build(factory)
    _load_weights(checkpoint, model, record.section.get("factory", ""))
    model.classes = tuple(state["classes"])  # type: ignore[assignment]
    return model.eval()


def weights_sha256(model: nn.Module) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of parameters and buffers, sorted by name.

    Equal for equal values, whatever device or memory format they are in.
    """
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """`weights_sha256` of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_sha256(config: JobConfig) -> str:
    """Hex SHA-256 of the checked job, `--set` included; comments, key order and written defaults don't change it."""
    plain = config.model_dump(mode="json")
    return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()


def environment() -> dict[str, str]:
    """What equal results depend on besides the job: versions and the machine."""
    versions = {name: metadata.version(name) for name in ("headrace", "torch", "numpy")}
    return {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}", **versions}


def differing_environment(state: Mapping[str, Any]) -> list[str]:
    """Each thing that equal bits depend on and that is not as the checkpoint's state.json has it."""
    then = {**state.get("environment", {}), "torch threads": state.get("torch_threads")}
    now = {**environment(), "torch threads": torch.get_num_threads()}
    return [f"{name}: then {then.get(name)}, now {value}" for name, value in now.items() if then.get(name) != value]


def _load_weights(checkpoint: Path, model: nn.Module, made_by: str) -> dict[str, torch.Tensor]:
    file = checkpoint / "model.pt"
    weights: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    require_fitting_weights(file, weights, model, made_by)
    model.load_state_dict(weights)
    return weights


def _writer(content: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            told = _TellsErrors(file)
            try:
                torch.save(content, cast("IO[bytes]", told))
            except RuntimeError as error:
                # A full disk ends in torch's complaint about positions; ours says what is the matter.
                if told.error is not None:
                    raise told.error from error
                raise

    return write


class _TellsErrors:
    """A file for torch.save that remembers why a write has failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _refusal(checkpoint: Path, expected: str, got: str, way_out: str) -> ConfigError:
    return ConfigError(Problem(file=str(checkpoint), line=0, path="", expected=expected, got=got, way_out=way_out))
