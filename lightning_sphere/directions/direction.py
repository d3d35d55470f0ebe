"""What an optimizer does to a tensor, in the one form that all formulas speak.

    x' = x - rate * a / b - shrink * x          (element-wise division; Roburin et al., generic step)

``a`` is the direction before the division, ``b`` the element-wise divisor (1 for SGD, ``sqrt(v_hat) + eps`` for Adam),
``rate`` the learning rate that the optimizer used, ``shrink`` decoupled weight decay (coupled decay is inside ``a``).
A :class:`Direction` says where an optimizer keeps them. The tensors are read on the device right after the step; the
numbers are computed at the flush, for many steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_sphere.equilibrium import Prediction

Group: TypeAlias = Mapping[str, Any]
"""One of ``optimizer.param_groups``."""

Numbers: TypeAlias = Mapping[str, Tensor]
"""float64 tensors of one shape (``[steps, tensors]``, or 0-dim): what :attr:`Direction.hyperparameters` noted, and

- ``step``: updates made to the tensor, this one included, from ``state["step"]`` or the group's; NaN where neither is,
- ``rms``: root mean square of the tensor's entries before the step,
- ``rows``, ``columns``: the tensor's first dimension, and its number of entries divided by that.
"""


class StepTensors:
    """One tensor around one optimizer step; read right after it.

    Args:
        state: ``optimizer.state`` of the parameter, after the step.
        group: its param group.
        after: the weights after the step, in the parameter's shape and dtype.
        weight: gives those before the step.
        gradient: gives the gradient that the optimizer used (unscaled and clipped), dense.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        group: Group,
        after: Tensor,
        weight: Callable[[], Tensor],
        gradient: Callable[[], Tensor],
    ) -> None:
        self.state, self.group, self.after = state, group, after
        self._weight, self._gradient = weight, gradient

    @cached_property
    def weight(self) -> Tensor:
        """The weights before the step."""
        return self._weight()

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient that the optimizer used; only where :attr:`Direction.reads_gradient` says that it is read."""
        return self._gradient()

    @property
    def ascent(self) -> Tensor:
        """The gradient of what is minimized: its sign is turned where the group has ``maximize``."""
        return -self.gradient if self.group.get("maximize") else self.gradient

    @property
    def count(self) -> Any:
        """Number of updates made, this one included: a number, a 0-dim tensor, or ``None``."""
        return count_of(self.state, self.group)


@dataclass(frozen=True)
class Scalars:
    """The factors of one step; each a float64 tensor of the :data:`Numbers`' shape, or a float."""

    rate: Tensor | float
    """Learning rate that the optimizer used."""
    shrink: Tensor | float = 0.0
    """Part of the weight that decoupled decay takes off."""
    numerator: Tensor | float = 1.0
    """``a`` is so many times what :attr:`Direction.numerator` gives."""
    root: Tensor | float = 1.0
    """``b = root * sqrt(v) + offset``, where there is a second moment ``v``."""
    offset: Tensor | float = 0.0


def _lr_alone(group: Group) -> dict[str, Any]:
    return {"lr": group.get("lr")}


def _rate_alone(numbers: Numbers) -> Scalars:
    return Scalars(rate=numbers["lr"], shrink=math.nan)


@dataclass(frozen=True)
class Direction:
    """How to obtain ``a``, ``b``, rate and decay for one family of optimizers.

    All functions must be free of host synchronization (no ``.item()``) and must not change what they are given.
    """

    hyperparameters: Callable[[Group], Mapping[str, Any]] = _lr_alone
    """Param group -> the numbers (or one-element tensors) that :attr:`scalars` needs; called at every step."""
    scalars: Callable[[Numbers], Scalars] = _rate_alone
    """The step's factors, computed at the flush."""
    numerator: Callable[[StepTensors], Tensor] | None = None
    """The direction ``a`` up to the factor :attr:`Scalars.numerator`, in the parameter's shape; ``None`` if unknown."""
    second_moment: Callable[[StepTensors], Tensor] | None = None
    """``v``, in the parameter's shape; ``None`` where ``b = 1``."""
    reads_gradient: frozenset[str] = frozenset()
    """Which of ``"numerator"`` and ``"second_moment"`` read the gradient: a copy of it is then kept over the step."""
    inferred: bool = False
    """Whether ``a`` is taken from the measured displacement where it is wanted at every step: for an optimizer with
    ``b = 1`` whose :attr:`numerator` costs much, or is not exact."""
    complete: bool = True
    """Whether ``-rate a / b - shrink x`` is the whole step: what happened is then compared with it."""
    equilibrium: Callable[[Numbers, Tensor, Tensor], Prediction] | None = None
    """Numbers, entries per group, mean of ``|x|^2 |g|^2`` -> rotational equilibrium; ``None`` if none is known."""
    radius: Callable[[Numbers], tuple[Tensor, Tensor]] | None = None
    """For SGD alone: the learning rate that a gradient gets in all, and the coupled weight decay."""

    @property
    def known(self) -> bool:
        """Whether the step's formula is known; else ``b = 1`` is an assumption."""
        return self.numerator is not None

    @property
    def has_second_moment(self) -> bool:
        """Whether the divisor comes from a second moment in the state."""
        return self.second_moment is not None


UNKNOWN = Direction()
"""``b = 1`` is assumed of every optimizer that is not known."""


def number(value: Any) -> float | Tensor:
    """A number as it stands now: a float, a copy of a one-element tensor, or NaN for anything else.

    A device tensor is copied, never read: reading would wait for the device.
    """
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() == 1 else math.nan
    return float(value) if isinstance(value, Real) else math.nan


def count_of(state: Mapping[str, Any], group: Group) -> Any:
    """How often a tensor was updated, where the optimizer counts: a number or a 0-dim tensor; else ``None``."""
    count = state.get("step")
    return group.get("step") if count is None else count


def divisor_square(scalars: Scalars, v_sum: Tensor, v_root_sum: Tensor, size: Tensor) -> Tensor:
    """``|b|^2`` over some entries, from two sums over them: ``root^2 sum v + 2 root offset sum sqrt(v) + d offset^2``.

    Args:
        scalars: of the same steps and tensors.
        v_sum: sum of ``v``.
        v_root_sum: sum of ``sqrt(v)``.
        size: how many entries.

    Returns:
        float64 of the broadcast shape.
    """
    root, offset = scalars.root, scalars.offset
    return root * root * v_sum + 2.0 * root * offset * v_root_sum + size * (offset * offset)


def displacement(direction: Direction, at: StepTensors, numbers: Numbers) -> Tensor | None:
    """``-rate a / b - shrink x``: the step that the formula asks for.

    Args:
        direction: of the optimizer.
        at: the tensor around the step.
        numbers: 0-dim, on the tensor's device.

    Returns:
        float64 (float32 where the device has no float64) in the parameter's shape; ``None`` where the formula is not
        known or the optimizer holds no state for the tensor.
    """
    if direction.numerator is None or (not at.state and direction.second_moment is not None):
        return None
    scalars = direction.scalars(numbers)
    wide = numbers["lr"].dtype
    asked = direction.numerator(at).to(wide, copy=True).mul_(-scalars.rate * scalars.numerator)
    if direction.second_moment is not None:
        asked /= direction.second_moment(at).to(wide).sqrt() * scalars.root + scalars.offset
    if isinstance(scalars.shrink, Tensor) or scalars.shrink:
        asked -= at.weight.to(wide) * scalars.shrink
    return asked


def numbers_of(direction: Direction, at: StepTensors, weight: Tensor) -> Numbers:
    """The numbers of one tensor at one step, 0-dim on its device, without waiting for it.

    Args:
        direction: of the optimizer.
        at: the tensor around the step.
        weight: the weights before the step.
    """
    wide = torch.float32 if weight.device.type == "mps" else torch.float64

    def on_device(value: Any) -> Tensor:
        value = number(value)
        if isinstance(value, Tensor):
            return value.reshape(()).to(weight.device, wide, non_blocking=True)
        return torch.full((), value, dtype=wide, device=weight.device)

    rows = weight.shape[0] if weight.dim() else 1
    found = dict(direction.hyperparameters(at.group))
    found |= {"step": at.count, "rows": rows, "columns": weight.numel() // max(1, rows)}
    numbers = {name: on_device(value) for name, value in found.items()}
    numbers["rms"] = torch.linalg.vector_norm(weight, dtype=wide) / math.sqrt(max(1, weight.numel()))
    return numbers
