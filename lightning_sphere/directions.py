"""What each optimizer divides its step by, and where its state keeps it.

Every step is written ``x' = x - lr a / b`` with element-wise division (theory: Roburin et al., eq. of the generic
step). For the effective learning rate only ``|b|^2`` is needed; the rest follows from the measured displacement.
An optimizer that is not known is measured with ``b = 1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

HYPERPARAMETERS: tuple[str, ...] = ("lr", "beta2", "eps")
"""What is noted of each param group at every step, in this order; NaN where a group has no such entry."""


@dataclass(frozen=True)
class Direction:
    """How to obtain ``|b|^2`` for one family of optimizers."""

    second_moment: Callable[[Mapping[str, Any]], str] | None = None
    """Param group -> key of ``optimizer.state[p]`` that holds the second moment ``v``; ``None`` where ``b = 1``."""

    @property
    def has_second_moment(self) -> bool:
        """Whether the divisor comes from a second moment in the state."""
        return self.second_moment is not None


PLAIN = Direction()
"""``b = 1``: SGD with or without momentum, and every optimizer that is not known."""

ADAM = Direction(lambda group: "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
"""``b = sqrt(v / (1 - beta2^t)) + eps``."""

_REGISTRY: dict[type, Direction] = {SGD: PLAIN, Adam: ADAM, AdamW: ADAM}


def direction_of(optimizer: Optimizer) -> Direction | None:
    """The direction of an optimizer's family, or ``None`` for an optimizer that is not known."""
    return next((_REGISTRY[base] for base in type(optimizer).__mro__ if base in _REGISTRY), None)


def hyperparameters(group: Mapping[str, Any], direction: Direction) -> tuple[float | Tensor, ...]:
    """The numbers of one param group that the formulas need, as they stand now.

    Args:
        group: one of ``optimizer.param_groups``, of any optimizer: entries may be missing or of a meaning of their own.
        direction: of the optimizer.

    Returns:
        One entry per name of :data:`HYPERPARAMETERS`: a number, NaN where there is none, or a copy of the tensor that
        the user gave (read at flush, never here: reading a device tensor would wait for the device).
    """
    values = [group.get("lr")]
    if direction.has_second_moment:
        values += [group["betas"][1], group["eps"]]
    values += [None] * (len(HYPERPARAMETERS) - len(values))
    return tuple(_number(value) for value in values)


def _number(value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() == 1 else math.nan
    return float(value) if isinstance(value, Real) else math.nan


def adam_divisor_square(
    v_sum: Tensor, v_sqrt_sum: Tensor, step: Tensor, beta2: Tensor, eps: Tensor, size: Tensor
) -> Tensor:
    """``|b|^2`` for ``b = sqrt(v / (1 - beta2^t)) + eps``, from two sums over the group's entries.

    Args:
        v_sum: sum of ``v``.
        v_sqrt_sum: sum of ``sqrt(v)``.
        step: number ``t`` of updates made, this one included.
        beta2: decay of the second moment.
        eps: the optimizer's eps.
        size: entries per group.

    Returns:
        float64 of the broadcast shape.
    """
    correction = 1.0 - beta2**step
    return v_sum / correction + 2.0 * eps * v_sqrt_sum / correction.sqrt() + size * eps * eps
