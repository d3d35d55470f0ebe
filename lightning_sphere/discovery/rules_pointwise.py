"""Rules for element-wise operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_sphere.discovery.degrees import Offset, Shape, Value, constant, either
from lightning_sphere.discovery.registry import Context, rule
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


@rule("ToCopy", "Clone", "Alias", "Contiguous", "NativeDropout", "FusedDropout")
def keep(ctx: Context) -> Value:
    """The output scales as the input does, with everything that was added to it."""
    return replace(ctx.source(), shape=ctx.shape)


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
        stabilizes = value.statistic and not high and 0 < (low or 0) <= SMALL
        if (low or high) and not stabilizes:
            return not_homogeneous(ctx)
    for slope in ctx.inputs[1:]:
        ctx.zero(slope)
    value = ctx.settle(value)
    return ctx.passed(value, LABELS[ctx.name]) if ctx.name in LABELS else value


SMALL = 1e-3
"""A statistic clamped from below by at most this is taken for one that is kept away from zero."""

_CLAMPS_BY_NUMBERS = ("ClampMinBackward0", "ClampMaxBackward0", "ClampBackward1")
"""The other variants clamp by tensors, which must not be unpacked."""


@rule("Add", "Sub", "Rsub")
def add(ctx: Context) -> Value:
    """Both summands must scale equally, unless one is constant along some dimensions: see :class:`Offset`."""
    sign = -1 if ctx.name == "Sub" else 1
    values = [value.broadcast(ctx.shape) for value in ctx.inputs if value is not None]
    if not values:
        return constant(ctx.shape)
    if len(values) == 1:
        everywhere = (True,) * len(ctx.shape)
        if ctx.graph.names[ctx.position].endswith("1"):  # the variant for a tensor and a number
            everywhere = (False,) * len(ctx.shape)
        extra = replace(constant_offset(everywhere, ctx.name), stabilizer=values[0].statistic)
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
        return _times_data(first, ctx.shape)
    if second is not None and (sign < 0 or (first is not None and first.offsets)):
        second = ctx.settle(second, forgive=sign < 0)
    if second is None:
        return constant(ctx.shape)
    if first is None:
        scaled = _times_data(second, ctx.shape)
        return replace(scaled, degree=scaled.degree.scaled(sign))
    degree = ctx.system.product(first.degree, second.degree, sign)
    for symbol in first.degree.fields.keys() & second.degree.fields.keys() - degree.fields.keys():
        if ctx.system.partitions[symbol].alive:
            ctx.system.norms.setdefault(symbol, {})[_norm_by_hand(ctx), first.via] = None
    offsets = [
        Offset(ctx.system.product(o.degree, factor.degree, sign), either(o.varies, factor.varies), o.constant)
        for value, factor in ((first, second), (second, first))
        for o in value.offsets
    ]
    statistic = first.statistic and second.statistic
    return Value(ctx.shape, degree, tuple(offsets), either(first.varies, second.varies), statistic, first.via)


def _times_data(value: Value, shape: Shape) -> Value:
    """Multiply by a number or by data: what was added may vary along every dimension afterwards."""
    offsets = tuple(replace(o, varies=(True,) * len(shape), key=None) for o in value.offsets)
    return replace(value, shape=shape, offsets=offsets, varies=(True,) * len(shape))


def _unkeyed(value: Value) -> Value:
    return replace(value, offsets=tuple(replace(o, key=None) for o in value.offsets))


def _norm_by_hand(ctx: Context) -> str:
    """Name a norm that is written out, by the module that owns the gain which follows."""
    position = ctx.position
    for _ in range(4):
        readers = ctx.graph.consumers[position]
        if len(readers) != 1:
            break
        position = readers[0]
        reader = Context(ctx.system, ctx.graph, ctx.parameters, position, [])
        if reader.name == "Mul":
            for index in range(2):
                if (gain := reader.leaf(index)) is not None and gain.module:
                    return f"{gain.module_type} `{gain.module}`"
    return "division by its own statistic"


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


@rule("Maximum", "Minimum", "Where", "Lerp")
def choose(ctx: Context) -> Value:
    """One of two values, or between them: both must scale equally."""
    if ctx.name == "Lerp" and len(ctx.inputs) > 2:
        ctx.zero(ctx.inputs[2])
    settled = _settled_operands(ctx, 2)
    cause = ctx.cause("added", settled[0].degree, settled[1].degree)
    degree = ctx.system.equal(settled[0].degree, settled[1].degree, cause)
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape), via=settled[0].via)


def _settled_operands(ctx: Context, count: int) -> list[Value]:
    """The first operands, without offsets."""
    operands = [constant(ctx.shape) if v is None else v.broadcast(ctx.shape) for v in ctx.inputs[:count]]
    return [ctx.settle(operand) for operand in operands]


@rule("Addcmul", "Addcdiv")
def add_product(ctx: Context) -> Value:
    """``x + y * z`` and ``x + y / z``."""
    settled = _settled_operands(ctx, 3)
    degree = ctx.system.product(settled[1].degree, settled[2].degree, -1 if ctx.name == "Addcdiv" else 1)
    degree = ctx.system.equal(settled[0].degree, degree, ctx.cause("added", settled[0].degree, degree))
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape))


@rule(
    "Gelu", "Silu", "Sigmoid", "Tanh", "Softplus", "Elu", "Selu", "Celu", "Mish", "Hardswish", "Hardsigmoid",
    "Hardtanh",
    "Exp", "Expm1", "Log", "Log1P", "Log2", "Log10", "Sin", "Cos", "Erf", "Softmax", "LogSoftmax", "SafeSoftmax",
    "LogSigmoid", "Logsumexp", "Softshrink", "Hardshrink", "Glu", "Atan", "Asinh",
    "NllLoss", "NllLoss2D", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "MseLoss", "SmoothL1Loss",
    "HuberLoss", "L1Loss", "KlDiv", "CtcLoss", "SoftMarginLoss", "MultilabelMarginLoss", "CudnnCtcLoss",
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
