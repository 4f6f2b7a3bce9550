"""Numbers from the device to the host without making the host wait.

In:  a step's measured tensors, small, in float32 or convertible.
Out: the numbers, in the order they were sent, once they have arrived.
On CUDA: one concatenation, one copy to pinned memory, one event; `arrived` only asks the event. The report lags by as
many steps as the device is behind the host. On a CPU everything has arrived at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Reader = Callable[[list[float]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    values: torch.Tensor
    event: torch.cuda.Event | None
    read: Reader


class Outbox:
    """First in, first out; pinned buffers are used again, so a long run allocates a handful."""

    def __init__(self) -> None:
        self._parcels: deque[_Parcel] = deque()
        self._free: list[torch.Tensor] = []

    def send(self, tensors: Sequence[torch.Tensor], read: Reader) -> None:
        """`read` gets all elements, one tensor after another, when they have arrived; without tensors, in its turn."""
        if not tensors:
            self._parcels.append(_Parcel(values=torch.empty(0), event=None, read=read))
            return
        device = tensors[0].device
        flat = [tensor.reshape(-1) for tensor in tensors]
        if any(tensor.device != device for tensor in flat):
            flat = [tensor.to(device, non_blocking=True) for tensor in flat]
        # After joining them: one conversion, not one for each of the 9,000 numbers of 1,000 layers.
        values = torch.cat(flat).detach().float()
        if device.type != "cuda":
            self._parcels.append(_Parcel(values=values, event=None, read=read))
            return
        pinned = self._buffer(values.numel())
        pinned[: values.numel()].copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        self._parcels.append(_Parcel(values=pinned[: values.numel()], event=event, read=read))

    def arrived(self, *, wait: bool = False) -> None:
        """Hands over what is there; `wait`: everything that was sent (before a checkpoint, at the end)."""
        while self._parcels:
            parcel = self._parcels[0]
            if not wait and not _is_done(parcel.event):
                return
            if parcel.event is not None:
                parcel.event.synchronize()
            self._parcels.popleft()
            numbers = parcel.values.tolist()
            if parcel.event is not None:
                self._free.append(parcel.values._base if parcel.values._base is not None else parcel.values)
            parcel.read(numbers)

    def __len__(self) -> int:
        return len(self._parcels)

    def _buffer(self, count: int) -> torch.Tensor:
        for place, buffer in enumerate(self._free):
            if buffer.numel() >= count:
                return self._free.pop(place)
        return torch.empty(count, dtype=torch.float32, pin_memory=True)


def _is_done(event: torch.cuda.Event | None) -> bool:
    return event is None or bool(event.query())  # type: ignore[no-untyped-call]
