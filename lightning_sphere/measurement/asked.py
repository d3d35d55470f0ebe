"""Now and then: the displacement that the optimizer's formula asks for, against the one that happened.

In low precision an update below half a unit in the last place is lost: the weight stays where it is. And a formula that
is not the optimizer's own shows as an error larger than rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions.direction import Direction, displacement, numbers_of
from lightning_sphere.measurement.around import Around
from lightning_sphere.measurement.sums import accumulation_dtype

ASKED: tuple[str, ...] = ("asked", "unmoved", "asked_square", "error_square")
"""Sums over a segment's entries, ``P`` being asked for and ``D`` what happened: of ``|P|``, of ``|P|`` where ``D`` is
exactly 0, of ``P^2``, of ``(D - P)^2``."""


def asked(around: Around, optimizer: Optimizer, direction: Direction) -> Tensor:
    """The sums of :data:`ASKED`, tensor by tensor: temporary memory is some four times the largest one.

    Args:
        around: the step.
        optimizer: right after it.
        direction: of the optimizer.

    Returns:
        ``[4, segments]`` on the weights' device, in the precision of the sums; NaN where a tensor was not updated, or
        where the formula is not known.
    """
    plan = around.plan
    wide = accumulation_dtype(plan.device)
    sums = torch.full((len(ASKED), plan.segments), torch.nan, dtype=wide, device=plan.device)
    for index, slot in enumerate(plan.slots):
        at = around.tensors(index, optimizer)
        wanted = None if at is None else displacement(direction, at, numbers_of(direction, at, at.weight))
        if wanted is None:
            continue
        p_of_slot, now = slot.as_rows(wanted), slot.as_rows(slot.parameter.detach())
        for piece, rows, bucket in plan.segments_of_slot[index]:
            p = piece.of(p_of_slot)
            d = piece.of(now).to(wide) - around.before(rows, bucket).to(wide)
            sums[2, rows] = p.square().sum(1)
            size = p.abs()
            sums[0, rows] = size.sum(1)
            sums[1, rows] = size.mul_(d == 0).sum(1)
            sums[3, rows] = d.sub_(p).square_().sum(1)
    return sums
