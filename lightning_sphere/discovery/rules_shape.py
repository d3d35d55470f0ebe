"""Rules for operations that move elements around and change none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np

from lightning_sphere.discovery.degrees import (
    MAX_FIELD,
    ZERO,
    Degree,
    Offset,
    Shape,
    Term,
    Value,
    constant,
    either,
    reshape_rows,
    reshape_varies,
    too_large,
)
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule, signed
from lightning_sphere.discovery.rules_pointwise import LABELS, not_homogeneous


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


def _indexed(value: Value, axis: int, index: Any, shape: Shape) -> Value:
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
    return _indexed(value, axis, signed(int(ctx.saved("index"))), ctx.shape)


@rule("Slice")
def cut(ctx: Context) -> Value:
    """A range of indices of a dimension."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    start, end, step = (ctx.saved(name) for name in ("start", "end", "step"))
    index = slice(*(None if bound is None else signed(int(bound)) for bound in (start, end, step)))
    return _indexed(value, axis, index, ctx.shape)


@rule("Narrow")
def narrow(ctx: Context) -> Value:
    """A range of indices of a dimension, by start and length."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    start = signed(int(ctx.saved("start")))
    return _indexed(value, axis, slice(start, start + ctx.shape[axis]), ctx.shape)


@rule("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Chunk", "Unbind", "TensorSplit")
def split(ctx: Context) -> Sequence[Value]:
    """Consecutive parts of a dimension."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    if ctx.name == "Unbind":
        return [_indexed(value, axis, index, shape) for index, shape in enumerate(ctx.shapes)]
    sizes = [shape[axis] for shape in ctx.shapes]
    if sum(sizes) != value.shape[axis]:
        sizes = _split_sizes(ctx, value.shape[axis])
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        _indexed(value, axis, slice(starts[i], starts[i + 1]), shape)
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
    values = [value for value in ctx.inputs if value is None or len(value.shape) > 0]
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
    degree = _joined(ctx, [part.degree for part in parts], parts, axis)
    offsets = []
    for row in zip_longest(*(part.offsets for part in parts)):
        degrees = [part.degree if o is None else o.degree for part, o in zip(parts, row, strict=True)]
        flags = (False,) * len(ctx.shape)
        for offset in row:
            flags = either(flags, offset.varies) if offset is not None else flags
        flags = (*flags[:axis], True, *flags[axis + 1 :])
        offsets.append(Offset(_joined(ctx, degrees, parts, axis), flags, source=ctx.name))
    via = next((part.via for part in parts if part.via), ())
    statistic = all(part.statistic for part in parts)
    return Value(ctx.shape, degree, tuple(offsets), (True,) * len(ctx.shape), statistic, via)


def _joined(ctx: Context, degrees: Sequence[Degree], parts: Sequence[Value], axis: int) -> Degree:
    """Concatenate degrees; a part without a symbol gets row 0 there."""
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
            terms.append((coefficient, _concatenated(pieces, parts, axis)))
        fields[symbol] = tuple(terms)
    return Degree(fields, powers)


def _concatenated(pieces: Sequence[IntArray], parts: Sequence[Value], axis: int) -> IntArray:
    """Concatenate row arrays along an axis."""
    common = np.broadcast_shapes(*((*p.shape[:axis], 1, *p.shape[axis + 1 :]) for p in pieces))
    if all(p.size == 1 for p in pieces) and len({int(p.flat[0]) for p in pieces}) == 1:
        return pieces[0]
    shapes = [(*common[:axis], part.shape[axis], *common[axis + 1 :]) for part in parts]
    return np.concatenate([np.broadcast_to(p, s) for p, s in zip(pieces, shapes, strict=True)], axis)


@rule("Roll", "Flip", "IndexSelect", "RepeatInterleave", "Cumsum", "Gather", "TakeAlongDim", "Unfold",
      "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "ReplicationPad1D", "ReplicationPad2D",
      "ReplicationPad3D", "Index", "MaskedSelect", "Im2Col", "Col2Im", "PixelShuffle", "PixelUnshuffle",
      "Sort", "Topk", "Take", "Tril", "Triu", "Diagonal", "AsStrided")  # fmt: skip
def rearrange(ctx: Context) -> Sequence[Value]:
    """Elements are moved in a way that is not followed: all must scale equally along the dimensions concerned."""
    value = ctx.source()
    value = ctx.settle(value)
    ndim = len(value.shape)
    if ctx.name in ("Roll", "Flip"):
        value = ctx.uniform(value, ctx.dims("dims", ndim))
    elif ctx.name in ("IndexSelect", "Cumsum"):
        value = ctx.uniform(value, ctx.dims("dim", ndim))
    elif ctx.name.endswith(("PadNd", "Pad1D", "Pad2D", "Pad3D")):
        padding = [int(size) for size in ctx.saved("pad", ctx.saved("padding", ()))]
        value = ctx.uniform(value, [ndim - 1 - i // 2 for i, size in enumerate(padding) if size])
    else:
        value = ctx.uniform(value, range(ndim))
        value = replace(value, degree=value.degree.map(lambda rows: rows.reshape(())))
    value = replace(value, degree=value.degree.align(len(ctx.shape)), shape=ctx.shape, varies=(True,) * len(ctx.shape))
    return [value, *(constant(shape) for shape in ctx.shapes[1:])]


@rule("MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "AvgPool2D",
      "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "MkldnnAdaptiveAvgPool2D", "UpsampleNearest1D",
      "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleBilinear2D", "UpsampleBicubic2D", "UpsampleLinear1D",
      "UpsampleTrilinear3D", "UpsampleBilinear2DAa", "UpsampleBicubic2DAa")  # fmt: skip
def pool(ctx: Context) -> Sequence[Value]:
    """Mixes neighbours of the last dimensions; what is constant along them stays so, unless zeros are padded."""
    value = ctx.source()
    spatial = 3 if "3D" in ctx.name else 1 if "1D" in ctx.name else 2
    padded = ctx.name.startswith("AvgPool") and any(int(size) for size in ctx.saved("padding", (1,)))
    axes = range(len(ctx.shape) - spatial, len(ctx.shape))
    if padded or any(any(o.varies[axis] for axis in axes) and "Max" in ctx.name for o in value.offsets):
        value = ctx.settle(value)
    value = replace(ctx.uniform(value, axes), shape=ctx.shape)
    value = ctx.passed(value, LABELS.get(ctx.name, "pooling" if "Pool" in ctx.name else "upsampling"))
    return [value, *(constant(shape) for shape in ctx.shapes[1:])]


@rule("Zeros", "ZerosLike", "FullLike")
def no_degree(ctx: Context) -> Value:
    """Made of nothing."""
    return replace(constant(ctx.shape), degree=ZERO)
