"""The optimizer's formula of one step as numbers, and as tensors of its state: what a sweep of a kernel reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions.direction import Direction, Terms
from lightning_sphere.measurement.layout import Factor
from lightning_sphere.measurement.plan import Plan

STILL = torch.zeros(len(Factor), dtype=torch.float64, device="cpu").index_fill_(
    0, torch.tensor(Factor.OFFSET, device="cpu"), 1.0
)
"""The factors of a tensor that was not stepped: it moves by 0 / 1."""


@dataclass(frozen=True)
class Formula:
    """One step's formula, one entry per slot.

    Attributes:
        momenta: the optimizer's momentum; ``None`` where it has none, or did not step the tensor.
        moments: its second moment; ``None`` where it has none.
        factors: float64 ``[slots, 7]``, columns as in :class:`~lightning_sphere.measurement.layout.Factor`, on the host
            or, where the optimizer keeps its numbers there, on the device; :data:`STILL`
            for a tensor that was not stepped.
    """

    momenta: list[Tensor | None]
    moments: list[Tensor | None]
    factors: Tensor


class Formulas:
    """Reads the formula of each step of one optimizer, whose directions consist of :class:`Terms`.

    Args:
        plan: what is measured.
        optimizer: whose steps.
        direction: of the optimizer.
    """

    def __init__(self, plan: Plan, optimizer: Optimizer, direction: Direction) -> None:
        self._plan, self._optimizer, self._direction = plan, optimizer, direction
        host = torch.device("cpu")
        self._linear: tuple[list[Terms | None], Tensor] | None = None  # they seldom change
        self._group = {host: torch.tensor([slot.param_group for slot in plan.slots], dtype=torch.int64, device=host)}

    @property
    def known(self) -> bool:
        """Whether every tensor's direction consists of terms."""
        terms = self._direction.terms
        return terms is not None and None not in [terms(group) for group in self._optimizer.param_groups]

    def read(
        self,
        states: Sequence[Mapping[str, Any]],
        hyperparameters: Sequence[Mapping[str, Any]],
        counts: Tensor | None,
        stepped: Sequence[bool],
    ) -> Formula:
        """The formula of the step that was just made.

        Args:
            states: what the optimizer keeps of each slot's tensor.
            hyperparameters: numbers and one-element tensors by name, per param group, as they were at the step.
            counts: the optimizer's count of updates, float ``[slots]``; ``None`` if it does not count.
            stepped: whether each slot's tensor had a gradient.

        Raises:
            KeyError: where the state does not hold what the terms name.
        """
        assert self._direction.terms is not None
        terms = [self._direction.terms(group) for group in self._optimizer.param_groups]
        momenta: list[Tensor | None] = []
        moments: list[Tensor | None] = []
        for slot, state, moved in zip(self._plan.slots, states, stepped, strict=True):
            some = terms[slot.param_group]
            assert some is not None
            momenta.append(state[some.momentum] if moved and some.momentum is not None else None)
            name = some.second_moment
            moments.append(None if name is None or not (moved or name in state) else state[name])
        factors = self._factors(terms, hyperparameters, counts)
        if not all(stepped):
            moved_rows = _upload(torch.tensor(stepped, device="cpu"), factors.device).unsqueeze(1)
            factors = torch.where(moved_rows, factors, _upload(STILL, factors.device))
        return Formula(momenta, moments, factors)

    def _factors(
        self, terms: Sequence[Terms | None], hyperparameters: Sequence[Mapping[str, Any]], counts: Tensor | None
    ) -> Tensor:
        tensors = [value for group in hyperparameters for value in group.values() if isinstance(value, Tensor)]
        kept = tensors if counts is None else [*tensors, counts]
        device = next((tensor.device for tensor in kept if tensor.device.type != "cpu"), torch.device("cpu"))
        if device not in self._group:
            self._group[device] = _upload(self._group[torch.device("cpu")], device)

        def per_slot(rows: Sequence[Sequence[Any]]) -> Tensor:
            if not tensors and device.type == "cpu":
                table = torch.tensor(rows, dtype=torch.float64, device="cpu")
            else:
                table = torch.stack([torch.stack([_placed(value, device) for value in row]) for row in rows])
            return table if len(hyperparameters) == 1 else table[:, self._group[device]]

        names = list(hyperparameters[0])
        values = per_slot([[group[name] for group in hyperparameters] for name in names])
        numbers = dict(zip(names, values.unbind(0), strict=True))
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=device)
        numbers |= {"rms": nothing, "rows": nothing, "columns": nothing, "step": nothing}
        if counts is not None:
            numbers["step"] = counts.to(device, torch.float64)
        scalars = self._direction.scalars(numbers)
        table = torch.zeros(len(self._plan.slots), len(Factor), dtype=torch.float64, device=device)
        if self._linear is None or self._linear[0] != terms or self._linear[1].device != device:
            known = [some or Terms() for some in terms]
            parts = [[getattr(some, name) for some in known] for name in ("of_momentum", "of_gradient", "of_weight")]
            self._linear = list(terms), per_slot(parts).T
        table[:, : Factor.RATE] = self._linear[1]
        table[:, Factor.RATE] = scalars.rate * scalars.numerator
        table[:, Factor.ROOT] = scalars.root
        table[:, Factor.OFFSET] = scalars.offset
        table[:, Factor.SHRINK] = scalars.shrink
        return table


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on another device; nothing waits for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _placed(value: Any, device: torch.device) -> Tensor:
    """A number or a one-element tensor, float64 on a device; nothing waits for it."""
    if isinstance(value, Tensor):
        return value.reshape(()).to(device, torch.float64, non_blocking=True)
    return torch.full((), value, dtype=torch.float64, device=device)
