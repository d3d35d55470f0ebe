"""Rules for products that contract dimensions: convolutions, matrix products, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch

from lightning_sphere.discovery.blanks import zeros
from lightning_sphere.discovery.degrees import MAX_FIELD, Degree, Offset, Shape, Value, constant, either
from lightning_sphere.discovery.graph import Edge
from lightning_sphere.discovery.names import name_written_norm
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_attention import sums_to_one
from lightning_sphere.discovery.rules_pointwise import SMALL, _sum, unknown
from lightning_sphere.discovery.rules_shape import indexed
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.system import constant_offset


def _bilinear(
    ctx: Context, first: Value, second: Value, varies: Callable[[Offset | None, Offset | None], tuple[bool, ...]]
) -> Value:
    """Multiply two contracted operands of equal number of dimensions.

    Args:
        ctx: The node.
        first: Operand, already uniform along the contracted dimensions and in the output's layout.
        second: The same.
        varies: Along which dimensions of the output a product with an offset varies.
    """
    if len(first.offsets) * len(second.offsets) > MOST_PAIRS:
        second = ctx.settle(second)
    # The weight, on whichever side it stands, is multiplied last: it has been multiplied with less than its input.
    degrees = sorted((first.degree, second.degree), key=lambda degree: -len(degree.powers))
    degree = ctx.system.product(degrees[0], degrees[1])
    _note_cancelled(ctx, first, second, first.degree.fields.keys() & second.degree.fields.keys() - degree.fields.keys())
    offsets = [
        Offset(ctx.system.product(o.degree, second.degree), varies(o, None), o.constant, source=o.source)
        for o in first.offsets
    ]
    offsets += [
        Offset(ctx.system.product(first.degree, o.degree), varies(None, o), o.constant, source=o.source)
        for o in second.offsets
    ]
    offsets += [
        Offset(
            ctx.system.product(a.degree, b.degree),
            tuple(x and y for x, y in zip(varies(a, None), varies(None, b), strict=True)),
            a.constant and b.constant,
        )
        for a in first.offsets
        for b in second.offsets
    ]
    return Value(ctx.shape, degree, tuple(offsets), (True,) * len(ctx.shape))


def _note_cancelled(ctx: Context, first: Value, second: Value, symbols: Iterable[int]) -> None:
    """A weight that is divided by its own square, and multiplied again, is normalized as well, if by nothing before."""
    for symbol in symbols:
        if ctx.system.partitions[symbol].alive and symbol not in ctx.system.norms:
            name = name_written_norm(ctx.graph, ctx.parameters, ctx.position, 1)
            ctx.system.note_norm(symbol, first.degree.fields[symbol], name, first.via or second.via)


MOST_PAIRS = 4
"""So many products of what was added to two operands are kept apart."""


def _rows_only(value: Value, function: Callable[[IntArray], IntArray]) -> Value:
    """Change the row arrays and leave the rest."""
    offsets = tuple(replace(o, degree=o.degree.map(function)) for o in value.offsets)
    return replace(value, degree=value.degree.map(function), offsets=offsets)


def _matmul(ctx: Context, first: Value | None, second: Value | None, place: int | None = None) -> Value:
    """``(..., n, k) @ (..., k, m)``; the operands may be inputs of the node, from number ``place`` on."""
    edges = (None, None) if place is None else ctx.graph.edges[ctx.position][place : place + 2]
    if _by_zeros(ctx, edges):
        return zeros(ctx.shape)
    return contracted(ctx, first, second, ctx.shape, edges)


def contracted(
    ctx: Context, first: Value | None, second: Value | None, shape: Shape, edges: Sequence[Edge] = (None, None)
) -> Value:
    """``(..., n, k) @ (..., k, m)`` of a given shape; the edges tell which operand is a softmax."""
    ndim, lead = len(shape), shape[:-2]
    first, second = _cancelled(ctx, first, second)
    a = ctx.uniform(constant((*lead, shape[-2], 1)) if first is None else first, [ndim - 1])
    b = ctx.uniform(constant((*lead, 1, shape[-1])) if second is None else second, [ndim - 2])

    def varies(left: Offset | None, right: Offset | None) -> tuple[bool, ...]:
        if left is not None:
            mean = not left.varies[-1] and sums_to_one(ctx.graph, edges[1], ndim - 2)
            lead_varies = left.varies[:-2] if mean else either(left.varies[:-2], b.varies[:-2])
            return (*lead_varies, left.varies[-2], not mean)
        assert right is not None
        mean = not right.varies[-2] and sums_to_one(ctx.graph, edges[0], ndim - 1)
        lead_varies = right.varies[:-2] if mean else either(right.varies[:-2], a.varies[:-2])
        return (*lead_varies, not mean, right.varies[-1])

    return replace(_bilinear(ctx, a, b, varies), shape=shape, varies=(True,) * ndim)


def _cancelled(ctx: Context, first: Value | None, second: Value | None) -> tuple[Value | None, Value | None]:
    """Drop the symbols whose terms cancel in the product before it is summed, as in gradients of normed layers."""
    if first is None or second is None or first.offsets or second.offsets:
        return first, second
    gone = []
    for symbol in first.degree.fields.keys() & second.degree.fields.keys():
        left = tuple((c, rows[..., None]) for c, rows in first.degree.fields[symbol])
        right = tuple((c, rows[..., None, :, :]) for c, rows in second.degree.fields[symbol])
        small = prod(np.broadcast_shapes(*(rows.shape for _, rows in left + right))) <= MAX_FIELD
        if small and not ctx.system.simplify(symbol, left + right):
            gone.append(symbol)
    if not gone:
        return first, second
    _note_cancelled(ctx, first, second, gone)
    kept = [
        replace(v, degree=Degree({s: t for s, t in v.degree.fields.items() if s not in gone}, v.degree.powers))
        for v in (first, second)
    ]
    return kept[0], kept[1]


def _by_zeros(ctx: Context, edges: Sequence[Edge]) -> bool:
    """Whether one of the operands is data and all zero, such as the first state of a recurrence."""
    names = (("self", "mat1", "batch1"), ("mat2", "batch2"))
    operands = [saved_tensor(ctx.node, n) for e, own in zip(edges, names, strict=True) if e is None for n in own]
    dense = [data for data in operands if data is not None and data.layout == torch.strided]
    return any(0 < data.numel() <= SMALL and not data.any() for data in dense)


@rule("Mm", "Bmm")
def matmul(ctx: Context) -> Value:
    """Matrix product, batched or not."""
    return _matmul(ctx, ctx.inputs[0], ctx.inputs[1], 0)


@rule("GroupedMm")
def grouped_matmul(ctx: Context) -> Value | Sequence[Value]:
    """A mixture of experts: each token, ``(t, k)``, is multiplied by one of the matrices ``(experts, k, n)``."""
    tokens, experts = ctx.inputs[:2]
    if len(ctx.shape) != 2 or (experts is not None and len(experts.shape) != 3):
        return unknown(ctx)
    if experts is not None:
        joined = ctx.uniform(ctx.settle(experts), [0])  # which expert a token gets changes from batch to batch
        experts = joined.map(lambda rows: rows[0], joined.shape[1:], lambda flags: flags[1:])
    return _matmul(ctx, tokens, experts)


@rule("Glu")
def gated(ctx: Context) -> Value:
    """One half, times the sigmoid of the other: the gate must not scale."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape))
    half = ctx.shape[axis]
    ctx.zero(indexed(value, axis, slice(half, None), ctx.shape))
    kept = indexed(value, axis, slice(0, half), ctx.shape)
    return Value(ctx.shape, ctx.settle(kept).degree, varies=(True,) * len(ctx.shape), via=kept.via)


@rule("Addmm", "Baddbmm", "Addbmm")
def add_matmul(ctx: Context) -> Value:
    """Matrix product and a summand: how PyTorch writes a linear layer with bias."""
    bias, first, second = ctx.inputs[:3]
    if ctx.name == "Addbmm":
        for value in (bias, first, second):
            ctx.zero(value)
        return constant(ctx.shape)
    product = _matmul(ctx, first, second, 1)
    if product.blank is not None and bias is not None:
        return bias.broadcast(ctx.shape)
    product = replace(product, blank=None)
    if bias is None:
        everywhere = (True,) * len(ctx.shape)
        return replace(product, offsets=(*product.offsets, constant_offset(everywhere, ctx.name)))
    return _sum(ctx, product, bias.broadcast(ctx.shape), 1)


@rule("Mv", "Dot", "Vdot")
def matrix_vector(ctx: Context) -> Value:
    """``(n, k) @ (k)`` and ``(k) @ (k)``."""
    settled = [
        None if value is None else ctx.settle(ctx.uniform(value, [len(value.shape) - 1])) for value in ctx.inputs[:2]
    ]
    degrees = [
        Degree() if v is None else v.degree.map(lambda rows: rows.reshape(rows.shape[: len(ctx.shape)]))
        for v in settled
    ]
    if ctx.name == "Mv":
        degrees[1] = (settled[1] or constant(())).degree
    return Value(ctx.shape, ctx.system.product(degrees[0], degrees[1]), varies=(True,) * len(ctx.shape))


@rule("Linear")
def linear(ctx: Context) -> Value:
    """A linear layer as one operation (some backends)."""
    value, weight, bias = (*ctx.inputs, None, None)[:3]
    ndim = len(ctx.shape)
    value = ctx.uniform(value or constant(ctx.shape), [ndim - 1])
    weight = ctx.settle(ctx.uniform(weight or constant((ctx.shape[-1], 1)), [1]))
    weight = _rows_only(weight, lambda rows: rows.reshape((1,) * (ndim - 1) + (rows.shape[0],)))
    result = _bilinear(ctx, value, weight, lambda left, _: (*(left.varies if left else ())[:-1], True))
    return result if bias is None else _sum(ctx, result, bias.broadcast(ctx.shape), 1)


@rule("Convolution", "CudnnConvolution", "MkldnnConvolution", "MiopenConvolution", "ConvolutionOverrideable")
def convolution(ctx: Context) -> Value:
    """Convolutions of any number of dimensions, grouped, depthwise or transposed."""
    transposed = bool(ctx.saved("transposed", False))
    groups, ndim = int(ctx.saved("groups", 1)), len(ctx.shape)
    spatial = range(2, ndim)
    channels = ctx.shape[1]
    image, weight = ctx.inputs[0], ctx.inputs[1]
    bias = ctx.inputs[2] if len(ctx.inputs) > 2 else None
    if image is None:
        image = constant((ctx.shape[0], 1, *(1,) * len(spatial)))
    elif transposed or any(int(size) for size in ctx.saved("padding", (1,))):
        image = ctx.settle(image)
    image = ctx.uniform(image, spatial)
    image = ctx.uniform(image, [1]) if groups == 1 else _regrouped(ctx, image, groups, channels)

    def image_varies(left: Offset | None, _: Offset | None) -> tuple[bool, ...]:
        return (left.varies[0], True, *left.varies[2:]) if left is not None else (True,) * ndim

    if weight is None:
        result = _bilinear(ctx, image, constant((1, channels, *(1,) * len(spatial))), image_varies)
    else:
        filters = ctx.settle(ctx.uniform(weight, spatial))
        filters = _transposed_filters(ctx, filters, groups, channels) if transposed else ctx.uniform(filters, [1])
        filters = _rows_only(filters, lambda rows: rows.reshape((1, -1, *(1,) * len(spatial))))
        result = _bilinear(ctx, image, filters, image_varies)
    along_channels = (False, True, *(False,) * len(spatial))
    if bias is None:
        frozen = ctx.saved("bias_sym_sizes_opt", None)
        if frozen is None or (isinstance(frozen, (tuple, list)) and not any(frozen)):
            return result
        return replace(result, offsets=(*result.offsets, constant_offset(along_channels, "bias")))
    shift = ctx.settle(bias)
    degree = shift.degree.map(lambda rows: rows.reshape((1, -1, *(1,) * len(spatial))))
    return _sum(ctx, result, Value(ctx.shape, degree, varies=along_channels), 1)


def _regrouped(ctx: Context, image: Value, groups: int, channels: int) -> Value:
    """Join the input channels of each group of a grouped convolution, and lay them out as output channels."""
    per_group = image.shape[1] // groups

    def split(rows: IntArray) -> IntArray:
        parts = (groups, per_group) if rows.shape[1] > 1 else (1, 1)
        return rows.reshape((rows.shape[0], *parts, *rows.shape[2:]))

    def merge(rows: IntArray) -> IntArray:
        rows = rows[:, :, 0]
        return rows if rows.shape[1] == 1 else np.repeat(rows, channels // groups, axis=1)

    return _rows_only(ctx.uniform(_rows_only(image, split), [2]), merge)


def _transposed_filters(ctx: Context, filters: Value, groups: int, channels: int) -> Value:
    """Join the input channels of a transposed convolution's weight, ``(in, out / groups, ...)``."""
    per_group = filters.shape[0] // groups

    def split(rows: IntArray) -> IntArray:
        parts = (groups, per_group) if rows.shape[0] > 1 else (1, 1)
        return rows.reshape((*parts, *rows.shape[1:]))

    def merge(rows: IntArray) -> IntArray:
        rows = rows[:, 0]
        if rows.shape[0] == rows.shape[1] == 1:
            return rows
        return np.broadcast_to(rows, (groups, channels // groups, *rows.shape[2:])).reshape(1, -1)

    return _rows_only(ctx.uniform(_rows_only(filters, split), [1]), merge)
