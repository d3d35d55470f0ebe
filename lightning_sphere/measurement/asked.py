"""Now and then: the displacement that the optimizer's formula asks for, against the one that happened.

In low precision an update below half a unit in the last place is lost: the weight stays where it is. And a formula that
is not the optimizer's own shows as an error larger than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions.direction import Direction, displacement, numbers_of
from lightning_sphere.measurement.around import Around
from lightning_sphere.measurement.plan import Plan

ASKED: tuple[str, ...] = ("asked", "unmoved", "asked_square", "error_square")
"""Sums over a segment's entries, ``P`` being asked for and ``D`` what happened: of ``|P|``, of ``|P|`` where ``D`` is
exactly 0, of ``P^2``, of ``(D - P)^2``."""


def asked(around: Around, optimizer: Optimizer, direction: Direction, xx: Tensor) -> Tensor:
    """The sums of :data:`ASKED`.

    Args:
        around: the step.
        optimizer: right after it.
        direction: of the optimizer. Where it is element-wise, temporary memory is that of a piece, else some four times
            the largest tensor.
        xx: sum of the squares of the weights before the step, ``[segments]``.

    Returns:
        ``[4, segments]`` on the weights' device, in the precision of the sums; NaN where a tensor was not updated, or
        where the formula is not known.
    """
    plan = around.plan
    sums = torch.full((len(ASKED), plan.segments), torch.nan, dtype=xx.dtype, device=plan.device)
    for index, slot in enumerate(plan.slots):
        if not around.stepped[index] or slot.parameter.numel() == 0:
            continue
        places = plan.segments_of_slot[index]
        square = torch.stack([xx[rows].sum() for _, rows, _ in places]).sum()
        whole = around.tensors(index, optimizer)
        rms = (square / slot.parameter.numel()).sqrt()
        numbers = numbers_of(direction, whole.group, whole.count, slot.parameter, rms)
        if direction.elementwise:
            for rows, at in around.pieces(index, optimizer):
                wanted = displacement(direction, at, numbers)
                if wanted is not None:
                    _compare(sums[:, rows], wanted, at.after, at.weight)
            continue
        wanted = displacement(direction, whole, numbers)
        if wanted is not None:
            matrix, now = slot.as_rows(wanted), slot.as_rows(slot.parameter.detach())
            for piece, rows, bucket in places:
                _compare(sums[:, rows], piece.of(matrix), piece.of(now), around.kept.piece(index, piece, rows, bucket))
    return sums


def error(sums: Sequence[Tensor | None], plan: Plan) -> float | None:
    """How far numbers of groups are off, about, if the formula is taken for what happened: the largest of all tensors.

    Rounding differs from entry to entry, so that of ``n`` entries it is off by ``1 / sqrt(n)`` of a tensor's share
    ``|D - P| / |P|``; nothing more than a tenth is credited, for the difference may be another.

    Args:
        sums: those of some steps, ``[4, segments]`` on the host; ``None`` for a step that was not compared.
        plan: what they are of.

    Returns:
        ``None`` if nothing was compared. Tensors that were not updated, or were asked for nothing, say nothing.
    """
    worst = None
    even = torch.tensor([float(slot.length) for slot in plan.slots], device="cpu").sqrt().clamp(1.0, 10.0)
    for found in sums:
        if found is not None:
            totals = found.new_zeros(len(ASKED), len(plan.slots)).index_add_(1, plan.slot_of_segment, found)
            off = (totals[3] / totals[2]).sqrt() / even
            known = off[~off.isnan()]
            if len(known):  # where nothing was asked for, as at a learning rate of 0, nothing is known
                worst = max(worst or 0.0, float(known.max()))
    return worst


def rounding(xx: Tensor, dd: Tensor, plan: Plan) -> float:
    """The same as it must be by rounding alone, from the sums of the last step ``[segments]``, on the host.

    Weights are rounded to within half a unit of their last place, a third of that on average.
    """
    square, moved = (sums.new_zeros(len(plan.slots)).index_add_(0, plan.slot_of_segment, sums) for sums in (xx, dd))
    places = [torch.finfo(slot.parameter.dtype).eps for slot in plan.slots]
    even = torch.tensor([float(slot.length) for slot in plan.slots], device="cpu").sqrt().clamp(1.0, 10.0)
    off = (square / moved).sqrt() * torch.tensor(places, dtype=torch.float64, device="cpu") / 6.0 / even
    known = off[off.isfinite()]
    return float(known.max()) if len(known) else 0.0


def _compare(sums: Tensor, p: Tensor, after: Tensor, before: Tensor) -> None:
    """Write the sums of some segments; ``p`` is what was asked for, ``[segments, length]``."""
    d = after.to(p.dtype) - before.to(p.dtype)
    size = p.abs()
    sums[0] = size.sum(1)
    sums[1] = size.mul_(d == 0).sum(1)
    sums[2] = p.square().sum(1)
    sums[3] = d.sub_(p).square_().sum(1)
