"""Norm, angular step and effective learning rate of weights given as tensors: pure functions, no state.

For whoever holds the weights before and after an optimizer step. The formulas are those of
:mod:`lightning_sphere.geometry`; here the tensors are cut into groups and their inner products taken, in float64
(float32 on devices without it, such as MPS), whatever the tensors' own precision.

A *group* is what is scale-invariant by itself. ``axis`` and ``blocks`` say how a weight is cut:

============  ============  ==========================================================================
``axis``      ``blocks``    groups
============  ============  ==========================================================================
``0``         ``None``      each index of dimension 0: the filters before a BatchNorm
``0``         ``8``         8 equal consecutive blocks along dimension 0: before a GroupNorm of 8 groups
``None``      ``None``      the whole tensor is one: before a LayerNorm
============  ============  ==========================================================================

Example::

    before = linear.weight.detach().clone()
    optimizer.step()
    angles = angular_step(before, linear.weight)  # radians, one per row
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sphere import geometry
from lightning_sphere.geometry import InnerProducts
from lightning_sphere.measurement.sums import accumulation_dtype


def norm(weight: Tensor, *, axis: int | None = 0, blocks: int | None = None) -> Float[Tensor, " groups"]:
    """Length of each group, ``r = |x|``.

    Args:
        weight: floating point, of any shape.
        axis: the dimension that is cut into groups; ``None`` for the whole tensor.
        blocks: how many equal consecutive blocks; ``None`` for one per index.

    Returns:
        float64 of shape ``[groups]``.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.
    """
    rows = _groups("weight", weight, axis, blocks)
    return geometry.norm(_products(rows, torch.zeros_like(rows)))[0]


def angular_step(
    before: Tensor, after: Tensor, *, axis: int | None = 0, blocks: int | None = None
) -> Float[Tensor, " groups"]:
    """Angle in radians by which a step turned each group, ``atan2(|D_perp|, r + <D,u>)`` with ``D = after - before``.

    Args:
        before: weights before the step, floating point, of any shape: a copy, because optimizers write in place.
        after: weights after it, of the same shape.
        axis: the dimension that is cut into groups; ``None`` for the whole tensor.
        blocks: how many equal consecutive blocks; ``None`` for one per index.

    Returns:
        float64 of shape ``[groups]``, in ``[0, pi]``; NaN for a group that was zero.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.
    """
    return geometry.angular_step(_step(before, after, axis, blocks))[0]


def effective_lr(
    before: Tensor,
    after: Tensor,
    lr: float | Tensor,
    divisor: Tensor | None = None,
    *,
    axis: int | None = 0,
    blocks: int | None = None,
) -> Float[Tensor, " groups"]:
    """Learning rate of the equivalent optimization on the sphere, ``lr / (r nu) / (1 + <x,D>/r^2)`` per group.

    ``nu = r |b| / sqrt(d)`` with the optimizer's divisor ``b`` and the number ``d`` of entries of the group.

    Args:
        before: weights before the step, floating point, of any shape: a copy, because optimizers write in place.
        after: weights after it, of the same shape.
        lr: the configured learning rate, a number or a tensor with one element.
        divisor: what the optimizer divides its step by, element by element, of a shape that expands to the weights':
            ``sqrt(v_hat) + eps`` for Adam. ``None`` is 1, which SGD divides by.
        axis: the dimension that is cut into groups; ``None`` for the whole tensor.
        blocks: how many equal consecutive blocks; ``None`` for one per index.

    Returns:
        float64 of shape ``[groups]``; NaN for a group that was zero, and where the divisor is.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got.
    """
    return geometry.effective_lr(_step(before, after, axis, blocks, _rate(lr), divisor))[0]


def check_groups(axis: Any, blocks: Any) -> None:
    """Raise unless ``axis`` and ``blocks`` can describe groups.

    Raises:
        TypeError, ValueError: naming the argument, what it takes and what it got.
    """
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
        raise TypeError(f"axis takes a dimension or None (the whole tensor is one group), got {axis!r}")
    if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int)):
        raise TypeError(f"blocks takes a positive integer or None (each index is a group), got {blocks!r}")
    if blocks is not None and blocks < 1:
        raise ValueError(f"blocks takes a positive integer or None (each index is a group), got {blocks!r}")
    if blocks is not None and axis is None:
        raise ValueError(f"blocks takes None where axis is None (the whole tensor is one group), got {blocks!r}")


def _step(
    before: Tensor,
    after: Tensor,
    axis: int | None,
    blocks: int | None,
    rate: float | Tensor = torch.nan,
    divisor: Tensor | None = None,
) -> InnerProducts:
    x, x_after = _groups("before", before, axis, blocks), _groups("after", after, axis, blocks)
    if before.shape != after.shape:
        raise ValueError(f"after takes a tensor of before's shape {tuple(before.shape)}, got {tuple(after.shape)}")
    if before.dtype == after.dtype and before.device == after.device and before.is_set_to(after):
        raise ValueError("before takes a copy of the weights, got after's own memory: clone it before the step")
    b = None if divisor is None else _groups("divisor", _expanded(divisor, before.shape), axis, blocks)
    return _products(x, x_after - x, rate, b)


def _products(
    x: Float[Tensor, "groups d"],
    displacement: Float[Tensor, "groups d"],
    rate: float | Tensor = torch.nan,
    divisor: Float[Tensor, "groups d"] | None = None,
) -> InnerProducts:
    """Inner products of one step. The gradient's are 0: not asked for, and NaN would say that no step was taken."""
    size = x.new_full((len(x),), x.shape[1])
    nothing = x.new_zeros(1, len(x))
    return InnerProducts(
        xx=_dot(x, x),
        xd=_dot(x, displacement),
        dd=_dot(displacement, displacement),
        gx=nothing,
        gg=nothing,
        bb=size[None] if divisor is None else _dot(divisor, divisor),
        lr=nothing + rate,
        size=size,
    )


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "1 groups"]:
    return (a * b).sum(dim=1)[None]


def _groups(argument: str, tensor: Tensor, axis: int | None, blocks: int | None) -> Float[Tensor, "groups d"]:
    """One row per group, in the precision of the sums."""
    check_groups(axis, blocks)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{argument} takes a floating point tensor, got {got}")
    wide = tensor.to(accumulation_dtype(tensor.device))
    if axis is None:
        return wide.reshape(1, -1)
    if not -tensor.dim() <= axis < tensor.dim():
        raise ValueError(f"axis takes a dimension of {argument}, got {axis} for the shape {tuple(tensor.shape)}")
    count = tensor.shape[axis]
    if blocks is not None and count % blocks:
        raise ValueError(f"blocks takes a divisor of the {count} indices of {argument}'s axis {axis}, got {blocks}")
    rows = count if blocks is None else blocks
    return wide.movedim(axis, 0).reshape(rows, tensor.numel() // max(1, rows))


def _expanded(divisor: Any, shape: torch.Size) -> Tensor:
    takes = f"divisor takes None (1), or a floating point tensor that expands to before's shape {tuple(shape)}"
    if not isinstance(divisor, Tensor):
        raise TypeError(f"{takes}, got {divisor!r}")
    try:
        return divisor.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"{takes}, got the shape {tuple(divisor.shape)}") from error


def _rate(lr: Any) -> float | Tensor:
    if isinstance(lr, Tensor) and lr.numel() == 1:
        return lr.detach().reshape(())
    if isinstance(lr, bool) or not isinstance(lr, (int, float)):
        got = f"a tensor of shape {tuple(lr.shape)}" if isinstance(lr, Tensor) else repr(lr)
        raise TypeError(f"lr takes a number, or a tensor with one element, got {got}")
    if not lr >= 0:
        raise ValueError(f"lr takes a number that is not negative, got {lr!r}")
    return lr
