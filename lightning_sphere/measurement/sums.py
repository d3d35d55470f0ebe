"""The inner products of one bucket, in plain torch operations: the reference path, for every device.

Each product is formed and added in float64: ``<x, D>`` and ``<g, x>`` are sums of large terms that nearly cancel, and
``|D_perp|^2`` is a difference of such sums. (Devices without float64, such as MPS, use float32.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sphere.measurement.plan import Bucket, Slot


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def row_dot(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out[i] = <a[i], b[i]>`` for ``a, b`` of shape ``[rows, length]`` and contiguous ``out`` of shape ``[rows]``."""
    if a.device.type == "cpu":
        torch.bmm(a.unsqueeze(1), b.unsqueeze(2), out=out.view(-1, 1, 1))
    else:
        torch.sum(a * b, dim=1, out=out)


def gather(slots: Sequence[Slot], tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    """Copy the tensors of a bucket into one matrix ``[rows, length]``; NaN rows for those that are ``None``."""
    rows = [
        slot.as_rows(tensor)
        if tensor is not None
        else torch.full((), torch.nan, dtype=slot.parameter.dtype, device=slot.parameter.device).expand(
            slot.blocks, slot.parameter.numel() // slot.blocks
        )
        for slot, tensor in zip(slots, tensors, strict=True)
    ]
    first = slots[0].parameter
    length = first.numel() // slots[0].blocks
    out = torch.empty(sum(slot.blocks for slot in slots), length, dtype=dtype, device=first.device)
    return torch.cat(rows, out=out)


def _gradient(slot: Slot) -> Tensor | None:
    gradient = slot.parameter.grad
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def before_step(bucket: Bucket, row: Tensor) -> Tensor:
    """Write ``xx, gx, gg`` and keep the weights.

    Args:
        bucket: what to measure.
        row: the ring's row, ``[columns, segments]``.

    Returns:
        Copy of the weights, ``[rows, length]`` in their own dtype.
    """
    copy = gather(bucket.slots, [slot.parameter.detach() for slot in bucket.slots], bucket.slots[0].parameter.dtype)
    x = copy.to(row.dtype)
    g = gather(bucket.slots, [_gradient(slot) for slot in bucket.slots], row.dtype)
    span = slice(bucket.start, bucket.stop)
    row_dot(x, x, row[0, span])
    row_dot(g, x, row[1, span])
    row_dot(g, g, row[2, span])
    return copy


def after_step(bucket: Bucket, row: Tensor, copy: Tensor) -> None:
    """Write ``xd, dd``: the displacement is formed element-wise from the two weights before any reduction."""
    x = copy.to(row.dtype)
    displacement = gather(bucket.slots, [slot.parameter.detach() for slot in bucket.slots], row.dtype).sub_(x)
    span = slice(bucket.start, bucket.stop)
    row_dot(x, displacement, row[3, span])
    row_dot(displacement, displacement, row[4, span])


def second_moment(bucket: Bucket, row: Tensor, moments: Sequence[Tensor | None]) -> None:
    """Write the sums of ``v`` and of ``sqrt(v)`` over each segment, ``v`` being the optimizer's second moment."""
    v = gather(bucket.slots, moments, row.dtype)
    span = slice(bucket.start, bucket.stop)
    torch.sum(v, dim=1, out=row[5, span])
    torch.sum(v.sqrt_(), dim=1, out=row[6, span])


def unscale(row: Tensor, scale: Tensor) -> None:
    """Undo a loss scaler's factor in the sums that hold gradients."""
    scale = scale.to(row.dtype)
    row[1].div_(scale)
    row[2].div_(scale * scale)


def forget_if(row: Tensor, condition: Tensor) -> None:
    """Make the whole row NaN where a device-side flag is set, without reading the flag."""
    row.masked_fill_(condition.to(row.device) > 0, torch.nan)
