"""Attention: the softmax, whose weights sum to one, and what they mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_sphere.discovery.degrees import Value, constant, dimension_groups
from lightning_sphere.discovery.graph import Edge, Graph, short_name, signed
from lightning_sphere.discovery.registry import Context, rule

_SAME = ("Clone", "ToCopy", "Alias", "Contiguous", "Expand")
_RESHAPES = ("View", "UnsafeView", "ReshapeAlias", "Reshape", "Unsqueeze", "Squeeze")


def sums_to_one(graph: Graph, edge: Edge, axis: int) -> bool:
    """Whether a value is a softmax along a dimension, moved around at most: its products leave a constant as it is."""
    while edge is not None and edge[1] == 0:
        position = edge[0]
        name, node, shape = short_name(graph.names[position]), graph.nodes[position], graph.shapes[position][0]
        if name in ("Softmax", "SafeSoftmax"):
            return signed(int(node._saved_dim)) % len(shape) == axis
        edge = graph.edges[position][0] if graph.edges[position] else None
        if edge is None:
            return False
        source = graph.shapes[edge[0]][edge[1]]
        if name in _SAME:
            axis -= len(shape) - len(source)
            if axis < 0 or source[axis] != shape[axis + len(shape) - len(source)]:
                return False
        elif name in _RESHAPES:
            matched = [old for old, new in dimension_groups(source, shape) if axis in new]
            if len(matched[0]) != 1 or source[matched[0][0]] != shape[axis]:
                return False
            axis = matched[0][0]
        elif name == "Transpose":
            pair = [signed(int(dim)) % len(shape) for dim in (node._saved_dim0, node._saved_dim1)]
            axis = pair[1 - pair.index(axis)] if axis in pair else axis
        elif name == "Permute":
            axis = signed(int(node._saved_dims[axis])) % len(shape)
        elif name == "T":
            axis = len(shape) - 1 - axis
        else:
            return False
    return False


@rule(
    "ScaledDotProductFlashAttentionForCpu", "ScaledDotProductFlashAttention", "ScaledDotProductEfficientAttention",
    "ScaledDotProductCudnnAttention", "ScaledDotProductFusedAttentionOverrideable", "ScaledDotProductAttentionMath",
)  # fmt: skip
def attention(ctx: Context) -> Sequence[Value]:
    """Softmax of queries and keys, which must not scale; the values are mixed along the sequence."""
    query, key, value = ctx.inputs[:3]
    for operand in (query, key, *ctx.inputs[3:]):
        ctx.zero(operand)
    rest = [constant(shape) for shape in ctx.shapes[1:]]
    if value is None:
        return [constant(ctx.shape), *rest]
    ndim = len(ctx.shape)
    axes = [ndim - 2]
    axes += [axis for axis in range(ndim - 2) if value.shape[axis] != ctx.shape[axis]]
    # Without dropout the weights sum to one: what is the same for all keys is added to the result.
    if ctx.saved("dropout_p", 1.0) or any(o.varies[axis] for o in value.offsets for axis in axes):
        value = ctx.settle(value)
    mixed = ctx.uniform(value, axes)
    offsets = tuple(replace(o, key=None) for o in mixed.offsets)
    return [replace(mixed, shape=ctx.shape, offsets=offsets, varies=(True,) * ndim), *rest]


@rule("Softmax", "LogSoftmax", "SafeSoftmax")
def softmax(ctx: Context) -> Sequence[Value]:
    """What is the same for all elements that are compared makes no difference."""
    value = ctx.source()
    (axis,) = ctx.dims("dim", len(value.shape)) if value.shape else (0,)
    left = tuple(o for o in value.offsets if not value.shape or o.varies[axis])
    ctx.zero(replace(value, offsets=left))
    return [constant(shape) for shape in ctx.shapes]
