"""At flush: from the ring's sums per segment to inner products per group, in float64 on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sphere.directions.direction import Direction, Numbers, Scalars, divisor_square
from lightning_sphere.geometry import InnerProducts
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.ring import HostRow


@dataclass(frozen=True)
class Rare:
    """Sums of the steps at which they were measured."""

    rows: tuple[int, ...]
    """Indices of these steps among the collected ones."""
    sums: Tensor
    """float64 ``[steps, kinds, groups]``; kinds as in :class:`HostRow`."""


@dataclass(frozen=True)
class Collected:
    """Some steps of one optimizer."""

    products: InnerProducts
    """Of shape ``[steps, groups]``."""
    numbers: Numbers
    """The optimizer's numbers, float64 ``[steps, layers]``; NaN where a layer's tensors have different ones."""
    mixed_rates: frozenset[str]
    """Names of the layers whose tensors had different learning rates, so that they have none."""
    reference: Rare
    asked: Rare
    mismatch: tuple[float, str]
    """The largest error of the optimizer's formula that rounding does not explain, relative to the displacement that it
    asks for, and the tensor's name; 0 where there is none."""


def collect(
    data: Tensor, host: Sequence[HostRow], plan: Plan, direction: Direction, columns: Sequence[str]
) -> Collected:
    """Add segments up to groups, and attach what the optimizer's numbers say.

    Args:
        data: float64 ``[steps, columns, segments]``, as drained from the ring.
        host: the notes of the same steps.
        plan: the layout of the segments.
        direction: of the optimizer that was measured.
        columns: names of the sums.
    """
    column = {name: data[:, index] for index, name in enumerate(columns)}
    segments, groups = plan.pairs
    slots, size = plan.slot_of_segment, plan.size_of_segment

    def per_group(sums: Tensor) -> Tensor:
        total = sums.new_zeros(*sums.shape[:-1], plan.first_group[-1])
        return total.index_add_(-1, groups, sums[..., segments])

    numbers = _numbers(host, plan, direction, column["xx"])
    scalars = _filled(direction.scalars(numbers), numbers["lr"])
    of_segment = Scalars(*(value[:, slots] for value in scalars))
    bb = _divisor_square(direction, of_segment, column, size, per_group)
    aa, ax, ad = _numerator(direction, of_segment, column, per_group)
    blocks = torch.tensor([layer.blocks for layer in (*plan.layers, *plan.probes)], device="cpu")
    rate = _common(scalars[0], plan)
    return Collected(
        InnerProducts(
            **{name: per_group(column[name]) for name in ("xx", "xd", "dd", "gx", "gg")},
            bb=bb,
            lr=rate.repeat_interleave(blocks, dim=1),
            size=per_group(size),
            aa=aa,
            ax=ax,
            ad=ad,
        ),
        {name: _common(values, plan) for name, values in numbers.items()},
        _mixed(scalars[0], plan),
        _rare([row.reference for row in host], per_group, 3, plan),
        _rare([row.asked for row in host], per_group, 4, plan),
        _mismatch(host, column["xx"], plan),
    )


def _numbers(host: Sequence[HostRow], plan: Plan, direction: Direction, xx: Tensor) -> dict[str, Tensor]:
    """float64 ``[steps, slots]`` by name; NaN for skipped steps."""
    names = sorted({"lr"}.union(*(group for row in host for group in row.hyperparameters)))
    groups = 1 + max((slot.param_group for slot in plan.slots), default=0)
    unknown: list[dict[str, float]] = [{}] * groups
    rows = [
        [[float(group.get(name, torch.nan)) for name in names] for group in (row.hyperparameters or unknown)[:groups]]
        for row in host
    ]
    table = torch.tensor(rows, dtype=torch.float64, device="cpu")  # [steps, param groups, names]
    table = table[:, [slot.param_group for slot in plan.slots]]
    found = {name: table[..., index] for index, name in enumerate(names)}
    missing = torch.full((len(plan.slots),), torch.nan, device="cpu")
    counts = [missing if row.optimizer_step is None else row.optimizer_step for row in host]
    found["step"] = torch.stack([count.to("cpu", torch.float64) for count in counts])
    entries = [slot.parameter.numel() for slot in plan.slots]
    first = [slot.parameter.shape[0] if slot.parameter.dim() else 1 for slot in plan.slots]
    as_rows = torch.tensor(first, dtype=torch.float64, device="cpu").expand_as(found["lr"])
    total = torch.tensor(entries, dtype=torch.float64, device="cpu").expand_as(found["lr"])
    found |= {"rows": as_rows, "columns": total / as_rows}
    square = torch.zeros_like(found["lr"]).index_add_(1, plan.slot_of_segment, xx)
    found["rms"] = (square / total).sqrt()
    return found


def _filled(scalars: Scalars, like: Tensor) -> tuple[Tensor, ...]:
    """Rate, shrink, numerator, root and offset as tensors of one shape."""
    values = (scalars.rate, scalars.shrink, scalars.numerator, scalars.root, scalars.offset)
    return tuple(torch.as_tensor(value, dtype=like.dtype, device="cpu").expand_as(like) for value in values)


def _divisor_square(
    direction: Direction,
    scalars: Scalars,
    column: dict[str, Tensor],
    size: Tensor,
    per_group: Callable[[Tensor], Tensor],
) -> Tensor:
    """``|b|^2`` per group; NaN where it was not measured, or no gradient has set a scale yet."""
    if not direction.has_second_moment:
        return per_group(size.expand_as(column["xx"]))
    if "v" not in column:
        return torch.full_like(per_group(column["xx"]), torch.nan)
    square = per_group(divisor_square(scalars, column["v"], column["sqrt_v"], size))
    return torch.where(per_group(column["v"]) > 0, square, torch.nan)


def _numerator(
    direction: Direction, scalars: Scalars, column: dict[str, Tensor], per_group: Callable[[Tensor], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``<a, a>, <a, x>, <a, D>`` per group, the last one only where ``b`` is not 1; ``None`` for what is not known."""
    if "aa" in column:
        factor = torch.as_tensor(scalars.numerator)
        aa, ax = column["aa"] * factor * factor, column["ax"] * factor
    elif direction.inferred:  # D = -rate a - shrink x
        rate, shrink = scalars.rate, scalars.shrink
        xx, xd, dd = column["xx"], column["xd"], column["dd"]
        aa = (dd + 2.0 * shrink * xd + shrink * shrink * xx) / (rate * rate)
        ax = -(xd + shrink * xx) / rate
    else:
        return None, None, None
    aa = torch.where(column["gg"].isnan(), torch.nan, aa)  # no gradient, no step
    divides = direction.has_second_moment
    return per_group(aa), per_group(ax), per_group(column["ad"] * scalars.numerator) if divides else None


def _common(values: Tensor, plan: Plan) -> Tensor:
    """``[steps, slots]`` -> ``[steps, layers and probes]``; NaN where a layer's tensors have different values."""
    slots = plan.slots_of_layer
    found = values[:, [some[0] for some in slots]].clone()
    for index, some in enumerate(slots):
        if len(some) > 1:
            differ = (values[:, list(some)] != values[:, some[:1]]).any(1)
            found[differ, index] = torch.nan
    return found


def _mixed(rate: Tensor, plan: Plan) -> frozenset[str]:
    """Names of layers whose tensors had different known rates at some step."""
    known = ~rate.isnan()
    return frozenset(
        layer.name
        for layer, some in zip(plan.layers, plan.slots_of_layer, strict=False)
        if len(some) > 1
        and bool(((rate[:, list(some)] != rate[:, some[:1]]) & known[:, list(some)] & known[:, some[:1]]).any())
    )


def _rare(found: Sequence[Tensor | None], per_group: Callable[[Tensor], Tensor], kinds: int, plan: Plan) -> Rare:
    rows = tuple(index for index, sums in enumerate(found) if sums is not None)
    if not rows:
        return Rare((), torch.empty(0, kinds, plan.first_group[-1], dtype=torch.float64, device="cpu"))
    sums = torch.stack([sums.to("cpu", torch.float64) for sums in found if sums is not None])
    return Rare(rows, per_group(sums))


def _mismatch(host: Sequence[HostRow], xx: Tensor, plan: Plan) -> tuple[float, str]:
    """The largest unexplained error of the formula over all steps at which it was looked at, and where."""
    worst = 0.0, ""
    # float16 second moments underflow in the optimizer's state, so that it no longer tells what was divided by.
    dtypes = [slot.parameter.dtype for slot in plan.slots]
    eps = [torch.inf if dtype == torch.float16 else torch.finfo(dtype).eps for dtype in dtypes]
    rounding = torch.tensor(eps, dtype=torch.float64, device="cpu") * 2.0
    for index, row in enumerate(host):
        if row.asked is None:
            continue

        def per_slot(sums: Tensor) -> Tensor:
            return torch.zeros_like(rounding).index_add_(0, plan.slot_of_segment, sums)

        _, _, asked, error = row.asked.to("cpu", torch.float64)
        unexplained = (per_slot(error).sqrt() - rounding * per_slot(xx[index]).sqrt()).clamp_min(0.0)
        relative = (unexplained / per_slot(asked).sqrt()).nan_to_num(0.0, posinf=0.0)
        value, slot = relative.max(0)
        if float(value) > worst[0]:
            worst = float(value), plan.slots[int(slot)].name
    return worst
