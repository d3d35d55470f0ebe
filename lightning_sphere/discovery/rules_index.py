"""Rules for reading by index: what is read is known where the indices can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
from torch import Tensor

from lightning_sphere.discovery.degrees import MAX_FIELD, Value, constant
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_shape import permuted, rearrange, reshaped
from lightning_sphere.discovery.saved import saved_tensor, saved_tensors

Indices = dict[int, IntArray]
"""Dimensions and what is taken along them, all of one shape."""


def array(index: Tensor) -> IntArray:
    """An index as NumPy has it."""
    return np.asarray(index.cpu().numpy(), dtype=np.intp)


def read_indices(ctx: Context) -> Indices | None:
    """The indices of ``x[indices]``; masks become the places where they are true."""
    saved = saved_tensors(ctx.node, "indices")
    if saved is None:
        return None
    found: list[tuple[int, IntArray]] = []
    axis = 0
    for index in saved:
        if index is None:
            axis += 1
        elif index.dtype.is_floating_point:
            return None
        elif index.dtype.itemsize == 1 and not index.dtype.is_signed:  # a mask, over all of its dimensions
            found += [(axis + i, places) for i, places in enumerate(np.nonzero(np.asarray(index.cpu().numpy())))]
            axis += index.ndim
        else:
            found.append((axis, array(index)))
            axis += 1
    arrays = np.broadcast_arrays(*(places for _, places in found))
    return {axis: places for (axis, _), places in zip(found, arrays, strict=True)}


def layout(indices: Indices, ndim: int) -> tuple[int | None, ...]:
    """Which dimension of the tensor each one of ``x[indices]`` is; ``None`` for those of the indices."""
    axes = sorted(indices)
    rest = [axis for axis in range(ndim) if axis not in indices]
    adjacent = axes[-1] - axes[0] == len(axes) - 1
    start = axes[0] if adjacent else 0
    return (*rest[:start], *(None,) * indices[axes[0]].ndim, *rest[start:])


def looked_up(value: Value, indices: Indices, shape: tuple[int, ...]) -> Value:
    """``x[indices]`` of a value."""
    ndim, axes = len(value.shape), sorted(indices)
    order = layout(indices, ndim)
    start = next((place for place, axis in enumerate(order) if axis is None), 0)
    among = indices[axes[0]].ndim

    def take(rows: IntArray) -> IntArray:
        wide = [axis for axis in axes if rows.shape[axis] > 1]
        rest = [axis for axis in range(ndim) if axis not in indices]
        rows = rows.transpose([*axes, *rest])
        if wide:
            found = rows[tuple(indices[axis] if axis in wide else np.zeros_like(indices[axis]) for axis in axes)]
        else:
            found = rows.reshape((1,) * among + rows.shape[len(axes) :])
        result: IntArray = np.moveaxis(found, range(among), range(start, start + among))
        return result

    def varies(flags: tuple[bool, ...]) -> tuple[bool, ...]:
        any_of = any(flags[axis] for axis in axes)
        return tuple(any_of if axis is None else flags[axis] for axis in order)

    return value.map(take, shape, varies)


@rule("Index")
def index(ctx: Context) -> Value | Sequence[Value]:
    """``x[indices]``: rows of a parameter that are not read by this batch may be read by the next one."""
    value, indices = ctx.source(), read_indices(ctx)
    if not indices:
        return rearrange(ctx)
    return _taken(ctx, value, indices)


@rule("IndexSelect")
def index_select(ctx: Context) -> Value | Sequence[Value]:
    """Indices along one dimension."""
    value, chosen = ctx.source(), saved_tensor(ctx.node, "index")
    (axis,) = ctx.dims("dim", len(value.shape))
    if chosen is None:
        return replace(ctx.uniform(ctx.settle(value), [axis]), shape=ctx.shape)
    return _taken(ctx, value, {axis: array(chosen).reshape(-1)})


def _taken(ctx: Context, value: Value, indices: Indices) -> Value:
    result = prod(indices[next(iter(indices))].shape)
    wide = [a for a in indices if any(r.shape[a] > 1 for terms in value.degree.fields.values() for _, r in terms)]
    if result * max([value.shape[a] for a in wide], default=0) > MAX_FIELD << 4:
        value = ctx.uniform(value, wide)
    found = looked_up(value, indices, ctx.shape)
    edge = ctx.graph.edges[ctx.position][0]
    if edge is not None and edge[0] in ctx.graph.leaves:
        for symbol, terms in found.degree.fields.items():
            before = value.degree.fields[symbol]
            if any(rows.shape[axis] > 1 for _, rows in before for axis in indices):
                ctx.system.partitions[symbol].note_seen(np.concatenate([rows.ravel() for _, rows in terms]))
    return found


@rule("Gather", "ScatterGather")
def gather(ctx: Context) -> Value:
    """An index of its own for every element: mixed along one dimension, cut along the others."""
    (axis,) = ctx.dims("dim", len(ctx.shape))
    value = ctx.uniform(_unmixed(ctx, ctx.source(), axis), [axis])

    def cut(rows: IntArray) -> IntArray:
        return rows[tuple(slice(0, size) for size in ctx.shape)]

    return replace(value.map(cut, ctx.shape, lambda flags: flags), varies=(True,) * len(ctx.shape))


def _unmixed(ctx: Context, value: Value, axis: int) -> Value:
    """Elements change places along a dimension: what was added stays what it is if it is the same for all of them."""
    varying = tuple(o for o in value.offsets if o.varies[axis])
    kept = tuple(replace(o, key=None) for o in value.offsets if o not in varying)
    return replace(ctx.settle(replace(value, offsets=varying)), offsets=kept)


@rule("Cumsum", "Cummax", "Cummin", "Sort", "Topk", "Kthvalue", "Mode", "Renorm")
def along_one(ctx: Context) -> Sequence[Value]:
    """Elements are mixed or change places along one dimension, of which some or all remain."""
    if ctx.name == "Renorm":
        ctx.zero(ctx.source())
        return [constant(ctx.shape)]
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape)) if value.shape else (0,)
    ordered = value.shape and ctx.name in ("Sort", "Topk", "Kthvalue", "Cummax", "Cummin")
    value = ctx.uniform(_unmixed(ctx, value, axis) if ordered else ctx.settle(value), [axis])
    if len(ctx.shape) < len(value.shape):
        value = reshaped(ctx, value.map(lambda r: r, _with(value.shape, axis, 1), lambda f: f), ctx.shape)
    rest = [constant(shape) for shape in ctx.shapes[1:]]
    return [replace(value, shape=ctx.shape, varies=(True,) * len(ctx.shape)), *rest]


@rule("Tril", "Triu")
def triangle(ctx: Context) -> Value:
    """Zeros in one half."""
    return replace(ctx.settle(ctx.source()), varies=(True,) * len(ctx.shape))


@rule("Diagonal", "DiagonalCopy")
def diagonal(ctx: Context) -> Value:
    """A diagonal of two dimensions becomes the last one."""
    value = ctx.source()
    ndim = len(value.shape)
    (first,), (second,) = ctx.dims("dim1", ndim), ctx.dims("dim2", ndim)
    offset, length = int(ctx.saved("offset", 0)), ctx.shape[-1]
    if offset >= 1 << 63:
        offset -= 1 << 64
    steps = np.arange(length)
    places = {first: steps + max(-offset, 0), second: steps + max(offset, 0)}
    order = layout(places, ndim)
    found = looked_up(value, places, tuple(length if axis is None else value.shape[axis] for axis in order))
    place = order.index(None)
    return permuted(found, [*(axis for axis in range(ndim - 1) if axis != place), place])


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
