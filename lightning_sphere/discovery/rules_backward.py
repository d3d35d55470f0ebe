"""Rules for gradients that are part of the loss, such as those of a gradient penalty: the backward of operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_sphere.discovery.degrees import Value, constant
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_linear import contracted
from lightning_sphere.discovery.rules_norm import removed
from lightning_sphere.discovery.rules_pointwise import unknown
from lightning_sphere.discovery.rules_shape import permuted, reshaped


def _unread(ctx: Context) -> list[Value]:
    """What stands for further outputs, if nothing reads them; else the operation is not known."""
    if any(ctx.shapes[1:]):
        raise ValueError("a gradient that is not followed")
    return [constant(shape) for shape in ctx.shapes[1:]]


@rule("ThresholdBackward", "LeakyReluBackward", "MaxPool2DWithIndicesBackward", "MaxPool3DWithIndicesBackward")
def chosen(ctx: Context) -> Sequence[Value]:
    """The gradient passes where the input, of whatever scale, was positive or the largest."""
    for other in ctx.inputs[1:]:
        if other is not None:
            ctx.settle(other)
    return _passed(ctx)


@rule("TanhBackward", "SigmoidBackward", "GeluBackward", "EluBackward", "SoftplusBackward", "HardtanhBackward",
      "PreluKernelBackward", "AvgPool2DBackward", "AvgPool3DBackward", "UpsampleNearest1DBackward",
      "UpsampleNearest2DBackward", "UpsampleBilinear2DBackward", "AdaptiveAvgPool2DBackward")  # fmt: skip
def derived(ctx: Context) -> Sequence[Value]:
    """The gradient is multiplied by a derivative: what that depends on must not scale."""
    for other in ctx.inputs[1:]:
        ctx.zero(other)
    return _passed(ctx)


def _passed(ctx: Context) -> Sequence[Value]:
    value = ctx.settle(ctx.source())
    if value.shape != ctx.shape or "Pool" in ctx.name:
        value = ctx.uniform(value, range(2, len(value.shape)))
    return [replace(value, shape=ctx.shape, varies=(True,) * len(ctx.shape)), *_unread(ctx)]


@rule("NativeBatchNormBackward", "CudnnBatchNormBackward", "NativeLayerNormBackward")
def norm(ctx: Context) -> Sequence[Value]:
    """The gradient, times the gain, divided by the deviation of the input."""
    gradient, value = ctx.inputs[:2]
    layers = "LayerNorm" in ctx.name
    gain = ctx.inputs[4 if layers else 2]
    ndim = len(ctx.shape)
    first = ndim - len(ctx.saved("normalized_shape")) if layers else 1
    axes = range(first, ndim) if layers else [axis for axis in range(ndim) if axis != 1]
    own = [axis for axis in range(ndim) if (axis >= first if layers else axis == 1)]
    result = constant(ctx.shape) if gradient is None else ctx.settle(gradient)
    rest = _unread(ctx)
    if gain is not None:
        layout = tuple(size if axis in own else 1 for axis, size in enumerate(ctx.shape))
        factor = reshaped(ctx, ctx.settle(gain), layout).degree
        result = replace(result, degree=ctx.system.product(result.degree, factor))
    if layers or ctx.saved("train", True):
        result = ctx.uniform(result, axes)
        if value is not None:
            degree = ctx.uniform(ctx.settle(removed(value, axes)), axes).degree
            result = replace(result, degree=ctx.system.product(result.degree, degree, -1))
    return [replace(result, shape=ctx.shape, varies=(True,) * ndim), *rest]


@rule("ConvolutionBackward")
def convolution(ctx: Context) -> Sequence[Value]:
    """The gradient by the input: each of its channels is made of all channels of the gradient."""
    gradient, _, weight = ctx.inputs[:3]
    if any(ctx.shapes[1:]) or not ctx.shape or ctx.saved("transposed", False):
        return unknown(ctx)
    ndim, groups = len(ctx.shape), int(ctx.saved("groups", 1))
    batch, channels = ctx.shape[:2]
    parts: list[Value | None] = [None, None]
    for number, value in enumerate((gradient, weight)):
        if value is None:
            continue
        even = ctx.uniform(ctx.settle(value), range(2, ndim))
        rows, columns = even.shape[:2]
        flat = even.map(lambda r: r.reshape(r.shape[:2]), (rows, columns), lambda f: f[:2])
        if number == 0:
            parts[0] = permuted(reshaped(ctx, flat, (rows, groups, columns // groups)), (1, 0, 2))
        else:
            parts[1] = reshaped(ctx, flat, (groups, rows // groups, columns))
    product = contracted(ctx, parts[0], parts[1], (groups, batch, channels // groups))
    product = reshaped(ctx, permuted(product, (1, 0, 2)), (batch, channels))
    spread = product.map(
        lambda r: r.reshape((*r.shape, *(1,) * (ndim - 2))), ctx.shape, lambda f: (*f, *(True,) * (ndim - 2))
    )
    return [spread, *(constant(shape) for shape in ctx.shapes[1:])]
