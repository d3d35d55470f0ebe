"""Rules for operations that move elements around and change none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np

from lightning_sphere.discovery.degrees import (
    MAX_FIELD,
    ZERO,
    Blank,
    Degree,
    Offset,
    Shape,
    Term,
    Value,
    constant,
    reshape_rows,
    reshape_varies,
    too_large,
)
from lightning_sphere.discovery.graph import signed
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_pointwise import not_homogeneous


@rule("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Flatten", "ViewAs", "Reshape", "Unflatten")
def reshape(ctx: Context) -> Value:
    """Any change of shape that keeps the order of the elements."""
    return reshaped(ctx, ctx.source(), ctx.shape)


def reshaped(ctx: Context, value: Value, target: Shape) -> Value:
    """Reshape a value and what was added to it."""
    source = value.shape
    if source == target:
        return value
    if prod(source) > MAX_FIELD:
        wide = {
            axis for d in (value.degree, *(o.degree for o in value.offsets)) for axis in too_large(d, source, target)
        }
        value = ctx.uniform(value, sorted(wide))
    return value.map(
        lambda rows: reshape_rows(rows, source, target),
        target,
        lambda flags: reshape_varies(flags, source, target),
    )


def permuted(value: Value, order: Sequence[int]) -> Value:
    """Permute the dimensions of a value."""
    shape = tuple(value.shape[axis] for axis in order)
    return value.map(lambda rows: rows.transpose(order), shape, lambda flags: tuple(flags[axis] for axis in order))


@rule("Permute", "Transpose", "T", "MoveDim", "SwapDims", "Mt")
def permute(ctx: Context) -> Value:
    """Dimensions change places."""
    value = ctx.source()
    order = list(range(len(value.shape)))
    if ctx.name == "Permute":
        order = list(ctx.dims("dims", len(order)))
    elif ctx.name == "Transpose":
        (a,), (b,) = ctx.dims("dim0", len(order)), ctx.dims("dim1", len(order))
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    return permuted(value, order)


@rule("Expand")
def expand(ctx: Context) -> Value:
    """Repetition without a copy: constant along the new dimensions."""
    return ctx.source().broadcast(ctx.shape)


@rule("Repeat")
def repeat(ctx: Context) -> Value:
    """Repetition with a copy."""
    repeats = [int(count) for count in ctx.saved("repeats")]
    value = ctx.source()
    source = (1,) * (len(repeats) - len(value.shape)) + value.shape

    def tile(rows: IntArray) -> IntArray:
        rows = rows.reshape((1,) * (len(repeats) - rows.ndim) + rows.shape)
        return np.tile(rows, [count if rows.shape[axis] > 1 else 1 for axis, count in enumerate(repeats)])

    def varies(flags: tuple[bool, ...]) -> tuple[bool, ...]:
        return (False,) * (len(source) - len(flags)) + flags

    return value.map(tile, ctx.shape, varies)


def indexed(value: Value, axis: int, index: Any, shape: Shape) -> Value:
    """Take ``index`` along one axis; an integer removes the axis."""
    drop = not isinstance(index, slice)

    def take(rows: IntArray) -> IntArray:
        if rows.shape[axis] == 1:
            return rows.squeeze(axis) if drop else rows
        result: IntArray = rows[(slice(None),) * axis + (index,)]
        return result

    return value.map(take, shape, lambda flags: flags[:axis] + flags[axis + 1 :] if drop else flags)


@rule("Select")
def select(ctx: Context) -> Value:
    """One index of a dimension."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    return indexed(value, axis, signed(int(ctx.saved("index"))), ctx.shape)


@rule("Slice")
def cut(ctx: Context) -> Value:
    """A range of indices of a dimension."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    start, end, step = (ctx.saved(name) for name in ("start", "end", "step"))
    index = slice(*(None if bound is None else signed(int(bound)) for bound in (start, end, step)))
    return indexed(value, axis, index, ctx.shape)


@rule("Narrow")
def narrow(ctx: Context) -> Value:
    """A range of indices of a dimension, by start and length."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    start = signed(int(ctx.saved("start")))
    return indexed(value, axis, slice(start, start + ctx.shape[axis]), ctx.shape)


@rule("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Chunk", "Unbind", "TensorSplit")
def split(ctx: Context) -> Sequence[Value]:
    """Consecutive parts of a dimension."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    if ctx.name == "Unbind":
        return [indexed(value, axis, index, shape) for index, shape in enumerate(ctx.shapes)]
    sizes = [shape[axis] for shape in ctx.shapes]
    if sum(sizes) != value.shape[axis]:
        sizes = _split_sizes(ctx, value.shape[axis])
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        indexed(value, axis, slice(starts[i], starts[i + 1]), shape)
        if len(shape) == len(value.shape)
        else constant(shape)
        for i, shape in enumerate(ctx.shapes)
    ]


def _split_sizes(ctx: Context, total: int) -> list[int]:
    """Sizes of the parts where the shapes of unused ones are not known."""
    saved: Any = ctx.saved("split_sizes", ctx.saved("split_size"))
    if isinstance(saved, (tuple, list)):
        return [int(number) for number in saved]
    size: int = int(saved)
    return [min(size, total - start) for start in range(0, total, size)]


@rule("Cat", "Stack")
def concatenate(ctx: Context) -> Value | Sequence[Value]:
    """Rows are concatenated along one dimension."""
    (axis,) = ctx.dims("dim", len(ctx.shape))
    values = [v for v in ctx.inputs if v is None or len(v.shape) > 0 or ctx.name == "Stack"]
    if ctx.name == "Stack":
        values = [
            v and v.map(lambda r: np.expand_dims(r, axis), (*v.shape[:axis], 1, *v.shape[axis:]),
                        lambda f: (*f[:axis], False, *f[axis:]))
            for v in values
        ]  # fmt: skip
    missing = [position for position, value in enumerate(values) if value is None]
    if len(missing) > 1 and all(v is None or v.trivial for v in values):
        return constant(ctx.shape)
    rest = ctx.shape[axis] - sum(value.shape[axis] for value in values if value is not None)
    if len(missing) > 1 and rest != len(missing):
        return not_homogeneous(ctx)
    size = rest // max(len(missing), 1)
    filler = constant((*ctx.shape[:axis], size, *ctx.shape[axis + 1 :]))
    parts = [filler if value is None else value for value in values]
    parts = [part for part in parts if part.shape[axis]]  # a cache of keys and values is empty at first
    if len(parts) == 1:
        return parts[0]

    def combine(pieces: Sequence[IntArray]) -> IntArray:
        return _concatenated(pieces, parts, axis)

    lasting = next((part.degree.powers for part in parts if part is not filler), {})
    degrees = [Degree({}, lasting) if part is filler else part.degree for part in parts]  # data may be zeros
    degree = joined(ctx, degrees, combine)
    offsets = []
    for flags in dict.fromkeys(o.varies for part in parts for o in part.offsets):
        # What is constant along the same dimensions is joined, a bias with a bias, so that a norm can remove it.
        alike = [[o for o in part.offsets if o.varies == flags] for part in parts]
        varies = (*flags[:axis], True, *flags[axis + 1 :])
        for row in zip_longest(*alike):
            degrees = [part.degree if o is None else o.degree for part, o in zip(parts, row, strict=True)]
            offsets.append(Offset(joined(ctx, degrees, combine), varies, source=ctx.name))
    via = next((part.via for part in parts if part.via), ())
    statistic = all(part.statistic for part in parts)
    where = [np.full(part.shape[axis], part is filler) for part in parts]
    layout = [-1 if a == axis else 1 for a in range(len(ctx.shape))]
    blank = Blank(np.concatenate(where).reshape(layout), False) if any(map(np.any, where)) else None
    return Value(ctx.shape, degree, tuple(offsets), (True,) * len(ctx.shape), statistic, via, blank)


def joined(ctx: Context, degrees: Sequence[Degree], combine: Callable[[Sequence[IntArray]], IntArray]) -> Degree:
    """Combine the row arrays of several degrees; one without a symbol gets row 0 there."""
    powers = degrees[0].powers
    for degree in degrees[1:]:
        powers = ctx.system.equal(Degree({}, powers), Degree({}, degree.powers), ctx.cause()).powers
    fields: dict[int, tuple[Term, ...]] = {}
    empty = np.zeros((1,) * len(ctx.shape), dtype=np.intp)
    for symbol in dict.fromkeys(symbol for degree in degrees for symbol in degree.fields):
        rest = [list(degree.fields.get(symbol, ())) for degree in degrees]
        terms = []
        while any(rest):
            coefficient = next(terms_left[0][0] for terms_left in rest if terms_left)
            pieces = []
            for terms_left in rest:
                match = next((i for i, term in enumerate(terms_left) if term[0] == coefficient), None)
                pieces.append(empty if match is None else terms_left.pop(match)[1])
            terms.append((coefficient, combine(pieces)))
        fields[symbol] = tuple(terms)
    return Degree(fields, powers)


def _concatenated(pieces: Sequence[IntArray], parts: Sequence[Value], axis: int) -> IntArray:
    """Concatenate row arrays along an axis."""
    if all(p.shape[axis] == 1 and np.array_equal(p, pieces[0]) for p in pieces):
        return pieces[0]
    common = np.broadcast_shapes(*((*p.shape[:axis], 1, *p.shape[axis + 1 :]) for p in pieces))
    shapes = [(*common[:axis], part.shape[axis], *common[axis + 1 :]) for part in parts]
    return np.concatenate([np.broadcast_to(p, s) for p, s in zip(pieces, shapes, strict=True)], axis)


@rule("RepeatInterleave", "TakeAlongDim", "MaskedSelect", "Take")
def rearrange(ctx: Context) -> Sequence[Value]:
    """Elements are moved in a way that is not followed: all must scale equally."""
    value = ctx.settle(ctx.source())
    value = ctx.uniform(value, range(len(value.shape)))
    value = replace(value, degree=value.degree.map(lambda rows: rows.reshape(())))
    value = replace(value, degree=value.degree.align(len(ctx.shape)), shape=ctx.shape, varies=(True,) * len(ctx.shape))
    return [value, *(constant(shape) for shape in ctx.shapes[1:])]


@rule("Zeros", "ZerosLike", "FullLike")
def no_degree(ctx: Context) -> Value:
    """Made of nothing."""
    return replace(constant(ctx.shape), degree=ZERO)


@rule("CopyBackwards")
def copied_over(ctx: Context) -> Value:
    """A whole tensor was overwritten by another one."""
    source = ctx.inputs[1] if len(ctx.inputs) > 1 else None
    return constant(ctx.shape) if source is None else source.broadcast(ctx.shape)
