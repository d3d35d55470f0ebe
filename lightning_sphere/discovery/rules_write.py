"""Rules for writing into a tensor: by index, by mask, and sums of what goes to the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_sphere.discovery.blanks import filled
from lightning_sphere.discovery.degrees import MAX_FIELD, Blank, Degree, Offset, Value, constant
from lightning_sphere.discovery.graph import short_name
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_choose import scales_at
from lightning_sphere.discovery.rules_index import array, layout, read_indices
from lightning_sphere.discovery.rules_shape import joined
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.system import constant_offset
from lightning_sphere.discovery.values import LARGEST, Values

Key = tuple[Any, ...]
"""A slice, or an array of indices, for every dimension."""
BoolArray = npt.NDArray[np.bool_]


def write(ctx: Context, base: Value | None, source: Value, key: Key, axes: Sequence[int | None]) -> Value:
    """``base[key] = source``.

    Args:
        ctx: The node.
        base: What is written into; ``None`` for data.
        source: What is written, with one dimension for every dimension of ``base[key]``.
        key: Where.
        axes: Which dimension of the base each one of ``base[key]`` is; ``None`` for one made by an array of indices.

    Returns:
        The tensor after it.
    """
    shape = ctx.shape
    partial = [a for a, part in enumerate(key) if not isinstance(part, slice) or len(range(shape[a])[part]) < shape[a]]
    arrays = [axis for axis, part in enumerate(key) if not isinstance(part, slice)]
    if len(arrays) == 1 and key[arrays[0]].ndim == 1:
        axes = [arrays[0] if axis is None else axis for axis in axes]
    by_index = None in axes
    if by_index:
        source = ctx.settle(source)
    kept = constant(shape) if base is None else ctx.settle(base) if by_index else base

    def sizes(rows: IntArray, written: IntArray) -> list[int]:
        result = [shape[axis] if axis in partial else rows.shape[axis] for axis in range(len(shape))]
        for place, axis in enumerate(axes):
            if axis is not None and axis not in partial:
                result[axis] = max(result[axis], written.shape[place])
        if prod(result) > MAX_FIELD << 3:
            raise ValueError("too large to be followed")
        return result

    def combine(pieces: Sequence[IntArray]) -> IntArray:
        rows, written = pieces
        written = written.reshape((1,) * (len(axes) - written.ndim) + written.shape)
        full: IntArray = np.broadcast_to(rows, sizes(rows, written)).copy()
        full[key] = written
        for axis in partial:
            first = full[(slice(None),) * axis + (slice(0, 1),)]
            full = first if (full == first).all() else full
        return full

    flags = tuple(axis in partial for axis in range(len(shape)))
    degrees = [kept.degree, source.degree]
    if base is None or kept.trivial:  # data, or what is not written yet: what is written tells how the tensor scales
        degrees[0] = Degree(kept.degree.fields, source.degree.powers)
    degree = joined(ctx, degrees, combine)
    offsets = [
        Offset(
            joined(ctx, [(old or kept).degree, (new or source).degree], combine),
            tuple(f or (old is not None and old.varies[a]) or _varies(new, axes, a) for a, f in enumerate(flags)),
            source=ctx.name,
        )
        for old, new in _pairs(kept.offsets, source.offsets)
    ]
    unwritten = _unwritten(base, shape)
    left = None
    if unwritten is not None:
        stretched = [shape[a] if a in partial else unwritten.where.shape[a] for a in range(len(shape))]
        where = np.broadcast_to(unwritten.where, stretched).copy()
        where[key] = False
        left = Blank(where, unwritten.zero) if where.any() else None
    if ctx.inputs[1:2] == [None]:  # data is written, zeros perhaps
        full = [shape[a] if a in partial else 1 for a in range(len(shape))]
        where = np.zeros(full, dtype=bool) if left is None else np.broadcast_to(left.where, shape).copy()
        where[key] = True
        left = Blank(where, False)
    return Value(shape, degree, tuple(offsets), (True,) * len(shape), via=source.via, blank=left)


def _pairs(first: Sequence[Offset], second: Sequence[Offset]) -> list[tuple[Offset | None, Offset | None]]:
    count = max(len(first), len(second))
    return list(
        zip((*first, *(None,) * (count - len(first))), (*second, *(None,) * (count - len(second))), strict=True)
    )


def _varies(offset: Offset | None, axes: Sequence[int | None], axis: int) -> bool:
    return offset is not None and axis in axes and offset.varies[axes.index(axis)]


def _unwritten(base: Value | None, shape: tuple[int, ...]) -> Blank | None:
    """What is not written yet; data counts as a buffer until its numbers show what it holds."""
    if base is None:
        return Blank(np.ones((1,) * len(shape), dtype=bool), False)
    return base.blank


@rule("IndexPut")
def index_put(ctx: Context) -> Value | Sequence[Value]:
    """``x[indices] = y`` or, if accumulated, ``x[indices] += y``."""
    base, source = ctx.inputs[0], ctx.inputs[1]
    indices = read_indices(ctx)
    if indices is None or not indices:
        return _mixed(ctx, base, source)
    ndim = len(ctx.shape)
    order = layout(indices, ndim)
    shape = tuple(ctx.shape[axis] if axis is not None else 0 for axis in order)
    among = iter(indices[min(indices)].shape)
    shape = tuple(next(among) if axis is None else size for axis, size in zip(order, shape, strict=True))
    value = (source if source is not None else constant(shape)).broadcast(shape)
    value = replace(value, blank=None)
    key = tuple(indices.get(axis, slice(None)) for axis in range(ndim))
    if not ctx.saved("accumulate", False):
        return write(ctx, base, value, key, order)
    places = [place for place, axis in enumerate(order) if axis is None]
    value = ctx.uniform(ctx.settle(value), places)
    return _accumulate(ctx, base, value, key, order)


@rule("IndexCopy")
def index_copy(ctx: Context) -> Value | Sequence[Value]:
    """Rows of one tensor take the place of those of another."""
    base, source, place = ctx.inputs[0], ctx.inputs[1], _place_by_index(ctx)
    if place is None or source is None:
        return _mixed(ctx, base, source)
    _, key, order = place
    return write(ctx, base, source, key, order)


@rule("IndexAdd")
def index_add(ctx: Context) -> Value | Sequence[Value]:
    """Rows of one tensor are added to those of another, several perhaps to the same."""
    base, source, place = ctx.inputs[0], ctx.inputs[1], _place_by_index(ctx)
    if place is None or source is None:
        return _mixed(ctx, base, source)
    axis, key, order = place
    return _accumulate(ctx, base, ctx.uniform(ctx.settle(source), [axis]), key, order)


def _place_by_index(ctx: Context) -> tuple[int, tuple[Any, ...], list[int | None]] | None:
    """Along which axis rows are written by number, where, and which of the source's axes runs along each dimension."""
    chosen = saved_tensor(ctx.node, "index")
    (axis,) = ctx.dims("dim", len(ctx.shape))
    if chosen is None:
        return None
    dimensions = range(len(ctx.shape))
    return (
        axis,
        tuple(array(chosen) if a == axis else slice(None) for a in dimensions),
        [a if a != axis else None for a in dimensions],
    )


@rule("ScatterAdd", "Scatter", "ScatterReduce")
def scatter(ctx: Context) -> Value | Sequence[Value]:
    """Every element goes to an index of its own along one dimension, with others perhaps."""
    base, source = ctx.inputs[0], ctx.inputs[1] if len(ctx.inputs) > 1 else None
    chosen = saved_tensor(ctx.node, "index")
    (axis,) = ctx.dims("dim", len(ctx.shape))
    if ctx.saved("reduce") == "prod" or chosen is None or source is None or chosen.shape != source.shape:
        return _mixed(ctx, base, source)
    whole = all(a == axis or size == ctx.shape[a] for a, size in enumerate(chosen.shape))
    source = ctx.uniform(ctx.settle(source), [axis])
    rows = array(chosen)
    along = rows.take([0], axis) if whole else rows
    key_rows = np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
    if not whole or not (key_rows == key_rows[:, :1]).all() or along.size == 0:
        return _mixed(ctx, base, source)
    key = tuple(key_rows[:, 0] if a == axis else slice(None) for a in range(len(ctx.shape)))
    return _accumulate(ctx, base, source, key, [a if a != axis else None for a in range(len(ctx.shape))])


def _accumulate(ctx: Context, base: Value | None, source: Value, key: Key, axes: Sequence[int | None]) -> Value:
    """``base[key] += source``, also for sums of several; buffers of zeros are usually what is added to."""
    unwritten = _unwritten(base, ctx.shape)
    if unwritten is not None and base is None:
        unwritten = Blank(unwritten.where, True) if _zeros_before(ctx, source, key) else None
    if unwritten is not None and unwritten.zero:
        where = np.broadcast_to(unwritten.where, ctx.shape) if unwritten.where.size > 1 else unwritten.where
        touched = where if where.size == 1 else where[key]
        if touched.all():
            kept = constant(ctx.shape) if base is None else base
            kept = replace(kept, blank=unwritten)
            return write(ctx, kept, source, key, axes)
    source = replace(source, offsets=())
    other = constant(ctx.shape) if base is None else ctx.settle(base)
    if base is not None and unwritten is not None and unwritten.zero:
        other = filled(ctx, None, replace(other, blank=unwritten))
    spread = write(ctx, constant(ctx.shape), source, key, axes)
    where = np.ones([1 if isinstance(part, slice) else ctx.shape[a] for a, part in enumerate(key)], dtype=bool)
    everywhere = filled(ctx, None, replace(spread, blank=Blank(where, True)))
    cause = ctx.cause("added", other.degree, everywhere.degree)
    degree = ctx.system.equal(other.degree, everywhere.degree, cause)
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape))


def _zeros_before(ctx: Context, source: Value, key: Key) -> bool:
    """Whether data that is added to held zeros: where nothing was added it must still do so."""
    before = saved_tensor(ctx.node, "self")
    if before is not None:
        return not bool(before.any())
    untouched = np.ones([ctx.shape[a] if not isinstance(part, slice) else 1 for a, part in enumerate(key)], dtype=bool)
    untouched[tuple(part if not isinstance(part, slice) else slice(None) for part in key)] = False
    values = Values(ctx.graph)
    after, by_relu = values.later((ctx.position, 0)), False
    if after is None:
        after, by_relu = _after_relu(ctx), True
    if after is None or not 0 < after.numel() <= LARGEST:
        return True
    if untouched.any():
        return not bool((after.ne(0) & torch.from_numpy(untouched).to(after.device)).any())
    edge = ctx.graph.edges[ctx.position][1]
    added = None if edge is None else values.part(edge, tuple(slice(0, size) for size in source.shape))
    if added is None:
        return True
    axes = [a for a, part in enumerate(key) if not isinstance(part, slice)]
    if len(axes) != 1 or key[axes[0]].ndim != 1:
        return True
    index = torch.from_numpy(np.ascontiguousarray(key[axes[0]])).to(after.device)
    if ctx.saved("reduce") not in (None, "sum"):
        return True
    total = torch.zeros_like(after).index_add_(axes[0], index, added.to(after.dtype).expand(source.shape))
    difference = (total * ctx.saved("alpha", 1) - after).abs() > 1e-4 + 1e-3 * after.abs()
    return not bool((difference & (after > 0) if by_relu else difference).any())


def _after_relu(ctx: Context) -> torch.Tensor | None:
    """What a ReLU that reads the output made of it."""
    for reader in ctx.graph.consumers[ctx.position]:
        if short_name(ctx.graph.names[reader]) == "Relu":
            return saved_tensor(ctx.graph.nodes[reader], "result")
    return None


def _mixed(ctx: Context, base: Value | None, source: Value | None) -> Value:
    """All of a tensor and all of what goes into it must scale equally."""
    values = [constant(()) if v is None else ctx.uniform(ctx.settle(v), range(len(v.shape))) for v in (base, source)]
    first, second = (v.degree.map(lambda rows: rows.reshape((1,) * len(ctx.shape))) for v in values)
    degree = ctx.system.equal(first, second, ctx.cause("added", first, second))
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape))


@rule("MaskedFill", "Threshold")
def fill_by_mask(ctx: Context) -> Value | Sequence[Value]:
    """Some elements become a number, which must be zero or infinite to scale as they did."""
    for value in ctx.inputs[1:]:
        ctx.zero(value)
    value = ctx.settle(ctx.source())
    where = saved_tensor(ctx.node, "mask")
    if ctx.name == "Threshold":
        given = saved_tensor(ctx.node, "self")
        where = None if given is None or ctx.saved("threshold") else given <= 0
    if where is not None and scales_at(ctx, where):
        return replace(value, shape=ctx.shape)
    if ctx.name == "Threshold":
        ctx.zero(value)
        return constant(ctx.shape)
    return replace(value, shape=ctx.shape, offsets=(constant_offset((True,) * len(ctx.shape), ctx.name),))
