"""At flush: from the ring's sums per segment to inner products per group, in float64 on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_sphere.directions.direction import Direction, Numbers, Scalars, divisor_square
from lightning_sphere.geometry import InnerProducts, tiles
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.ring import HostRow

Array: TypeAlias = npt.NDArray[Any]


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
    apart: Tensor
    """How many optimizer steps each is after the recorded one before it, int64 ``[steps]``."""
    numbers: Numbers
    """The optimizer's numbers, float64 ``[steps, layers]``; NaN where a layer's tensors have different ones."""
    mixed_rates: frozenset[str]
    """Names of the layers whose tensors had different learning rates, so that they have none."""
    reference: Rare
    asked: Rare
    mismatch: tuple[float, str]
    """The largest error of the optimizer's formula that rounding does not explain, relative to the displacement that it
    asks for, and the tensor's name; 0 where there is none."""


class _Adder:
    """Adds numbers up that belong together.

    Args:
        members: which numbers to add, int64 ``[pairs]``.
        sums: which sum each of them belongs to, from 0 on, each at least once.
    """

    def __init__(self, members: Tensor, sums: Tensor) -> None:
        found = sums.numpy()
        order = np.argsort(found, kind="stable")
        self._members = members.numpy()[order]
        self._in_order = np.array_equal(self._members, np.arange(len(order)))
        first = np.flatnonzero(np.diff(found[order], prepend=-1))
        self._first = None if len(first) == len(order) else first  # None: each is alone

    def __call__(self, values: Array, out: Array | None = None) -> Array:
        """Sums, ``[..., numbers]`` -> ``[..., sums]``; maybe the values themselves where each is alone."""
        if not self._in_order:
            values = np.take(values, self._members, axis=-1, out=out if self._first is None else None)
        if self._first is not None:
            return np.add.reduceat(values, self._first, axis=-1, out=out)
        if out is not None and self._in_order:
            np.copyto(out, values)
        return values if out is None else out


class _PlanArrays:
    """What a plan says of its segments, as arrays."""

    def __init__(self, plan: Plan) -> None:
        self.per_group = _Adder(*plan.pairs)
        slots = plan.slot_of_segment
        self.slots = slots.numpy()
        self.per_slot = _Adder(torch.arange(len(slots), device="cpu"), slots)
        self.size = plan.size_of_segment
        self.size_of_group = torch.from_numpy(self.per_group(self.size.numpy()).copy())
        self.groups = plan.first_group[-1]
        self.blocks = np.array([layer.blocks for layer in (*plan.layers, *plan.probes)], dtype=np.int64)
        self.first_slot = np.array([some[0] for some in plan.slots_of_layer], dtype=np.int64)
        self.several = [(index, list(some)) for index, some in enumerate(plan.slots_of_layer) if len(some) > 1]
        self.param_group = np.array([slot.param_group for slot in plan.slots], dtype=np.int64)
        entries = np.array([slot.parameter.numel() for slot in plan.slots], dtype=np.float64)
        rows = [slot.parameter.shape[0] if slot.parameter.dim() else 1 for slot in plan.slots]
        self.entries, self.rows = entries, np.array(rows, dtype=np.float64)


_known_plans: WeakKeyDictionary[Plan, _PlanArrays] = WeakKeyDictionary()


def _arrays_of(plan: Plan) -> _PlanArrays:
    found = _known_plans.get(plan)
    if found is None:
        found = _known_plans[plan] = _PlanArrays(plan)
    return found


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
    arrays = _arrays_of(plan)
    column = {name: data[:, index] for index, name in enumerate(columns)}
    products = {name: _per_group(column[name], arrays) for name in ("xx", "xd", "dd", "gx", "gg")}
    numbers = _numbers(host, arrays, direction, column["xx"])
    scalars = _filled(direction.scalars(numbers), numbers["lr"])
    common = _common(numbers | {"rate": torch.as_tensor(scalars.rate, device="cpu")}, arrays)
    rate = common.pop("rate")
    aa, ax, ad = _numerator(direction, scalars, column, arrays)
    return Collected(
        InnerProducts(
            **products,
            bb=_divisor_square(direction, scalars, column, arrays),
            lr=torch.from_numpy(np.repeat(rate.numpy(), arrays.blocks, axis=1)),
            size=arrays.size_of_group,
            aa=aa,
            ax=ax,
            ad=ad,
        ),
        torch.tensor([row.apart for row in host], device="cpu"),
        common,
        _mixed(scalars.rate, plan),
        _rare([row.reference for row in host], 3, arrays),
        _rare([row.asked for row in host], 4, arrays),
        _mismatch(host, column["xx"], plan),
    )


def _per_group(sums: Tensor, arrays: _PlanArrays) -> Tensor:
    """``[..., segments]`` -> ``[..., groups]``, always a copy."""
    out = torch.empty(*sums.shape[:-1], arrays.groups, dtype=sums.dtype, device="cpu")
    arrays.per_group(sums.numpy(), out.numpy())
    return out


def _numbers(host: Sequence[HostRow], arrays: _PlanArrays, direction: Direction, xx: Tensor) -> dict[str, Tensor]:
    """float64 ``[steps, slots]`` by name; NaN for skipped steps."""
    names = sorted({"lr"}.union(*(group for row in host for group in row.hyperparameters)))
    groups = 1 + int(arrays.param_group.max(initial=0))
    unknown: list[dict[str, float]] = [{}] * groups
    rows = [
        [[float(group.get(name, np.nan)) for name in names] for group in (row.hyperparameters or unknown)[:groups]]
        for row in host
    ]
    table = np.array(rows, dtype=np.float64).transpose(2, 0, 1)[..., arrays.param_group]  # [names, steps, slots]
    found = dict(zip(names, table, strict=True))
    counts = np.full((len(host), len(arrays.entries)), np.nan)
    for count, row in zip(counts, host, strict=True):
        if row.optimizer_step is not None:
            count[:] = row.optimizer_step.to("cpu").numpy()
    found["step"] = counts
    found["rows"] = np.broadcast_to(arrays.rows, counts.shape).copy()
    found["columns"] = np.broadcast_to(arrays.entries / arrays.rows, counts.shape).copy()
    found["rms"] = np.sqrt(arrays.per_slot(xx.numpy()) / arrays.entries)
    return {name: torch.from_numpy(values) for name, values in found.items()}


def _filled(scalars: Scalars, like: Tensor) -> Scalars:
    """All of them as tensors of one shape."""

    def filled(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=like.dtype, device="cpu").expand_as(like)

    return Scalars(
        filled(scalars.rate),
        filled(scalars.shrink),
        filled(scalars.numerator),
        filled(scalars.root),
        filled(scalars.offset),
    )


def _of_segments(scalars: Scalars, rows: slice, slots: Array) -> Scalars:
    """The numbers ``[steps, slots]`` of some steps for some segments, by the slots that they belong to."""

    def gathered(value: Tensor | float) -> Tensor:
        assert isinstance(value, Tensor)
        return torch.from_numpy(np.take(value[rows].numpy(), slots, axis=1))

    return Scalars(*(gathered(getattr(scalars, name)) for name in ("rate", "shrink", "numerator", "root", "offset")))


def _divisor_square(direction: Direction, scalars: Scalars, column: dict[str, Tensor], arrays: _PlanArrays) -> Tensor:
    """``|b|^2`` per group; NaN where it was not measured, or no gradient has set a scale yet."""
    steps = len(column["xx"])
    if not direction.has_second_moment:
        return arrays.size_of_group.expand(steps, arrays.groups)
    if "v" not in column:
        return torch.full((steps, arrays.groups), torch.nan, dtype=torch.float64, device="cpu")
    v, root_v = column["v"], column["sqrt_v"]
    square = torch.empty(v.shape, dtype=torch.float64, device="cpu")
    for rows, some in tiles(*v.shape):
        own = _of_segments(scalars, rows, arrays.slots[some])
        square[rows, some] = divisor_square(own, v[rows, some], root_v[rows, some], arrays.size[some])
    found = _per_group(square, arrays)
    found.numpy()[~(arrays.per_group(v.numpy()) > 0)] = np.nan
    return found


def _numerator(
    direction: Direction, scalars: Scalars, column: dict[str, Tensor], arrays: _PlanArrays
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``<a, a>, <a, x>, <a, D>`` per group, the last one only where ``b`` is not 1; ``None`` for what is not known."""
    if "aa" not in column and not direction.inferred:
        return None, None, None
    xx, divides = column["xx"], direction.has_second_moment
    names = ("aa", "ax", "ad") if divides else ("aa", "ax")
    found = {name: torch.empty(xx.shape, dtype=torch.float64, device="cpu") for name in names}
    for rows, some in tiles(*xx.shape):
        own = _of_segments(scalars, rows, arrays.slots[some])
        tile = {name: values[rows, some] for name, values in column.items()}
        if "aa" in column:
            factor = torch.as_tensor(own.numerator, device="cpu")
            aa, ax = tile["aa"] * factor * factor, tile["ax"] * factor
        else:  # D = -rate a - shrink x
            rate, shrink = own.rate, own.shrink
            aa = (tile["dd"] + 2.0 * shrink * tile["xd"] + shrink * shrink * tile["xx"]) / (rate * rate)
            ax = -(tile["xd"] + shrink * tile["xx"]) / rate
        found["aa"][rows, some] = torch.where(tile["gg"].isnan(), torch.nan, aa)  # no gradient, no step
        found["ax"][rows, some] = ax
        if divides:
            found["ad"][rows, some] = tile["ad"] * own.numerator
    summed = {name: _per_group(values, arrays) for name, values in found.items()}
    return summed["aa"], summed["ax"], summed.get("ad")


def _common(numbers: Numbers, arrays: _PlanArrays) -> dict[str, Tensor]:
    """``[steps, slots]`` -> ``[steps, layers and probes]``; NaN where a layer's tensors have different values."""
    values = np.stack([each.numpy() for each in numbers.values()])
    found = values[..., arrays.first_slot]
    for index, some in arrays.several:
        differ = (values[..., some] != values[..., some[:1]]).any(-1)
        found[differ, index] = np.nan
    return dict(zip(numbers, torch.from_numpy(found), strict=True))


def _mixed(rate: Tensor | float, plan: Plan) -> frozenset[str]:
    """Names of layers whose tensors had different known rates at some step."""
    values = torch.as_tensor(rate, device="cpu").numpy()
    mixed = []
    for index, some in _arrays_of(plan).several:
        own, first = values[:, some], values[:, some[:1]]
        if index < len(plan.layers) and bool(((own != first) & ~np.isnan(own) & ~np.isnan(first)).any()):
            mixed.append(plan.layers[index].name)
    return frozenset(mixed)


def _rare(found: Sequence[Tensor | None], kinds: int, arrays: _PlanArrays) -> Rare:
    rows = tuple(index for index, sums in enumerate(found) if sums is not None)
    if not rows:
        return Rare((), torch.empty(0, kinds, arrays.groups, dtype=torch.float64, device="cpu"))
    sums = np.stack([sums.to("cpu", torch.float64).numpy() for sums in found if sums is not None])
    return Rare(rows, _per_group(torch.from_numpy(sums), arrays))


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
