"""Rules for products that contract dimensions: convolutions, matrix products, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from lightning_sphere.discovery.degrees import Degree, Offset, Value, constant, either
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_attention import sums_to_one
from lightning_sphere.discovery.rules_pointwise import _sum, unknown
from lightning_sphere.discovery.rules_shape import indexed
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
    if first.offsets and second.offsets:
        second = ctx.settle(second)
    # The weight, on whichever side it stands, is multiplied last: it has been multiplied with less than its input.
    degrees = sorted((first.degree, second.degree), key=lambda degree: -len(degree.powers))
    degree = ctx.system.product(degrees[0], degrees[1])
    offsets = [
        Offset(ctx.system.product(o.degree, second.degree), varies(o, None), o.constant, source=o.source)
        for o in first.offsets
    ]
    offsets += [
        Offset(ctx.system.product(first.degree, o.degree), varies(None, o), o.constant, source=o.source)
        for o in second.offsets
    ]
    return Value(ctx.shape, degree, tuple(offsets), (True,) * len(ctx.shape))


def _rows_only(value: Value, function: Callable[[IntArray], IntArray]) -> Value:
    """Change the row arrays and leave the rest."""
    offsets = tuple(replace(o, degree=o.degree.map(function)) for o in value.offsets)
    return replace(value, degree=value.degree.map(function), offsets=offsets)


def _matmul(ctx: Context, first: Value | None, second: Value | None, place: int | None = None) -> Value:
    """``(..., n, k) @ (..., k, m)``; the operands may be inputs of the node, from number ``place`` on."""
    edges = (None, None) if place is None else ctx.graph.edges[ctx.position][place : place + 2]
    ndim = len(ctx.shape)
    lead = ctx.shape[:-2]
    a = ctx.uniform(constant((*lead, ctx.shape[-2], 1)) if first is None else first, [ndim - 1])
    b = ctx.uniform(constant((*lead, 1, ctx.shape[-1])) if second is None else second, [ndim - 2])

    def varies(left: Offset | None, right: Offset | None) -> tuple[bool, ...]:
        if left is not None:
            mean = not left.varies[-1] and sums_to_one(ctx.graph, edges[1], ndim - 2)
            lead_varies = left.varies[:-2] if mean else either(left.varies[:-2], b.varies[:-2])
            return (*lead_varies, left.varies[-2], not mean)
        assert right is not None
        mean = not right.varies[-2] and sums_to_one(ctx.graph, edges[0], ndim - 1)
        lead_varies = right.varies[:-2] if mean else either(right.varies[:-2], a.varies[:-2])
        return (*lead_varies, not mean, right.varies[-1])

    return _bilinear(ctx, a, b, varies)


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


@rule("Embedding")
def embedding(ctx: Context) -> Value:
    """Rows of a table, looked up by index."""
    table = ctx.settle(ctx.source())
    if getattr(ctx.node._raw_saved_indices, "unpack_hook", None) is not None:  # which rows are read stays unknown
        table = ctx.uniform(table, [0])
    indices: IntArray | None = None

    def look_up(rows: IntArray) -> IntArray:
        nonlocal indices
        if rows.shape[0] == 1:
            return rows.reshape((1,) * (len(ctx.shape) - 1) + rows.shape[1:])
        if indices is None:
            indices = _indices(ctx.node._saved_indices, rows.shape[0])
        found: IntArray = rows[indices].reshape((*indices.shape, rows.shape[1]))
        return found

    degree = table.degree.map(look_up)
    for symbol, terms in degree.fields.items():
        if any(rows.shape[-1] == 1 and indices is not None for _, rows in terms):
            ctx.system.partitions[symbol].note_seen(np.concatenate([rows.ravel() for _, rows in terms]))
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape))


def _indices(saved: Tensor, rows: int) -> IntArray:
    """The indices that were looked up; a tensor without numbers stands for ones that differ as far as they can."""
    if type(saved).__name__ == "FakeTensor":
        return np.arange(saved.numel()).reshape(saved.shape) % rows
    return np.asarray(saved.detach().cpu().numpy(), dtype=np.intp)


@rule("EmbeddingBag")
def embedding_bag(ctx: Context) -> Sequence[Value]:
    """Sums or means of looked up rows: all rows must scale equally."""
    table = ctx.settle(ctx.uniform(ctx.source(), [0]))
    value = Value(ctx.shape, table.degree, varies=(True,) * len(ctx.shape))
    return [value, *(constant(shape) for shape in ctx.shapes[1:])]
