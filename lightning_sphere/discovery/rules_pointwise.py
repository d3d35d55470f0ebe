"""Rules for element-wise operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from lightning_sphere.discovery.degrees import Blank, Offset, Value, constant, either
from lightning_sphere.discovery.graph import short_name
from lightning_sphere.discovery.names import name_written_norm
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.stabilizers import Stabilizer, lower_bound, one_number
from lightning_sphere.discovery.system import constant_offset

LABELS = {
    "Relu": "ReLU",
    "LeakyRelu": "LeakyReLU",
    "MaxPool2DWithIndices": "max-pooling",
    "MaxPool3DWithIndices": "max-pooling",
    "AdaptiveMaxPool2D": "max-pooling",
    "AvgPool2D": "average pooling",
    "AvgPool3D": "average pooling",
    "AdaptiveAvgPool2D": "average pooling",
    "NativeDropout": "dropout",
}


@rule("ToCopy", "Clone", "Alias", "Contiguous")
def keep(ctx: Context) -> Value:
    """The output scales as the input does, with everything that was added to it."""
    return replace(ctx.source(), shape=ctx.shape)


@rule("NativeDropout", "FusedDropout")
def dropout(ctx: Context) -> Sequence[Value]:
    """Some elements become zero, of what was added as well."""
    value, everywhere = ctx.source(), (True,) * len(ctx.shape)
    offsets = tuple(replace(o, varies=everywhere, key=None) for o in value.offsets)
    return [replace(value, offsets=offsets, varies=everywhere), *(constant(shape) for shape in ctx.shapes[1:])]


@rule("Neg")
def negative(ctx: Context) -> Value:
    """Like a multiplication by -1."""
    return _unkeyed(ctx.source())


@rule("Relu", "LeakyRelu", "Abs", "RreluWithNoise", "PreluKernel", "ClampMin", "ClampMax", "Clamp")
def positively_homogeneous(ctx: Context) -> Value | Sequence[Value]:
    """``f(a x) = a f(x)`` for ``a > 0``; clamping only at zero, or for the stability of a statistic."""
    value = ctx.source()
    if ctx.name.startswith("Clamp"):
        if ctx.graph.names[ctx.position] not in _CLAMPS_BY_NUMBERS:
            return not_homogeneous(ctx)
        low, high = ctx.saved("min"), ctx.saved("max")
        bound = lower_bound(ctx.graph, ctx.position, low or 0) if value.statistic and not high else Stabilizer(False)
        if (low or high) and not bound.small:
            return not_homogeneous(ctx)
        ctx.system.note_share(value.degree, bound.share)
    for slope in ctx.inputs[1:]:
        ctx.zero(slope)
    value = ctx.settle(value)
    return ctx.passed(value, LABELS[ctx.name]) if ctx.name in LABELS else value


_CLAMPS_BY_NUMBERS = ("ClampMinBackward0", "ClampMaxBackward0", "ClampBackward1")
"""The other variants clamp by tensors, which must not be unpacked."""


@rule("Add", "Sub", "Rsub")
def add(ctx: Context) -> Value:
    """Both summands must scale equally, unless one is constant along some dimensions: see :class:`Offset`."""
    sign = -1 if ctx.name == "Sub" else 1
    summands = [value for value in ctx.inputs if value is not None]
    if len(summands) == 2 and any(value.blank for value in summands):  # zeros are added
        return next((v for v in summands if not v.blank), constant(ctx.shape)).broadcast(ctx.shape)
    values = [value.broadcast(ctx.shape) for value in summands]
    if not values:
        return constant(ctx.shape)
    if len(values) == 1:
        everywhere = (True,) * len(ctx.shape)
        if ctx.graph.names[ctx.position].endswith("1"):  # the variant for a tensor and a number
            everywhere = (False,) * len(ctx.shape)
        elif not values[0].statistic and (added := one_number(ctx.graph, ctx.position)) is not None:
            if added.zero:
                return values[0]
            everywhere = (False,) * len(ctx.shape)
        extra = replace(constant_offset(everywhere, ctx.name), stabilizer=ctx.position)
        return replace(values[0], offsets=(*values[0].offsets, extra))
    return _sum(ctx, values[0], values[1], sign)


def _sum(ctx: Context, first: Value, second: Value, sign: int) -> Value:
    """Add two values of the output's shape."""
    if sum(second.varies) > sum(first.varies):
        first, second = second, first
    cancelled = {o.identity for o in first.offsets} & {o.identity for o in second.offsets} if sign < 0 else set()
    offsets = tuple(o for o in (*first.offsets, *second.offsets) if o.identity not in cancelled)
    statistic = first.statistic and second.statistic
    varies, via = either(first.varies, second.varies), first.via or second.via
    result = Value(ctx.shape, first.degree, offsets, varies, statistic, via)
    if ctx.system.same(first.degree, second.degree):
        return result
    if any(a and not b for a, b in zip(first.varies, second.varies, strict=True)):
        key = (ctx.position, "offset")
        extra = Offset(second.degree, second.varies, key=key, source=ctx.name)
        return replace(result, offsets=(*offsets, extra))
    return replace(
        result, degree=ctx.system.equal(first.degree, second.degree, ctx.cause("added", first.degree, second.degree))
    )


@rule("Mul", "Div")
def multiply(ctx: Context) -> Value | Sequence[Value]:
    """Degrees add up; for a quotient the denominator's is subtracted."""
    if ctx.graph.names[ctx.position].endswith(("2", "3")):  # division with rounding
        return not_homogeneous(ctx)
    if ctx.graph.names[ctx.position].endswith("1"):  # the variant for a tensor and a number
        return _unkeyed(ctx.source())
    first, second = [None if value is None else value.broadcast(ctx.shape) for value in ctx.inputs[:2]]
    sign = -1 if ctx.name == "Div" else 1
    if second is None and first is not None:
        return _times_data(ctx, first, "other")
    if first is not None and second is not None and sign > 0 and _divides(ctx):  # two norms multiplied, of a cosine
        first, second = (ctx.settle(v, forgive=True) if _stabilized(v) else v for v in (first, second))
    if second is not None and (sign < 0 or (first is not None and first.offsets)):
        second = ctx.settle(second, forgive=sign < 0)
    if second is None:
        return constant(ctx.shape)
    if first is None:
        scaled = _times_data(ctx, second, "self")
        return replace(scaled, degree=scaled.degree.scaled(sign))
    if sign > 0 and ctx.leaf(0) is not None and ctx.leaf(1) is None:
        first, second = second, first  # a gain is multiplied last, on whichever side it is written
    degree = ctx.system.product(first.degree, second.degree, sign)
    known = len(first.degree.powers) + len(first.degree.fields)
    if second.statistic and len(degree.powers) + len(degree.fields) < known:
        first = _normalized(ctx, first, second)
    if first.degree.powers.keys() & second.degree.powers.keys() - degree.powers.keys():
        _norm_by_hand(ctx)  # remembered for the reasons of what can't be scaled here any more
    for symbol in first.degree.fields.keys() & second.degree.fields.keys() - degree.fields.keys():
        if ctx.system.partitions[symbol].alive:
            ctx.system.note_norm(symbol, first.degree.fields[symbol], _norm_by_hand(ctx), first.via)
    offsets = [
        Offset(ctx.system.product(o.degree, factor.degree, sign), either(o.varies, factor.varies), o.constant)
        for value, factor in ((first, second), (second, first))
        for o in value.offsets
    ]
    statistic = first.statistic and second.statistic
    return Value(ctx.shape, degree, tuple(offsets), either(first.varies, second.varies), statistic, first.via)


def _stabilized(value: Value) -> bool:
    """Whether a value is a statistic and a number."""
    return value.statistic and any(o.stabilizer is not None for o in value.offsets)


def _divides(ctx: Context) -> bool:
    """Whether all that reads a product divides by it, or takes a root of it."""
    return all(
        short_name(ctx.graph.names[reader]) in ("Sqrt", "Rsqrt", "Reciprocal")
        or (short_name(ctx.graph.names[reader]) == "Div" and ctx.graph.edges[reader][1:2] == ((ctx.position, 0),))
        for reader in ctx.graph.consumers[ctx.position]
    )


def _normalized(ctx: Context, value: Value, statistic: Value) -> Value:
    """What is divided by its own statistic: that has demanded already that what varies under it scales as the rest."""
    reduced = [axis for axis, flag in enumerate(statistic.varies) if not flag]
    varying = tuple(o for o in value.offsets if any(o.varies[axis] for axis in reduced))
    left = tuple(o for o in value.offsets if o not in varying)
    return replace(ctx.settle(replace(value, offsets=varying)), offsets=left)


def _times_data(ctx: Context, value: Value, operand: str) -> Value:
    """Multiply by a number or by data: what was added varies afterwards wherever these do, if they were saved."""
    data, shape = saved_tensor(ctx.node, operand), ctx.shape
    if ctx.name == "Mul" and data is not None and 0 < data.numel() <= SMALL and not data.any():
        return replace(constant(shape), blank=Blank(np.ones((1,) * len(shape), dtype=bool), True))
    varies = (True,) * len(shape)
    if data is not None:
        varies = (False,) * (len(shape) - data.ndim) + tuple(size != 1 for size in data.shape)
    offsets = tuple(replace(o, varies=either(o.varies, varies), key=None) for o in value.offsets)
    return replace(value, shape=shape, offsets=offsets, varies=either(value.varies, varies))


SMALL = 1 << 16
"""Data of at most so many elements, such as the first state of a recurrence, is looked at: it may be zero."""


def _unkeyed(value: Value) -> Value:
    return replace(value, offsets=tuple(replace(o, key=None) for o in value.offsets))


def _norm_by_hand(ctx: Context) -> str:
    """Name a norm that is written out; the smaller operand is its statistic."""
    shapes = [(0,) if value is None else value.shape for value in ctx.inputs[:2]]
    return name_written_norm(ctx.graph, ctx.parameters, ctx.position, int(prod(shapes[1]) <= prod(shapes[0])))


@rule("Sign", "Sgn")
def sign(ctx: Context) -> Value:
    """A positive factor does not change it."""
    ctx.settle(ctx.source())
    return constant(ctx.shape)


@rule("Pow", "Sqrt", "Rsqrt", "Reciprocal")
def power(ctx: Context) -> Value | Sequence[Value]:
    """Degrees are multiplied by the exponent."""
    fixed = {"Sqrt": 0.5, "Rsqrt": -0.5, "Reciprocal": -1.0}
    by_number = ctx.graph.names[ctx.position] == "PowBackward0"  # other variants hold the exponent in a tensor
    exponent = fixed.get(ctx.name, ctx.saved("exponent") if by_number else None)
    if not isinstance(exponent, (int, float)) or isinstance(exponent, bool):
        return not_homogeneous(ctx)
    value = ctx.settle(ctx.source(), forgive=exponent in (0.5, -0.5, -1.0))
    return replace(value, degree=value.degree.scaled(exponent), shape=ctx.shape)


def settled_operands(ctx: Context, count: int) -> list[Value]:
    """The first operands, without offsets."""
    operands = [constant(ctx.shape) if v is None else v.broadcast(ctx.shape) for v in ctx.inputs[:count]]
    return [ctx.settle(operand) for operand in operands]


@rule("Addcmul", "Addcdiv")
def add_product(ctx: Context) -> Value:
    """``x + y * z`` and ``x + y / z``."""
    settled = settled_operands(ctx, 3)
    degree = ctx.system.product(settled[1].degree, settled[2].degree, -1 if ctx.name == "Addcdiv" else 1)
    degree = ctx.system.equal(settled[0].degree, degree, ctx.cause("added", settled[0].degree, degree))
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape))


@rule(
    "Gelu", "Silu", "Sigmoid", "Tanh", "Softplus", "Elu", "Selu", "Celu", "Mish", "Hardswish", "Hardsigmoid",
    "Hardtanh",
    "Exp", "Expm1", "Log", "Log1P", "Log2", "Log10", "Sin", "Cos", "Erf",
    "LogSigmoid", "Logsumexp", "Softshrink", "Hardshrink", "Atan", "Asinh",
    "NllLoss", "NllLoss2D", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "MseLoss", "SmoothL1Loss",
    "HuberLoss", "L1Loss", "KlDiv", "CtcLoss", "SoftMarginLoss", "MultilabelMarginLoss", "CudnnCtcLoss",
    "MkldnnRnnLayer", "CudnnRnn", "MiopenRnn", "ThnnFusedLstmCell", "ThnnFusedGruCell",
)  # fmt: skip
def not_homogeneous(ctx: Context) -> Sequence[Value]:
    """The output depends on the input's scale, and not by a power of it."""
    for value in ctx.inputs:
        ctx.zero(value)
    return [constant(shape) for shape in ctx.shapes]


def unknown(ctx: Context) -> Sequence[Value]:
    """Nothing is known: nothing that it reads may scale."""
    for value in ctx.inputs:
        ctx.zero(value, "unknown")
    return [constant(shape) for shape in ctx.shapes]
