"""The inner products of one step, in plain torch operations: the reference path, for every device.

Products are formed and added in float64: ``<x, D>`` and ``<g, x>`` are sums of large terms that nearly cancel, and
``|D_perp|^2`` is a difference of such sums. (Devices without float64, such as MPS, use float32.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sphere.measurement.around import Kept
from lightning_sphere.measurement.plan import Bucket, Piece, Plan, Slot


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


class TorchSums:
    """The reference path: a handful of operations per bucket, on every device.

    Args:
        plan: what to measure.
        columns: names of the sums per segment, the order of a row of the ring.
    """

    name = "PyTorch operations"

    def __init__(self, plan: Plan, columns: Sequence[str]) -> None:
        self.plan = plan
        self._at = {name: index for index, name in enumerate(columns)}
        self._scratch = Scratch(plan, 3 if "aa" in self._at else 2)

    def before(self, row: Tensor) -> KeptBuckets:
        """Write ``xx, gx, gg`` into a row ``[columns, segments]`` of the ring, and keep the weights."""
        w, g = weights(self.plan), gradients(self.plan)
        copies = []
        for bucket in self.plan.buckets:
            copy = gather(bucket, w, torch.empty(bucket.shape, dtype=bucket.dtype, device=self.plan.device))
            copies.append(copy)
            x, gradient = self._scratch.wide(0, bucket).copy_(copy), gather(bucket, g, self._scratch.wide(1, bucket))
            row_square(x, row[self._at["xx"], bucket.span])
            row_square(gradient, row[self._at["gg"], bucket.span])
            row_dot_(gradient, x, row[self._at["gx"], bucket.span])
        return KeptBuckets(self.plan, copies)

    def forget(self) -> None:
        """Nothing is held from step to step."""

    def late_gradients(self, row: Tensor, kept: Kept) -> None:
        """Write ``gx, gg`` again, from the gradients that are there now."""
        g = gradients(self.plan)
        for bucket, copy in zip(self.plan.buckets, kept.copies, strict=True):
            x, gradient = self._scratch.wide(0, bucket).copy_(copy), gather(bucket, g, self._scratch.wide(1, bucket))
            row_square(gradient, row[self._at["gg"], bucket.span])
            row_dot_(gradient, x, row[self._at["gx"], bucket.span])

    def after(
        self,
        row: Tensor,
        kept: Kept,
        moments: Sequence[Tensor | None] | None,
        directions: Sequence[Tensor | None] | None,
    ) -> None:
        """Write the other sums into the same row.

        Args:
            row: of the ring.
            kept: what :meth:`before` gave.
            moments: the optimizer's second moment of each slot; ``None`` if none is wanted.
            directions: its direction before the division; ``None`` if none is wanted.
        """
        self._displacement(row, kept.copies)
        if moments is not None:
            self._second_moment(row, moments)
        if directions is not None:
            self._numerator(row, kept.copies, directions)

    def _displacement(self, row: Tensor, copies: Sequence[Tensor]) -> None:
        """``xd, dd``: the displacement is formed element-wise from the two weights before any reduction."""
        w = weights(self.plan)
        for bucket, copy in zip(self.plan.buckets, copies, strict=True):
            x = self._scratch.wide(0, bucket).copy_(copy)
            displacement = gather(bucket, w, self._scratch.wide(1, bucket)).sub_(x)
            row_square(displacement, row[self._at["dd"], bucket.span])
            row_dot_(displacement, x, row[self._at["xd"], bucket.span])

    def _second_moment(self, row: Tensor, moments: Sequence[Tensor | None]) -> None:
        """Sums of ``v`` and of ``sqrt(v)``: all terms are positive, so the roots may be rounded to float32."""
        v = as_matrices(self.plan.slots, moments)
        for bucket in self.plan.buckets:
            root = self._scratch.wide(0, bucket).copy_(gather(bucket, v, self._scratch.narrow(bucket)).sqrt_())
            row_square(root, row[self._at["v"], bucket.span])
            torch.sum(root, dim=1, out=row[self._at["sqrt_v"], bucket.span])

    def _numerator(self, row: Tensor, copies: Sequence[Tensor], directions: Sequence[Tensor | None]) -> None:
        """``aa, ax, ad``: ``a`` is the optimizer's direction before its division."""
        a, w = as_matrices(self.plan.slots, directions), weights(self.plan)
        for bucket, copy in zip(self.plan.buckets, copies, strict=True):
            x, direction = self._scratch.wide(0, bucket).copy_(copy), gather(bucket, a, self._scratch.wide(1, bucket))
            displacement = gather(bucket, w, self._scratch.wide(2, bucket)).sub_(x)
            row_square(direction, row[self._at["aa"], bucket.span])
            row_dot_(x, direction, row[self._at["ax"], bucket.span])
            row_dot_(displacement, direction, row[self._at["ad"], bucket.span])

    def pair(self, then: Sequence[Tensor | None], out: Tensor) -> None:
        """Write ``<x0, x0>, <x0, E>, <E, E>`` into ``[3, segments]``, ``E`` being the weights less ``x0``.

        Args:
            then: ``x0`` of each slot, where the weights are; NaN results where it is ``None``.
            out: of the ring's precision.
        """
        old, now = as_matrices(self.plan.slots, then), weights(self.plan)
        for bucket in self.plan.buckets:
            x = gather(bucket, old, self._scratch.wide(0, bucket))
            compare_bucket(bucket, x, now, out, self._scratch)


def compare_bucket(bucket: Bucket, x: Tensor, now: Sequence[Tensor], out: Tensor, scratch: Scratch) -> None:
    """``<x, x>, <x, E>, <E, E>`` of a bucket's segments, ``E = now - x`` formed element-wise.

    Args:
        bucket: of a plan.
        x: its matrix number 0 in the scratch memory.
        now: matrices of all slots.
        out: ``[3, segments]``.
        scratch: memory to work in.
    """
    change = gather(bucket, now, scratch.wide(1, bucket)).sub_(x)
    row_square(x, out[0, bucket.span])
    row_square(change, out[2, bucket.span])
    row_dot_(change, x, out[1, bucket.span])


class KeptBuckets:
    """The weights before a step in their own dtype, one matrix per bucket."""

    def __init__(self, plan: Plan, copies: Sequence[Tensor]) -> None:
        self._plan, self.copies = plan, copies

    def whole(self, index: int) -> Tensor:
        """Those of a slot, in the parameter's shape and dtype."""
        slot = self._plan.slots[index]
        matrix = torch.empty(slot.blocks, slot.length, dtype=slot.parameter.dtype, device=slot.parameter.device)
        for piece, rows, bucket in self._plan.segments_of_slot[index]:
            piece.of(matrix).copy_(self.piece(index, piece, rows, bucket))
        shape = slot.parameter.movedim(slot.axis, 0).shape if slot.axis else slot.parameter.shape
        return matrix.reshape(shape).movedim(0, slot.axis) if slot.axis else matrix.reshape(shape)

    def piece(self, index: int, piece: Piece, rows: slice, bucket: int) -> Tensor:
        """Those of a piece, as a view of the kept copy."""
        start = self._plan.buckets[bucket].start
        return self.copies[bucket][rows.start - start : rows.stop - start]


def unscale(row: Tensor, scale: Tensor) -> None:
    """Undo a loss scaler's factor in the sums that hold gradients."""
    scale = scale.to(row.dtype)
    row[1].div_(scale)
    row[2].div_(scale * scale)


def forget_if(row: Tensor, condition: Tensor) -> None:
    """Make the whole row NaN where a device-side flag is set, without reading the flag."""
    row.masked_fill_(condition.to(row.device) > 0, torch.nan)
