"""From the device to the host without waiting: pinned memory, a stream of its own, an event."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


class Transfer:
    """Tensors on their way to the host.

    On CUDA they are copied into pinned memory on a stream beside the one of the training, after what that one has been
    given so far. Tensors on the host are handed on as they are; those of other devices are copied at once.

    Args:
        tensors: not to be written to before :meth:`result` has returned.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        """Held until they have arrived: their memory must not be given to others before."""
        self._events: list[Any] = []
        self._host = [tensor.detach() if tensor.device.type == "cpu" else tensor for tensor in tensors]
        for device in dict.fromkeys(tensor.device for tensor in tensors):
            mine = [index for index, tensor in enumerate(tensors) if tensor.device == device]
            if device.type == "cuda":
                self._copy_aside(device, mine)
            elif device.type != "cpu":
                for index in mine:
                    self._host[index] = tensors[index].detach().to("cpu")

    def _copy_aside(self, device: torch.device, indices: Sequence[int]) -> None:
        aside = _stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for index in indices:
                tensor = self._tensors[index].detach()
                target = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
                self._host[index] = target.copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(aside)
        self._events.append(event)

    def result(self) -> list[Tensor]:
        """The tensors on the host; waits for them, so that it belongs into another thread than the training's."""
        for event in self._events:
            event.synchronize()
        self._events, self._tensors = [], ()
        return self._host


@cache
def _stream(device: torch.device) -> Any:
    """The side stream of a device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
