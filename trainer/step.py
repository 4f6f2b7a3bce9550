"""One training step.

In:  a batch, a model with its optimizer, this step's learning rate.
Out: the model one step further, and a `StepResult`.
Never moves the model on a non-finite loss or gradient: such a step is skipped, counted, and leaves no trace but a
`Fault` that says where it came from.

The order is the only right one, since a norm means the gradient of the whole batch at one place only:

    accumulate micro-batches -> average over ranks -> unscale, once -> finite? -> measure -> clip -> step -> new scale

Whoever watches (`StepObserver`) is told at three places of it. For each step, in this order:

    before_forward(step)   hooks for this step can be attached: every forward and backward of it comes after
    measured(Measured)     gradients are whole, unscaled, not clipped; hooks should go now: a fault is looked for by
                           computing again
    stepped(StepResult)    weights have moved, or the step was skipped

N samples of the batch, K classes, M micro-batches, P parameters that have a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from pipeline.job_clip import ClipSection
from trainer.batch import Batch
from trainer.clipping import Clipped, Clipper, GroupClip
from trainer.faults import Cause, Fault, MicroBatch, find_fault
from trainer.norms import global_norm, gradient_norms, lost_below, made_exact, needs_exact
from trainer.precision import INITIAL_SCALE, LossScale, Precision, autocast
from trainer.ranks import Ranks


class Criterion(Protocol):
    """Such as `functional.cross_entropy` and `functional.mse_loss`, the mean of squares."""

    def __call__(self, outputs: torch.Tensor, labels: torch.Tensor, /, *, reduction: str) -> torch.Tensor:
        """`mean`: a scalar, the mean over samples; `none`: a loss a sample (or a row of losses, to be averaged)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A step's gradients, whole and unscaled, before they are clipped; each parameter's is its `grad`."""

    batch: Batch
    lr: float
    loss: float
    """Mean over the whole batch, on several ranks over all their batches."""
    losses: tuple[float, ...]
    """One a micro-batch of this rank: means over it."""
    grad_norm: float
    """Global 2-norm."""
    is_finite: bool
    """False: loss or gradient are not, and the step will be skipped."""
    loss_scale: float
    """What losses were multiplied by in this step's backward passes; 1 without a scale. The gradients were divided
    by it, what hooks have seen was not."""
    names_P: tuple[str, ...]
    """Equal to the step's before as long as the same parameters have gradients."""
    parameters_P: tuple[nn.Parameter, ...]
    norms_P: torch.Tensor
    """2-norm of each parameter's gradient, on the device; a parameter's share is norms_P**2 / grad_norm**2."""
    sample_losses: Callable[[], torch.Tensor]
    """The loss of each sample of this rank (N,), in the batch's order; computed when called, from kept outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean loss of the batch, before the step; on several ranks over all of them, as the counts are."""
    grad_norm: float
    """Global 2-norm of the gradients, before clipping."""
    clipped_norm: float
    """... and after; `grad_norm` in a skipped step."""
    was_clipped: bool
    clips: tuple[GroupClip, ...]
    """Each group of parameters that is clipped by itself; empty in a skipped step."""
    maybe_fault: Fault | None
    """None: the step was taken."""
    loss_scale: float
    """1 without one."""
    lr: float
    num_samples: int
    num_correct: int
    """Samples whose largest logit is their label's; 0 where labels are no classes."""

    @property
    def was_skipped(self) -> bool:
        """True: the loss or a gradient was not finite, and the model is as it was."""
        return self.maybe_fault is not None


class StepObserver(Protocol):
    """Told of each step; it may read everything, and changes nothing."""

    def before_forward(self, step: int) -> None:
        """Nothing of the step has been computed."""

    def measured(self, measured: Measured) -> None:
        """The host has just waited for the device: reading tensors here is cheap, a long computation is not."""

    def stepped(self, result: StepResult) -> None:
        """The optimizer has stepped, or has not."""


class Stepper:
    """Takes a model through its steps, one batch at a time; what it remembers between them is in its state dict."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        clip: ClipSection = ClipSection(),  # noqa: B008 - frozen
        precision: Precision = "fp32",
        accumulate: int = 1,
        initial_scale: float | None = None,
        criterion: Criterion = functional.cross_entropy,
        observer: StepObserver | None = None,
    ) -> None:
        """`accumulate`: micro-batches a batch is computed in; `initial_scale`: None for the precision's own. A model
        in DistributedDataParallel averages over its ranks; each of them then gives its own part of the batch."""
        self.observer = observer
        self._model, self._optimizer, self._criterion = model, optimizer, criterion
        self._precision, self._accumulate = precision, accumulate
        self._ranks = Ranks(model)
        inner = self._ranks.inner
        # Walking through 1,000 layers takes longer than their norms do, so it is done once.
        self._named = list(inner.named_parameters())
        self._with_buffers = [module for module in inner.modules() if module._buffers]
        self._clipper = Clipper(clip, inner)
        scale = initial_scale or (INITIAL_SCALE if precision == "fp16" else None)
        parameters = [parameter for _, parameter in self._named]
        self._scale = LossScale(optimizer, parameters, parameters[0].device.type, scale)
        self._names_P: tuple[str, ...] = ()
        self._lost_below_P = torch.empty(0)

    def step(self, batch: Batch, *, lr: float) -> StepResult:
        """One gradient step on the batch's mean loss; skipped without a trace if anything is not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self.observer:
            self.observer.before_forward(batch.step)
        # Batch norm folds a NaN batch into its running mean in the forward pass already: kept, to undo a skipped step.
        buffers_before = [buffer.clone() for buffer in self._buffers()]

        passed = self._accumulated(batch)
        self._scale.unscale()
        measured, counts, clip_numbers = self._measured(batch, passed, lr)
        if self.observer:
            self.observer.measured(measured)

        maybe_fault = None
        clipped = Clipped(norm=measured.grad_norm, was_clipped=False, groups=())
        if measured.is_finite:
            clipped = self._clipper.clip(measured.grad_norm, clip_numbers)
            self._scale.step()
        else:
            maybe_fault = self._fault(measured, passed.parts)
            for buffer, before in zip(self._buffers(), buffers_before, strict=True):
                buffer.copy_(before)
        self._scale.ended(has_overflowed=maybe_fault is not None and maybe_fault.cause == "loss_scale")
        result = StepResult(
            loss=measured.loss,
            grad_norm=measured.grad_norm,
            clipped_norm=clipped.norm,
            was_clipped=clipped.was_clipped,
            clips=clipped.groups,
            maybe_fault=maybe_fault,
            loss_scale=measured.loss_scale,
            lr=lr,
            num_samples=counts.num_samples,
            num_correct=counts.num_correct,
        )
        if self.observer:
            self.observer.stepped(result)
        return result

    def describe(self) -> str:
        """One line: precision, micro-batches and the clipping that really holds."""
        return f"{self._precision}, {self._accumulate} micro-batches, clip {self._clipper.describe()}"

    @property
    def num_overflows(self) -> int:
        """Steps that the loss scale has skipped so far, all attempts of a run together."""
        return self._scale.num_overflows

    def state_dict(self) -> dict[str, Any]:
        """Plain values: what clipping remembers and the loss scale. Model and optimizer have their own."""
        return {"clip": self._clipper.state_dict(), "scale": self._scale.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next steps are those that the stepper of this state would have taken."""
        self._clipper.load_state_dict(state["clip"])
        self._scale.load_state_dict(state["scale"])

    def _buffers(self) -> list[torch.Tensor]:
        # By module, not by tensor: a forward pass may put another tensor in a buffer's place.
        entries = [buffer for module in self._with_buffers for buffer in module._buffers.values()]
        return [buffer for buffer in entries if buffer is not None]

    def _accumulated(self, batch: Batch) -> _Passed:
        """Forward and backward of each micro-batch: each `grad` is then the whole batch's mean loss's, scaled."""
        for _, parameter in self._named:
            parameter.grad = None  # also of those that the optimizer doesn't have: they would add up over steps
        labels = batch.labels.to(batch.images.device, non_blocking=True)
        num_parts = min(self._accumulate, len(labels))
        parts = list(zip(batch.images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True))
        num_samples = self._ranks.summed(torch.full((), len(labels), dtype=torch.float64, device=labels.device))
        passed = _Passed(parts=parts, losses=[], outputs=[], num_samples=num_samples)
        for place, part in enumerate(parts):
            with self._ranks.unsynchronised(is_last=place == num_parts - 1):
                outputs, loss = self._forward(self._model, part)
                self._scale.scaled(self._weighted(loss, part, passed)).backward()  # type: ignore[no-untyped-call]
            passed.losses.append(loss.detach())
            passed.outputs.append(outputs.detach())
        return passed

    def _forward(self, model: nn.Module, part: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = part
        with autocast(self._precision, images.device.type):
            outputs = model(images)
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()  # the loss is a sum over many: not with eight bits
        return outputs, self._criterion(outputs, labels, reduction="mean")

    def _weighted(self, loss: torch.Tensor, part: MicroBatch, passed: _Passed) -> torch.Tensor:
        """So that the micro-batches' sum, averaged over the ranks, is the mean over all samples of all ranks."""
        num_ours = len(part[1])
        if self._ranks.size > 1:
            return loss * (num_ours * self._ranks.size / passed.num_samples).to(loss.dtype)
        num_all = sum(len(labels) for _, labels in passed.parts)
        return loss if num_ours == num_all else loss * (num_ours / num_all)

    def _measured(self, batch: Batch, passed: _Passed, lr: float) -> tuple[Measured, _Counts, list[float]]:
        """All of the step's numbers come to the host in one transfer: on CUDA this is the step's only wait."""
        with_gradient = [(name, parameter) for name, parameter in self._named if parameter.grad is not None]
        names_P = tuple(name for name, _ in with_gradient)
        gradients = [parameter.grad for _, parameter in with_gradient if parameter.grad is not None]
        if names_P != self._names_P:
            self._names_P, self._lost_below_P = names_P, lost_below(gradients)
        norms_P = gradient_norms(gradients)
        norm = global_norm(norms_P)
        losses_M = torch.stack(passed.losses).double()
        numbers = [
            *self._ranks.summed(passed.sums(losses_M)),
            self._scale.scaled(torch.ones_like(norm)),
            needs_exact(norms_P, self._lost_below_P).double(),
            norm,
            *self._clipper.prepare(names_P, norms_P, norm),
        ]
        host = torch.cat([losses_M, torch.stack(numbers)]).tolist()
        losses, host = host[: len(passed.parts)], host[len(passed.parts) :]
        loss_sum, num_correct, num_samples, loss_scale, is_doubtful, grad_norm, *clip_numbers = host
        if is_doubtful:
            # Overflowed, vanished, zero or not finite: float64 tells which. Rare, so the host may wait again.
            norms_P = made_exact(gradients, norms_P, self._lost_below_P)
            norm = global_norm(norms_P)
            grad_norm, *clip_numbers = torch.stack([norm, *self._clipper.prepare(names_P, norms_P, norm)]).tolist()
        measured = Measured(
            batch=batch,
            lr=lr,
            loss=loss_sum / num_samples,
            losses=tuple(losses),
            grad_norm=grad_norm,
            is_finite=math.isfinite(loss_sum) and math.isfinite(grad_norm),
            loss_scale=loss_scale,
            names_P=names_P,
            parameters_P=tuple(parameter for _, parameter in with_gradient),
            norms_P=norms_P,
            sample_losses=lambda: passed.sample_losses(self._criterion),
        )
        return measured, _Counts(num_samples=int(num_samples), num_correct=int(num_correct)), clip_numbers

    def _fault(self, measured: Measured, parts: Sequence[MicroBatch]) -> Fault:
        cause: Cause = "gradient"
        if not math.isfinite(measured.loss):
            cause = "loss"
        elif measured.loss_scale > 1.0:
            cause = "loss_scale"
        return find_fault(
            cause=cause,
            names_P=measured.names_P,
            exact_norms_P=measured.norms_P,
            named_parameters=self._named,
            parts=parts,
            losses=measured.losses,
            loss_of=lambda part: self._forward(self._ranks.inner, part)[1],
            is_alone=self._ranks.size == 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    num_samples: int
    num_correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passed:
    """What the forward passes of a step gave; it lives until the next step."""

    parts: list[MicroBatch]
    losses: list[torch.Tensor]
    outputs: list[torch.Tensor]
    num_samples: torch.Tensor
    """Of all ranks; a scalar where the host needn't wait for it."""

    def sums(self, losses_M: torch.Tensor) -> torch.Tensor:
        """(sum of losses, correct answers, samples) of this rank, in float64."""
        # Filled in on the device: a tensor made of Python numbers would be a copy to wait for.
        loss_sum = torch.zeros((), dtype=torch.float64, device=losses_M.device)
        for loss, (_, labels) in zip(losses_M, self.parts, strict=True):
            loss_sum += loss * len(labels)
        num_samples = torch.full_like(loss_sum, sum(len(labels) for _, labels in self.parts))
        correct = torch.zeros_like(loss_sum)
        for outputs, (_, labels) in zip(self.outputs, self.parts, strict=True):
            if not labels.is_floating_point():
                correct += (outputs.argmax(dim=1) == labels).sum()
        return torch.stack([loss_sum, correct, num_samples])

    def sample_losses(self, criterion: Criterion) -> torch.Tensor:
        with torch.no_grad():
            losses = [
                criterion(outputs, labels, reduction="none")
                for outputs, (_, labels) in zip(self.outputs, self.parts, strict=True)
            ]
            return torch.cat([loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss for loss in losses])
