"""The ring on the device: sums of the last steps, waiting for the flush.

Row ``k`` of ``data`` holds the sums of the ``k``-th recorded step since the last flush, ``[columns, segments]``, in the
order of its ``columns``. What the host already knows (step number, wall time, hyperparameters) is kept beside it in
plain lists; what an optimizer keeps as tensors (its step count, a tensor learning rate) stays a tensor until the flush.
There are two such buffers: one is written while the other is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sphere.measurement.transfer import Transfer

COLUMNS: tuple[str, ...] = ("xx", "gx", "gg", "xd", "dd")
"""Meaning of the first columns of a row."""

DIVISOR: tuple[str, ...] = ("v", "sqrt_v")
"""The columns that follow where the optimizer has a second moment."""

NUMERATOR: tuple[str, ...] = ("aa", "ax", "ad")
"""Those that come last where the direction before the division is asked for."""


def capacity(budget_mb: float, columns: int, segments: int, wanted: int, dtype: torch.dtype) -> int:
    """Rows that fit into the budget, at least one and at most ``wanted``."""
    bytes_per_row = max(1, columns * segments * dtype.itemsize)
    return max(1, min(wanted, int(budget_mb * 2**20) // bytes_per_row))


@dataclass
class HostRow:
    """What is noted on the host for one recorded step."""

    step: int
    """Position on the user's x axis."""
    wall_time: float
    """Seconds since the epoch."""
    hyperparameters: list[dict[str, Any]] = field(default_factory=list)
    """Numbers, and one-element tensors, by name; one mapping per param group."""
    optimizer_step: Tensor | None = None
    """The optimizer's own count of updates, one entry per tensor; NaN where it has none."""
    reference: Tensor | None = None
    """``<x0, x0>, <x0, E>, <E, E>`` with ``E`` the weights after the step less the reference ``x0``,
    ``[3, segments]``; measured now and then."""
    asked: Tensor | None = None
    """What the optimizer's formula asks for against what happened, see
    :func:`lightning_sphere.measurement.asked.asked`, ``[4, segments]``; measured now and then."""
    skipped: bool = False
    """Whether the step had no arithmetic (a loss scaler skipped it)."""
    apart: int = 1
    """How many optimizer steps after the recorded one before it."""

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept as tensors."""
        for group in self.hyperparameters:
            yield from (value for value in group.values() if isinstance(value, Tensor))
        yield from (tensor for tensor in (self.optimizer_step, self.reference, self.asked) if tensor is not None)

    def on_host(self, arrived: dict[int, Tensor]) -> HostRow:
        """The same with tensors of the host in place of those of the device.

        Args:
            arrived: by ``id`` of the tensor.
        """

        def moved(value: Any) -> Any:
            return arrived[id(value)] if isinstance(value, Tensor) else value

        groups = [{name: moved(value) for name, value in group.items()} for group in self.hyperparameters]
        return replace(
            self,
            hyperparameters=groups,
            optimizer_step=moved(self.optimizer_step),
            reference=moved(self.reference),
            asked=moved(self.asked),
        )


class Drained:
    """Recorded steps on their way to the host.

    Args:
        data: ``[steps, columns, segments]``.
        host: the host's notes of the same steps.
        buffer: the memory that ``data`` is part of, and whom to give it back to.
        free: where it goes.
    """

    def __init__(self, data: Tensor, host: list[HostRow], buffer: Tensor, free: list[Tensor]) -> None:
        self.host, self._buffer, self._free = host, buffer, free
        self._loose = [tensor for row in host for tensor in row.tensors()]
        self._transfer = Transfer([data, *self._loose])

    def __len__(self) -> int:
        return len(self.host)

    def result(self) -> tuple[Tensor, list[HostRow]]:
        """Sums, float64 on the host ``[steps, columns, segments]``, and the notes with their tensors on the host.

        It waits for the device. The sums are those of the ring itself where they are on the host: :meth:`release` ends
        their life.
        """
        data, *loose = self._transfer.result()
        arrived = {id(there): here for there, here in zip(self._loose, loose, strict=True)}
        return data.to(torch.float64), [row.on_host(arrived) for row in self.host]

    def release(self) -> None:
        """Give the memory back to the ring."""
        self._free.append(self._buffer)


class Ring:
    """Rows on the device.

    Args:
        rows: steps that fit into one buffer.
        columns: names of the sums per segment.
        segments: segments of the plan.
        device: where the weights are.
        dtype: precision of the sums.
    """

    def __init__(
        self, rows: int, columns: tuple[str, ...], segments: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.columns, self.rows = columns, rows
        # Not filled: memory of the host that no step has written is not even taken.
        self.data = torch.empty((rows, len(columns), segments), dtype=dtype, device=device)
        self.host: list[HostRow] = []
        self._free = [torch.empty_like(self.data)]

    def __len__(self) -> int:
        return len(self.host)

    @property
    def full(self) -> bool:
        """Whether there is no room for the next step before a flush."""
        return len(self.host) >= self.rows

    @property
    def spare(self) -> bool:
        """Whether the other buffer is free, so that :meth:`drain` can hand over this one."""
        return bool(self._free)

    def next_row(self) -> Tensor:
        """The row ``[columns, segments]`` that the step under way writes, all of it; :meth:`commit` makes it count."""
        return self.data[len(self.host)]

    def commit(self, row: HostRow) -> None:
        """Count the row that :meth:`next_row` gave out."""
        self.host.append(row)

    def drain(self) -> Drained | None:
        """Hand over what is recorded and go on in the other buffer; ``None`` while that one is not given back."""
        if not self._free:
            return None
        buffer, self.data = self.data, self._free.pop()
        host, self.host = self.host, []
        return Drained(buffer[: len(host)], host, buffer, self._free)
