"""Which optimizer takes which direction; users add their own.

An optimizer ``x' = x - lr * m / (sqrt(v) + eps)`` that keeps ``m`` and ``v`` in its state is made known by ::

    from lightning_sphere.directions import Direction, Scalars, register

    register(
        MyOptimizer,
        Direction(
            hyperparameters=lambda group: {"lr": group["lr"], "eps": group["eps"]},
            scalars=lambda n: Scalars(rate=n["lr"], offset=n["eps"]),
            numerator=lambda at: at.state["m"],
            second_moment=lambda at: at.state["v"],
        ),
    )
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions.direction import Direction, StepTensors, displacement, numbers_of

_BY_CLASS: dict[type, Direction] = {}
_BY_NAME: dict[str, Direction] = {}


def register(optimizer: type[Optimizer] | str, direction: Direction) -> None:
    """Say what an optimizer does, for every tracker made from now on.

    Args:
        optimizer: its class; subclasses are taken for the same unless they are registered themselves. Or the name of a
            class that need not be installed.
        direction: how to read its step.

    Raises:
        TypeError: for anything else, naming the argument.
    """
    if not isinstance(direction, Direction):
        raise TypeError(f"direction takes a lightning_sphere.directions.Direction, got {direction!r}")
    if isinstance(optimizer, str):
        _BY_NAME[optimizer] = direction
    elif isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        _BY_CLASS[optimizer] = direction
    else:
        raise TypeError(f"optimizer takes a subclass of torch.optim.Optimizer or its name, got {optimizer!r}")


def direction_of(optimizer: Optimizer) -> Direction | None:
    """The direction of an optimizer's family, or ``None`` for an optimizer that is not known."""
    for base in type(optimizer).__mro__:
        found = _BY_CLASS.get(base) or _BY_NAME.get(base.__name__)
        if found is not None:
            return found
    return None


def asked_displacement(
    optimizer: Optimizer, parameter: Tensor, weight: Tensor, gradient: Tensor | None = None
) -> Tensor | None:
    """The displacement that the optimizer's formula asked for in its last step.

    Call it right after ``optimizer.step()``. It differs from what happened (``parameter - weight``) by rounding, or
    where the optimizer does something else than is known of it.

    Args:
        optimizer: whose state is read.
        parameter: one of its parameters.
        weight: its values before the step, same shape.
        gradient: what the optimizer used, same shape; needed by optimizers without a state that tells it.

    Returns:
        float64 in the parameter's shape: ``-rate a / b - shrink x``. ``None`` for an optimizer that is not known or
        does something besides, and for a parameter that it has not updated.

    Raises:
        ValueError: if the parameter is not the optimizer's, or the gradient is needed and not given.
    """
    group = next((g for g in optimizer.param_groups if any(parameter is p for p in g["params"])), None)
    if group is None:
        raise ValueError("parameter takes one of the optimizer's parameters, got another tensor")
    direction = direction_of(optimizer)
    if direction is None or not direction.complete:
        return None

    def given() -> Tensor:
        if gradient is None:
            raise ValueError(f"gradient is needed for {type(optimizer).__name__}, got None")
        return gradient.to_dense() if gradient.is_sparse else gradient

    at = StepTensors(optimizer.state.get(parameter, {}), group, parameter.detach(), weight.detach, given)
    before = weight.detach()
    wide = torch.float32 if before.device.type == "mps" else torch.float64
    rms = torch.linalg.vector_norm(before, dtype=wide) / math.sqrt(max(1, before.numel()))
    return displacement(direction, at, numbers_of(direction, group, at.count, before, rms))


def unknown_optimizer(optimizer: Any) -> str:
    """What is told of an optimizer that is not known."""
    return (
        f"{type(optimizer).__name__} is not known to lightning_sphere: effective_lr and second_moment treat its step "
        "as lr * a (divisor b = 1), and what follows from its formula stays unknown; norm, angular_step and all else "
        "are exact. lightning_sphere.directions.register makes it known"
    )
