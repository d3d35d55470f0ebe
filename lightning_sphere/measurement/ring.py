"""The ring on the device: sums of the last steps, waiting for the flush.

Row ``k`` of ``data`` holds the sums of the ``k``-th recorded step since the last flush, ``[columns, segments]``, in the
order of its ``columns``. What the host already knows (step number, wall time, hyperparameters) is kept beside it in
plain lists; what an optimizer keeps as tensors (its step count, a tensor learning rate) stays a tensor until the flush.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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


class Ring:
    """Preallocated rows on the device.

    Args:
        rows: steps that fit.
        columns: names of the sums per segment.
        segments: segments of the plan.
        device: where the weights are.
        dtype: precision of the sums.
    """

    def __init__(
        self, rows: int, columns: tuple[str, ...], segments: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.columns = columns
        self.data = torch.full((rows, len(columns), segments), torch.nan, dtype=dtype, device=device)
        self.host: list[HostRow] = []

    def __len__(self) -> int:
        return len(self.host)

    @property
    def full(self) -> bool:
        """Whether the next step needs a flush first."""
        return len(self.host) >= self.data.shape[0]

    def next_row(self) -> Tensor:
        """The row ``[columns, segments]`` that the step under way may write; :meth:`commit` makes it count."""
        return self.data[len(self.host)]

    def commit(self, row: HostRow) -> None:
        """Count the row that :meth:`next_row` gave out."""
        self.host.append(row)

    def drain(self) -> tuple[Tensor, list[HostRow]]:
        """Copy what is recorded to the host and start over.

        Returns:
            Sums, float64 on the CPU of shape ``[steps, columns, segments]``, and the host's notes of the same steps.
        """
        host, self.host = self.host, []
        return self.data[: len(host)].to("cpu", torch.float64, copy=True), host
