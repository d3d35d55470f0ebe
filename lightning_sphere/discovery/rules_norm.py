"""Rules for normalizations and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from lightning_sphere.discovery.degrees import ZERO, Offset, Value, constant
from lightning_sphere.discovery.names import name_norm
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_pointwise import not_homogeneous
from lightning_sphere.discovery.rules_shape import reshaped
from lightning_sphere.discovery.stabilizers import eps_share
from lightning_sphere.discovery.system import constant_offset


def _normalize(ctx: Context, value: Value, axes: Sequence[int], kind: str, centred: bool = True) -> Value:
    """Make a value independent of its scale along ``axes``, and of what is constant along them if centred."""
    value = ctx.settle(removed(value, axes) if centred else value)
    degree = ctx.system.uniform(value.degree, axes, ctx.cause("mixed"))
    ctx.system.note_share(degree, eps_share(ctx.graph, ctx.position, centred))
    ctx.system.reset(degree, name_norm(ctx.graph, ctx.parameters, ctx.position, kind), value.via)
    return Value(value.shape, ZERO, varies=(True,) * len(value.shape))


def removed(value: Value, axes: Sequence[int]) -> Value:
    """A value without what subtracting its mean along ``axes`` removes."""
    return replace(value, offsets=tuple(o for o in value.offsets if any(o.varies[axis] for axis in axes)))


def _affine(ctx: Context, value: Value, gain: Value | None, bias: Value | None, axes: Sequence[int]) -> Value:
    """Apply gain and bias, laid out along ``axes`` of the value."""
    layout = tuple(size if axis in axes else 1 for axis, size in enumerate(value.shape))
    if gain is not None:
        gain = ctx.settle(gain)
        degree = ctx.system.product(value.degree, reshaped(ctx, gain, layout).degree)
        value = replace(value, degree=degree)
    varies = tuple(axis in axes for axis in range(len(value.shape)))
    if bias is not None:
        shift = reshaped(ctx, ctx.settle(bias), layout).degree
        return replace(value, offsets=(*value.offsets, Offset(shift, varies, source=ctx.name)))
    if gain is not None and gain.degree and not ctx.name.endswith("RmsNorm"):
        return replace(value, offsets=(*value.offsets, constant_offset(varies, "bias")))
    return value


def _with_rest(ctx: Context, value: Value) -> Sequence[Value]:
    return [replace(value, shape=ctx.shape), *(constant(shape) for shape in ctx.shapes[1:])]


@rule("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNorm", "SyncBatchNorm", "NativeBatchNormLegit")
def batch_norm(ctx: Context) -> Sequence[Value]:
    """Batch norm, and instance norm, which is a batch norm over one sample of many channels."""
    value, gain, bias = (*ctx.inputs, None, None)[:3]
    value = value if value is not None else constant(ctx.shape)
    if not ctx.saved("training", True):
        # An affine map with fixed numbers: it scales with its input, and adds a constant per channel.
        factor = None if gain is None else ctx.settle(gain)
        varies = tuple(axis == 1 for axis in range(len(value.shape)))
        value = replace(value, offsets=(*value.offsets, constant_offset(varies, "running mean")))
        if factor is None:
            offsets = value.offsets
        else:
            layout = tuple(size if axis == 1 else 1 for axis, size in enumerate(value.shape))
            scale = reshaped(ctx, factor, layout).degree
            offsets = tuple(replace(o, degree=ctx.system.product(o.degree, scale)) for o in value.offsets)
            value = replace(value, degree=ctx.system.product(value.degree, scale))
        offsets = tuple(
            replace(o, varies=tuple(flag or axis == 1 for axis, flag in enumerate(o.varies)), key=None) for o in offsets
        )
        return _with_rest(ctx, _affine(ctx, replace(value, offsets=offsets), None, bias, [1]))
    instance = _repeated(ctx)
    axes = [axis for axis in range(len(value.shape)) if axis != 1]
    normal = _normalize(ctx, value, axes, "InstanceNorm" if instance else "BatchNorm")
    return _with_rest(ctx, _affine(ctx, normal, gain, bias, [1]))


def _repeated(ctx: Context) -> bool:
    """Whether samples and channels were made one dimension, and the gain repeated for each sample: instance norm."""
    graph, edges = ctx.graph, ctx.graph.edges[ctx.position]
    gain = edges[1] if len(edges) > 1 else None
    if gain is not None:
        return graph.names[gain[0]].startswith("Repeat")
    (source, *_), shape = edges, ctx.source().shape
    if source is None or shape[0] != 1 or not graph.edges[source[0]] or "View" not in graph.names[source[0]]:
        return False
    before = graph.edges[source[0]][0]
    if before is None:
        return False
    given = graph.shapes[before[0]][before[1]]
    return len(given) == len(shape) and given[0] > 1 and given[0] * given[1] == shape[1]


@rule("NativeLayerNorm", "LayerNorm")
def layer_norm(ctx: Context) -> Sequence[Value]:
    """Layer norm over the last dimensions."""
    value, gain, bias = (*ctx.inputs, None, None)[:3]
    value = value if value is not None else constant(ctx.shape)
    ndim = len(value.shape)
    axes = range(ndim - len(ctx.saved("normalized_shape")), ndim)
    return _with_rest(ctx, _affine(ctx, _normalize(ctx, value, axes, "LayerNorm"), gain, bias, axes))


@rule("FusedRmsNorm", "RmsNorm")
def rms_norm(ctx: Context) -> Sequence[Value]:
    """Root-mean-square norm over the last dimensions; nothing is subtracted."""
    value, gain = (*ctx.inputs, None)[:2]
    value = value if value is not None else constant(ctx.shape)
    ndim = len(value.shape)
    axes = range(ndim - len(ctx.saved("normalized_shape")), ndim)
    normal = _normalize(ctx, value, axes, "RMSNorm", centred=False)
    return _with_rest(ctx, _affine(ctx, normal, gain, None, axes))


@rule("NativeGroupNorm")
def group_norm(ctx: Context) -> Sequence[Value]:
    """Group norm: each group of channels of a sample, with all positions."""
    value, gain, bias = (*ctx.inputs, None, None)[:3]
    value = value if value is not None else constant(ctx.shape)
    shape, groups = value.shape, int(ctx.saved("group"))
    if groups == shape[1]:
        normal = _normalize(ctx, value, range(2, len(shape)), "GroupNorm")
        split = value
    else:
        split = reshaped(ctx, value, (shape[0], groups, shape[1] // groups, *shape[2:]))
        normal = _normalize(ctx, split, range(2, len(shape) + 1), "GroupNorm")
    normal = Value(shape, ZERO, varies=(True,) * len(shape))
    result = _with_rest(ctx, _affine(ctx, normal, gain, bias, [1]))
    return [result[0], *_statistics(ctx, split)]


def _statistics(ctx: Context, value: Value) -> Sequence[Value]:
    """Mean and reciprocal deviation, which are outputs of a norm as well: gradients inside the loss read them."""
    readers = (edge for reader in ctx.graph.consumers[ctx.position] for edge in ctx.graph.edges[reader])
    if not any(edge is not None and edge[0] == ctx.position and edge[1] > 0 for edge in readers):
        return [constant(shape) for shape in ctx.shapes[1:]]
    settled = ctx.uniform(ctx.settle(value), range(2, len(value.shape)))
    mean = settled.map(lambda rows: rows.reshape(rows.shape[:2]), value.shape[:2], lambda flags: flags[:2])
    mean = replace(mean, statistic=True)
    return [mean, replace(mean, degree=mean.degree.scaled(-1))]


@rule("WeightNormInterface")
def weight_norm(ctx: Context) -> Sequence[Value]:
    """``g v / |v|``, the norm taken over all dimensions but one."""
    direction, gain = ctx.inputs[:2]
    (kept,) = ctx.dims("dim", len(ctx.shape))
    direction = direction if direction is not None else constant(ctx.shape)
    axes = [axis for axis in range(len(ctx.shape)) if axis != kept]
    normal = _normalize(ctx, direction, axes, "weight norm", centred=False)
    degree = ctx.settle(gain).degree if gain is not None else ZERO
    return _with_rest(ctx, replace(normal, shape=ctx.shape, degree=degree.align(len(ctx.shape))))


@rule("Mean", "Sum", "LinalgVectorNorm", "Norm", "Amax", "Amin", "Max", "Min", "Median", "Var", "Std", "VarMean",
      "StdMean", "Nansum")  # fmt: skip
def reduce(ctx: Context) -> Value | Sequence[Value]:
    """Reductions over dimensions: the elements must scale equally along them, and the result scales as they do."""
    value = ctx.source()
    ndim = len(value.shape)
    order = ctx.saved("ord", ctx.saved("p", 2))
    if ctx.name in ("LinalgVectorNorm", "Norm") and order == 0:
        return not_homogeneous(ctx)
    axes = set(ctx.dims("dim", ndim))
    if ctx.name in ("Mean", "Sum", "Nansum"):
        return _collapsed(ctx, _mean(ctx, value, axes, ctx.name == "Mean"), axes)
    spread, extreme = ctx.name in ("Var", "Std", "VarMean", "StdMean"), ctx.name in _EXTREMES
    varying = tuple(o for o in value.offsets if not (spread or extreme) or any(o.varies[axis] for axis in axes))
    settled = ctx.settle(value if len(varying) == len(value.offsets) else replace(value, offsets=varying))
    if extreme:  # what is constant along the dimensions is added to the greatest element as to every other one
        settled = _mean(ctx, replace(settled, offsets=tuple(o for o in value.offsets if o not in varying)), axes)
    result = _collapsed(ctx, settled, axes)
    if ctx.name.startswith("Var"):
        result = replace(result, degree=result.degree.scaled(2))
    if len(ctx.shapes) == 1:
        return result
    return [result, _collapsed(ctx, _mean(ctx, value, axes), axes) if spread else constant(ctx.shapes[1])]


_EXTREMES = ("Amax", "Amin", "Max", "Min", "Median")


def _mean(ctx: Context, value: Value, axes: set[int], exact: bool = True) -> Value:
    """Take mean (or sum) of what was added too; a summand that is constant there is its own mean."""
    offsets = []
    for offset in value.offsets:
        unchanged = exact and not any(offset.varies[axis] for axis in axes)
        varies = tuple(flag and axis not in axes for axis, flag in enumerate(offset.varies))
        offsets.append(replace(offset, varies=varies, key=offset.identity if unchanged else None))
    return replace(value, offsets=tuple(offsets))


def _collapsed(ctx: Context, value: Value, axes: set[int]) -> Value:
    """Demand equal degrees along the reduced dimensions, and remove these or keep them with size 1."""
    source, ndim = value.shape, len(value.shape)
    value = ctx.uniform(value, sorted(axes))
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(source))
    flags = tuple(flag and axis not in axes for axis, flag in enumerate(value.varies))
    value = replace(value, shape=shape, varies=flags, statistic=prod(shape) < prod(source))
    if len(ctx.shape) == ndim:
        return value
    left = [axis for axis in range(ndim) if axis not in axes]
    return value.map(
        lambda rows: rows.reshape([rows.shape[axis] for axis in left]),
        tuple(shape[axis] for axis in left),
        lambda flags: tuple(flags[axis] for axis in left),
    )
