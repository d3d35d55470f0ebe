"""Rules for less common products and sums of products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from lightning_sphere.discovery.degrees import Value, constant
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_linear import _matmul
from lightning_sphere.discovery.rules_pointwise import unknown
from lightning_sphere.discovery.rules_shape import reshaped


@rule("Prod")
def product_of_elements(ctx: Context) -> Value:
    """The product of all elements, or of those along one dimension."""
    value = ctx.settle(ctx.source())
    axes = ctx.dims("dim", len(value.shape))
    value = ctx.uniform(value, axes)
    count = prod(value.shape[axis] for axis in axes)
    left = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    result = reshaped(ctx, replace(value, shape=left), ctx.shape)
    return replace(result, degree=result.degree.scaled(count), varies=(True,) * len(ctx.shape))


@rule("Trilinear")
def trilinear(ctx: Context) -> Value:
    """Three tensors are multiplied and summed over some dimensions: how a bilinear layer is computed."""
    added = [[int(dim) for dim in ctx.saved(name)] for name in ("expand1", "expand2", "expand3")]
    summed = sorted(int(dim) for dim in ctx.saved("sumdim"))
    ndim = len(ctx.shape) + len(summed)
    degrees = []
    for given, dims in zip(ctx.inputs, added, strict=True):
        value = constant((1,) * (ndim - len(dims))) if given is None else ctx.settle(given)

        def spread(rows: IntArray, dims: Sequence[int] = tuple(dims)) -> IntArray:
            return np.expand_dims(rows, tuple(dims))

        degrees.append(value.degree.map(spread))
    degree = ctx.system.product(ctx.system.product(degrees[0], degrees[1]), degrees[2])
    degree = ctx.system.uniform(degree, summed, ctx.cause("mixed"))
    return Value(ctx.shape, degree.map(lambda rows: rows.squeeze(tuple(summed))), varies=(True,) * len(ctx.shape))


@rule("SparseAddmm")
def sparse_product(ctx: Context) -> Value | Sequence[Value]:
    """A sparse matrix times a dense one."""
    if any(value is not None for value in ctx.inputs[:2]):
        return unknown(ctx)
    return _matmul(ctx, None, ctx.inputs[2])


@rule("Sign", "Sgn")
def sign(ctx: Context) -> Value:
    """It does not scale, whatever its input does, if what was added to that scales as well."""
    ctx.settle(ctx.source())
    return constant(ctx.shape)
