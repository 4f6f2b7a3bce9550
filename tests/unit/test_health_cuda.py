"""Watching never makes the host wait for the device.

On a GPU torch itself says so: `set_sync_debug_mode("error")`. Without one, the same calls run on torch's `meta`
device, whose tensors have a shape and no values: whatever reads one on the host (`item`, `tolist`, `bool`, `float`,
`nonzero`, a mask as an index, a copy to the CPU) raises, there as in the error mode. What a GPU has to wait for
besides, copies of unpinned memory to the device, is looked for among the operations themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.job_clip import ClipSection
from trainer.batch import Batch
from trainer.health import transfer
from trainer.health.monitor import GradientHealth
from trainer.health.observer import HealthObserver
from trainer.health.records import VerdictEvent
from trainer.step import Measured, Stepper, StepResult

NUM_STEPS = 12
Watch = Callable[[], AbstractContextManager[Any]]


class OneDevice(TorchDispatchMode):
    """Refuses operations between the host and the device; a single number may go along, as an argument does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        devices = {one.device.type for one in tensors if one.ndim or one.device.type != "cpu"}
        if len(devices) > 1 or ("copy" in str(func) and len({one.device.type for one in tensors}) > 1):
            raise AssertionError(f"{func} is between {' and '.join(sorted(devices))}: the host may wait for it")
        return result


def model(device: str) -> nn.Module:
    """Every kind of layer that is measured: norms, kernels, ReLU and tanh units, a head."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).to(device)


def data(device: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images_NCHW = torch.randn(16, 3, 8, 8, generator=generator)
    return images_NCHW.to(device), torch.randint(4, (16,), generator=generator).to(device)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True),
    "adamw on the device": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True, capturable=True),
}


def watched_alone(device: str, optimizer_name: str, watch: Watch, *, scale: float | None = None) -> GradientHealth:
    """Somebody's own loop: the calls of health under `watch`, the loop's own beside it; deep steps and light ones."""
    watched = model(device)
    optimizer = OPTIMIZERS[optimizer_name](watched)
    health = GradientHealth(watched, optimizer, every_steps=3, light_every_steps=1, is_told=True)
    for step in range(NUM_STEPS):
        images, labels = data(device, step)
        with watch():
            health.before_forward(step)
        with watch() if device == "cuda" else nullcontext():  # the hooks of a deep step are in here
            loss = functional.cross_entropy(watched(images), labels)
            loss.backward()
        with watch():
            health.step(loss, inputs=images, labels=labels, scale=scale, batch={"step": step}, clip_threshold=1.0)
            health.before_update()
        optimizer.step()
        with watch():
            health.after_update()
        optimizer.zero_grad()
    return health


class Watched(HealthObserver):
    """An observer whose calls are under `watch`; the stepper's own single wait is outside of them."""

    def __init__(self, health: GradientHealth, watch: Watch) -> None:
        self.told: list[VerdictEvent] = []
        super().__init__(health, self.told.append, clip_threshold=1.0)
        self._watch = watch

    def before_forward(self, step: int) -> None:
        with self._watch():
            super().before_forward(step)

    def measured(self, measured: Measured) -> None:
        with self._watch():
            super().measured(measured)

    def stepped(self, result: StepResult) -> None:
        with self._watch():
            super().stepped(result)


@contextmanager
def no_wait() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="set_sync_debug_mode needs a GPU")


@needs_gpu
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("scale", [None, 1024.0], ids=["no scale", "a loss scale"])
def test_on_a_gpu_no_call_waits(optimizer: str, scale: float | None) -> None:
    """Light and deep steps, from the first on; what was measured arrives all the same, in order."""
    health = watched_alone("cuda", optimizer, no_wait, scale=scale)
    health.flush()

    assert NUM_STEPS == health.overhead.num_steps
    assert NUM_STEPS == health._judge.progress.loss.count


@needs_gpu
def test_on_a_gpu_the_stepper_waits_once_and_watching_never() -> None:
    watched = model("cuda")
    optimizer = OPTIMIZERS["adamw"](watched)
    health = GradientHealth(watched, optimizer, every_steps=3, light_every_steps=1, is_told=True)
    observer = Watched(health, no_wait)
    stepper = Stepper(watched, optimizer, clip=ClipSection(kind="norm", threshold=1.0), observer=observer)
    for step in range(NUM_STEPS):
        images, labels = data("cuda", step)
        batch = Batch(
            step=step,
            epoch=0,
            start=16 * step,
            stop=16 * step + 16,
            recipe="r",
            digest="d",
            images=images,
            labels=labels,
            sample_ids=torch.arange(16),
        )
        stepper.step(batch, lr=1e-3)
    health.flush()

    assert NUM_STEPS == health._judge.progress.loss.count


@pytest.fixture
def nothing_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is behind the host for the whole test: what was sent is asked for, and is not there yet."""
    monkeypatch.setattr(transfer, "_is_done", lambda event: False)


@pytest.mark.usefixtures("nothing_has_arrived")
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS)[:2])
@pytest.mark.parametrize("scale", [None, 1024.0], ids=["no scale", "a loss scale"])
def test_without_a_gpu_no_value_is_read_and_nothing_crosses(optimizer: str, scale: float | None) -> None:
    """Each step sends one parcel, and only that: it would be read when its event says that it has arrived."""
    health = watched_alone("meta", optimizer, OneDevice, scale=scale)

    assert NUM_STEPS == len(health._outbox)
    assert health.is_nonfinite_pending, "what is on its way may be bad: no checkpoint is called healthy"
    assert () == health.verdicts


@pytest.mark.parametrize(
    "read",
    [
        lambda loss, images: loss.item(),
        lambda loss, images: float(loss),
        lambda loss, images: images.tolist(),
        lambda loss, images: bool(torch.isfinite(images).all()),
        lambda loss, images: images[images > 0.0],
        lambda loss, images: images.nonzero(),
        lambda loss, images: torch.equal(images, images),
        lambda loss, images: images.cpu(),
        lambda loss, images: images.to("cpu", non_blocking=True),
        lambda loss, images: torch.tensor([1.0, 2.0]).to("meta"),
        lambda loss, images: images + torch.ones(8, device="meta").copy_(torch.ones(8)),
    ],
    ids=["item", "float", "tolist", "bool", "mask", "nonzero", "equal", "cpu", "to cpu", "to device", "copy"],
)
@pytest.mark.usefixtures("nothing_has_arrived")
def test_a_call_that_waits_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[torch.Tensor, torch.Tensor], Any]
) -> None:
    """The test above can fail: with each of these in the hot path, it does."""
    original = GradientHealth.step

    def step(self: GradientHealth, loss: torch.Tensor, *, inputs: torch.Tensor, **options: Any) -> list[VerdictEvent]:
        read(loss, inputs)
        return original(self, loss, inputs=inputs, **options)

    monkeypatch.setattr(GradientHealth, "step", step)
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        watched_alone("meta", "sgd", OneDevice)
