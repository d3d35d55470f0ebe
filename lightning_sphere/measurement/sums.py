"""The inner products of one step, in plain torch operations: the reference path, for every device.

Products are formed and added in float64: ``<x, D>`` and ``<g, x>`` are sums of large terms that nearly cancel, and
``|D_perp|^2`` is a difference of such sums. (Devices without float64, such as MPS, use float32.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sphere.measurement.plan import Bucket, Plan, Slot


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Scratch:
    """Memory for one bucket, used again for each: allocating it anew would cost more than the arithmetic.

    Args:
        plan: the largest of its buckets decides the size.
        matrices: how many matrices of that size are used at a time.
    """

    def __init__(self, plan: Plan, matrices: int = 2) -> None:
        size = max((bucket.shape[0] * bucket.shape[1] for bucket in plan.buckets), default=0)
        dtype = accumulation_dtype(plan.device)
        self._wide = torch.empty(matrices, size, dtype=dtype, device=plan.device)
        self._narrow = torch.empty(size, dtype=torch.float32, device=plan.device)

    def wide(self, number: int, bucket: Bucket) -> Tensor:
        """Matrix number 0, 1 ... of a bucket's shape, in the precision of the sums."""
        rows, length = bucket.shape
        return self._wide[number, : rows * length].view(rows, length)

    def narrow(self, bucket: Bucket) -> Tensor:
        """A float32 matrix of a bucket's shape."""
        rows, length = bucket.shape
        return self._narrow[: rows * length].view(rows, length)


def row_square(a: Tensor, out: Tensor) -> None:
    """``out[i] = <a[i], a[i]>`` for ``a`` of shape ``[rows, length]``: the norm's kernel is the fastest of its kind."""
    torch.linalg.vector_norm(a, dim=1, out=out).square_()


def row_dot_(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out[i] = <a[i], b[i]>``; ``a`` is overwritten."""
    torch.sum(a.mul_(b), dim=1, out=out)


def as_matrices(slots: Sequence[Slot], tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Each tensor as ``[blocks, length]``; NaN without memory for those that are ``None``."""
    return [
        slot.as_rows(tensor)
        if tensor is not None
        else slot.parameter.new_full((), torch.nan).expand(slot.blocks, slot.length)
        for slot, tensor in zip(slots, tensors, strict=True)
    ]


def weights(plan: Plan) -> list[Tensor]:
    """The weights as matrices."""
    return as_matrices(plan.slots, [slot.parameter.detach() for slot in plan.slots])


def gradients(plan: Plan) -> list[Tensor]:
    """The gradients as matrices."""
    found = [slot.parameter.grad for slot in plan.slots]
    return as_matrices(plan.slots, [g.to_dense() if g is not None and g.is_sparse else g for g in found])


def gather(bucket: Bucket, matrices: Sequence[Tensor], out: Tensor) -> Tensor:
    """Copy a bucket's pieces into one matrix, converting to its dtype."""
    pieces = [piece.of(matrices[piece.slot]) for piece in bucket.pieces]
    return out.copy_(pieces[0]) if len(pieces) == 1 else torch.cat(pieces, out=out)


def before_step(plan: Plan, row: Tensor, scratch: Scratch) -> list[Tensor]:
    """Write ``xx, gx, gg`` and keep the weights.

    Args:
        plan: what to measure.
        row: the ring's row, ``[columns, segments]``.
        scratch: memory to work in.

    Returns:
        Copies of the weights in their own dtype, one matrix per bucket.
    """
    w, g = weights(plan), gradients(plan)
    copies = []
    for bucket in plan.buckets:
        copy = gather(bucket, w, torch.empty(bucket.shape, dtype=bucket.dtype, device=plan.device))
        copies.append(copy)
        x, gradient = scratch.wide(0, bucket).copy_(copy), gather(bucket, g, scratch.wide(1, bucket))
        row_square(x, row[0, bucket.span])
        row_square(gradient, row[2, bucket.span])
        row_dot_(gradient, x, row[1, bucket.span])
    return copies


def after_step(plan: Plan, row: Tensor, scratch: Scratch, copies: Sequence[Tensor]) -> None:
    """Write ``xd, dd``: the displacement is formed element-wise from the two weights before any reduction."""
    w = weights(plan)
    for bucket, copy in zip(plan.buckets, copies, strict=True):
        x = scratch.wide(0, bucket).copy_(copy)
        displacement = gather(bucket, w, scratch.wide(1, bucket)).sub_(x)
        row_square(displacement, row[4, bucket.span])
        row_dot_(displacement, x, row[3, bucket.span])


def second_moment(plan: Plan, row: Tensor, scratch: Scratch, moments: Sequence[Tensor | None]) -> None:
    """Write the sums of ``v`` and of ``sqrt(v)`` over each segment, ``v`` being the optimizer's second moment.

    All terms are positive, so the roots may be rounded to float32 while the sums are not.
    """
    v = as_matrices(plan.slots, moments)
    for bucket in plan.buckets:
        root = scratch.wide(0, bucket).copy_(gather(bucket, v, scratch.narrow(bucket)).sqrt_())
        row_square(root, row[5, bucket.span])
        torch.sum(root, dim=1, out=row[6, bucket.span])


def numerator(
    plan: Plan, row: Tensor, scratch: Scratch, copies: Sequence[Tensor], directions: Sequence[Tensor | None]
) -> None:
    """Write ``aa, ax, ad`` into the last three columns: ``a`` is the optimizer's direction before its division."""
    a, w = as_matrices(plan.slots, directions), weights(plan)
    for bucket, copy in zip(plan.buckets, copies, strict=True):
        x, direction = scratch.wide(0, bucket).copy_(copy), gather(bucket, a, scratch.wide(1, bucket))
        displacement = gather(bucket, w, scratch.wide(2, bucket)).sub_(x)
        row_square(direction, row[-3, bucket.span])
        row_dot_(x, direction, row[-2, bucket.span])
        row_dot_(displacement, direction, row[-1, bucket.span])


def unscale(row: Tensor, scale: Tensor) -> None:
    """Undo a loss scaler's factor in the sums that hold gradients."""
    scale = scale.to(row.dtype)
    row[1].div_(scale)
    row[2].div_(scale * scale)


def forget_if(row: Tensor, condition: Tensor) -> None:
    """Make the whole row NaN where a device-side flag is set, without reading the flag."""
    row.masked_fill_(condition.to(row.device) > 0, torch.nan)
