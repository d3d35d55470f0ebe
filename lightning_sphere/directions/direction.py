"""What an optimizer does to a tensor, in the one form that all formulas speak.

    x' = x - rate * a / b - shrink * x          (element-wise division; Roburin et al., generic step)

``a`` is the direction before the division, ``b`` the element-wise divisor (1 for SGD, ``sqrt(v_hat) + eps`` for Adam),
``rate`` the learning rate that the optimizer used, ``shrink`` decoupled weight decay (coupled decay is inside ``a``).
A :class:`Direction` says where an optimizer keeps them. The tensors are read on the device right after the step; the
numbers are computed at the flush, for many steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
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
    """The factors of one step ``x' = x - rate * a / b - shrink * x``.

    Each is a float64 tensor of the shape of the numbers that :attr:`Direction.scalars` gets, or a float.

    Attributes:
        rate: learning rate that the optimizer used.
        shrink: share of the weight that decoupled decay takes off, such as ``lr * weight_decay``.
        numerator: ``a`` is so many times what :attr:`Direction.numerator` gives: ``1 / (1 - beta1**step)`` for Adam.
        root: ``b = root * sqrt(v) + offset``, where there is a second moment ``v``: ``(1 - beta2**step)**-0.5`` for
            Adam.
        offset: see ``root``; usually ``eps``.
    """

    rate: Tensor | float
    shrink: Tensor | float = 0.0
    numerator: Tensor | float = 1.0
    root: Tensor | float = 1.0
    offset: Tensor | float = 0.0


@dataclass(frozen=True)
class Terms:
    """An ``a`` that is linear, and which tensors of the state it is made of.

        a = of_momentum * state[momentum] + of_gradient * gradient + of_weight * weight

    Attributes:
        momentum: the key in the state; ``None`` if there is none.
        second_moment: key of ``v``; ``None`` where ``b = 1``.
        of_momentum: factor of the momentum.
        of_gradient: factor of the gradient.
        of_weight: factor of the weights before the step: coupled weight decay that is not in the momentum.
    """

    momentum: str | None = None
    second_moment: str | None = None
    of_momentum: float = 1.0
    of_gradient: float = 0.0
    of_weight: float = 0.0


def _lr_alone(group: Group) -> dict[str, Any]:
    return {"lr": group.get("lr")}


def _rate_alone(numbers: Numbers) -> Scalars:
    return Scalars(rate=numbers["lr"], shrink=math.nan)


@dataclass(frozen=True)
class Direction:
    """How one family of optimizers steps: ``x' = x - rate * a / b - shrink * x``, divided element by element.

    Coupled weight decay is part of ``a``. All functions must be free of host synchronization (no ``.item()``) and must
    not change what they are given.

    Attributes:
        hyperparameters: param group -> the numbers (or one-element tensors) that ``scalars`` needs, by name; called at
            every step.
        scalars: those numbers -> the :class:`Scalars` of the step; computed later, for many steps at once. The numbers
            are float64 tensors of one shape, and four more are among them: ``step``, how often the tensor was updated,
            this time included (NaN if the optimizer does not count); ``rms``, the root mean square of its entries
            before the step; ``rows``, its first dimension, and ``columns``, its number of entries divided by that.
        numerator: the tensor around the step -> ``a``, up to the factor :attr:`Scalars.numerator`, in the parameter's
            shape; ``None`` if unknown. Of the tensor there are ``state`` and ``group`` of the optimizer, ``after`` and
            ``weight``, the weights after and before the step, ``gradient``, ``ascent`` and ``count``
            (:class:`StepTensors`).
        second_moment: the same for ``v``, which gives ``b``; ``None`` where ``b = 1``.
        reads_gradient: which of ``"numerator"`` and ``"second_moment"`` read the gradient, or a function of the param
            group that tells: a copy of it is then kept over the step.
        elementwise: whether both treat each entry by itself. They are then given pieces of the tensors where the whole
            is not needed, which saves memory.
        inferred: whether ``a`` is taken from the measured displacement where it is wanted at every step: for an
            optimizer with ``b = 1`` whose ``numerator`` costs much, or is not exact.
        terms: param group -> the :class:`Terms` that ``numerator`` and ``second_moment`` consist of, where they do. One
            pass over the tensors then measures the step, without a copy of the weights before it once that is seen to
            agree; ``None``, or a function that gives ``None``, where they do not.
        complete: whether ``-rate * a / b - shrink * x`` is the whole step: what happened is then compared with it.
        equilibrium: numbers, entries per group, mean of ``|x|^2 |g|^2`` -> the
            :class:`~lightning_sphere.equilibrium.Prediction`, such as ``lightning_sphere.equilibrium.adamw`` gives it;
            ``None`` if none is known.
        radius: for SGD alone: numbers -> the learning rate that a gradient gets in all, and the coupled weight decay.
    """

    hyperparameters: Callable[[Group], Mapping[str, Any]] = _lr_alone
    scalars: Callable[[Numbers], Scalars] = _rate_alone
    numerator: Callable[[StepTensors], Tensor] | None = None
    second_moment: Callable[[StepTensors], Tensor] | None = None
    reads_gradient: Collection[str] | Callable[[Group], Collection[str]] = ()
    elementwise: bool = False
    inferred: bool = False
    terms: Callable[[Group], Terms | None] | None = None
    complete: bool = True
    equilibrium: Callable[[Numbers, Tensor, Tensor], Prediction] | None = None
    radius: Callable[[Numbers], tuple[Tensor, Tensor]] | None = None

    def reads(self, function: str, group: Group) -> bool:
        """Whether ``"numerator"`` or ``"second_moment"`` reads the gradient of a param group's tensors."""
        named = self.reads_gradient(group) if callable(self.reads_gradient) else self.reads_gradient
        return function in named

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
    wide = numbers["rms"].dtype
    asked = direction.numerator(at).to(wide, copy=True).mul_(-scalars.rate * scalars.numerator)
    if direction.second_moment is not None:
        asked /= direction.second_moment(at).to(wide).sqrt() * scalars.root + scalars.offset
    if isinstance(scalars.shrink, Tensor) or scalars.shrink:
        asked -= at.weight.to(wide) * scalars.shrink
    return asked


def numbers_of(direction: Direction, group: Group, count: Any, parameter: Tensor, rms: Tensor) -> Numbers:
    """The numbers of one tensor at one step, 0-dim on its device, without waiting for it.

    Args:
        direction: of the optimizer.
        group: the tensor's param group.
        count: number of updates made, see :func:`count_of`.
        parameter: the tensor.
        rms: root mean square of its entries before the step, in the precision to compute with.
    """

    def on_device(value: Any) -> Tensor:
        value = number(value)
        if isinstance(value, Tensor):
            return value.reshape(()).to(rms.device, rms.dtype, non_blocking=True)
        return torch.full((), value, dtype=rms.dtype, device=rms.device)

    rows = parameter.shape[0] if parameter.dim() else 1
    found = dict(direction.hyperparameters(group))
    found |= {"step": count, "rows": rows, "columns": parameter.numel() // max(1, rows)}
    return {"rms": rms, **{name: on_device(value) for name, value in found.items()}}
