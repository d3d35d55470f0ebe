"""At flush: from the ring's sums per segment to inner products per group, in float64 on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sphere.directions import HYPERPARAMETERS, Direction, adam_divisor_square
from lightning_sphere.geometry import InnerProducts
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.ring import COLUMNS, HostRow


def inner_products(data: Tensor, host: list[HostRow], plan: Plan, direction: Direction) -> InnerProducts:
    """Add segments up to groups and attach the learning rates.

    Args:
        data: float64 ``[steps, columns, segments]``, as drained from the ring.
        host: the notes of the same steps.
        plan: the layout of the segments.
        direction: of the optimizer that was measured.

    Returns:
        Inner products of shape ``[steps, groups]``.
    """
    column = {name: data[:, index] for index, name in enumerate(COLUMNS[: data.shape[1]])}
    lr, beta2, eps = _hyperparameters(host, plan)
    size = plan.size_of_segment
    segments, groups = plan.pairs

    def per_group(sums: Tensor) -> Tensor:
        total = sums.new_zeros(*sums.shape[:-1], plan.first_group[-1])
        return total.index_add_(-1, groups, sums[..., segments])

    if direction.has_second_moment:
        count = _optimizer_steps(host, plan)
        bb = per_group(adam_divisor_square(column["v"], column["sqrt_v"], count, beta2, eps, size))
        bb = torch.where(per_group(column["v"]) > 0, bb, torch.nan)  # no gradient has set a scale yet
    else:
        bb = per_group(size.expand_as(column["xx"]))
    return InnerProducts(
        xx=per_group(column["xx"]),
        xd=per_group(column["xd"]),
        dd=per_group(column["dd"]),
        gx=per_group(column["gx"]),
        gg=per_group(column["gg"]),
        bb=bb,
        lr=_common(lr, plan),
        size=per_group(size),
    )


def mixed_rates(host: list[HostRow], plan: Plan) -> set[str]:
    """Names of layers whose tensors had different learning rates, so that the group has none."""
    lr = HYPERPARAMETERS.index("lr")
    groups: list[set[int]] = [set() for _ in (*plan.layers, *plan.probes)]
    for use in plan.uses:
        groups[use.layer].add(plan.slots[use.slot].param_group)

    def differ(some: set[int]) -> bool:
        return any(len({float(row.hyperparameters[g][lr]) for g in some}) > 1 for row in host if not row.skipped)

    return {layer.name for layer, some in zip(plan.layers, groups, strict=False) if len(some) > 1 and differ(some)}


def _hyperparameters(host: list[HostRow], plan: Plan) -> Tensor:
    """float64 ``[3, steps, segments]``; NaN for skipped steps."""
    groups = 1 + max((slot.param_group for slot in plan.slots), default=0)
    unknown = [(torch.nan,) * len(HYPERPARAMETERS)] * groups
    rows = [[[float(value) for value in group] for group in (row.hyperparameters or unknown)[:groups]] for row in host]
    table = torch.tensor(rows, dtype=torch.float64, device="cpu")  # [steps, param groups, 3]
    return table.permute(2, 0, 1)[..., plan.param_group_of_segment]


def _optimizer_steps(host: list[HostRow], plan: Plan) -> Tensor:
    """float64 ``[steps, segments]``: updates made to each segment's tensor; NaN where unknown."""
    unknown = torch.full((len(plan.slots),), torch.nan, device="cpu")
    rows = [unknown if row.optimizer_step is None else row.optimizer_step for row in host]
    return torch.stack([row.to("cpu", torch.float64) for row in rows])[:, plan.slot_of_segment]


def _common(lr: Tensor, plan: Plan) -> Tensor:
    """The learning rate of each group, ``[steps, groups]``; NaN where a group's tensors have different ones."""
    segments, groups = plan.pairs
    lr = lr[..., segments]
    index = groups.expand_as(lr)
    empty = lr.new_zeros(lr.shape[0], plan.first_group[-1])
    low = empty.scatter_reduce(-1, index, lr, "amin", include_self=False)
    high = empty.scatter_reduce(-1, index, lr, "amax", include_self=False)
    return torch.where(low == high, low, torch.nan)
