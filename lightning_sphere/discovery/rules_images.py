"""Rules for operations on neighbours in space: pooling, upsampling, padding, shuffles and shifts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np
import torch

from lightning_sphere.discovery.degrees import Value, constant
from lightning_sphere.discovery.elements import filler
from lightning_sphere.discovery.graph import signed
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_pointwise import LABELS
from lightning_sphere.discovery.rules_shape import permuted, reshaped
from lightning_sphere.discovery.system import constant_offset
from lightning_sphere.discovery.values import Values


def _mixed(ctx: Context, value: Value, axes: Iterable[int]) -> Value:
    """Each element of the output is made of elements along ``axes``, so that a constant stays what it is."""
    axes = tuple(axes)
    offsets = []
    for offset in value.offsets:
        if any(offset.varies[axis] for axis in axes):
            varies = tuple(flag or axis in axes for axis, flag in enumerate(offset.varies))
            offsets.append(replace(offset, varies=varies, key=None))
        else:
            offsets.append(replace(offset, key=offset.identity))
    return replace(ctx.uniform(replace(value, offsets=tuple(offsets)), axes), shape=ctx.shape)


def _taken(value: Value, axis: int, index: IntArray) -> Value:
    """Take elements by index along one dimension."""

    def take(rows: IntArray) -> IntArray:
        result: IntArray = rows if rows.shape[axis] == 1 else rows.take(index, axis)
        return result

    shape = (*value.shape[:axis], len(index), *value.shape[axis + 1 :])
    moved = value.map(take, shape, lambda flags: flags)
    kept = (o.identity if not o.varies[axis] else None for o in value.offsets)
    return replace(moved, offsets=tuple(replace(o, key=key) for o, key in zip(moved.offsets, kept, strict=True)))


@rule("MaxPool2D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D",
      "FractionalMaxPool2D", "FractionalMaxPool3D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D",
      "MkldnnAdaptiveAvgPool2D",
      "UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleNearestExact1D", "UpsampleNearestExact2D",
      "UpsampleNearestExact3D", "UpsampleLinear1D", "UpsampleBilinear2D", "UpsampleTrilinear3D", "UpsampleBicubic2D",
      "UpsampleBilinear2DAa", "UpsampleBicubic2DAa", "UpsampleLanczos2DAa")  # fmt: skip
def pool(ctx: Context) -> Sequence[Value]:
    """Mixes neighbours of the last dimensions; what is constant along them stays so, unless zeros are padded."""
    value = ctx.source()
    spatial = 3 if "3D" in ctx.name else 1 if "1D" in ctx.name else 2
    axes = range(len(ctx.shape) - spatial, len(ctx.shape))
    if _counts_zeros(ctx):
        value = ctx.settle(value)
    elif "Max" in ctx.name:
        varying = tuple(o for o in value.offsets if any(o.varies[axis] for axis in axes))
        kept = tuple(o for o in value.offsets if o not in varying)
        value = replace(ctx.settle(replace(value, offsets=varying)), offsets=kept) if varying else value
    value = _mixed(ctx, value, axes)
    value = ctx.passed(value, LABELS.get(ctx.name, "pooling" if "Pool" in ctx.name else "upsampling"))
    return [value, *(constant(shape) for shape in ctx.shapes[1:])]


def _counts_zeros(ctx: Context) -> bool:
    """Whether average pooling takes padded zeros, or windows cut at the border, for whole ones."""
    if not ctx.name.startswith("AvgPool"):
        return False
    padded = any(int(size) for size in ctx.saved("padding", (1,))) and ctx.saved("count_include_pad", True)
    return bool(padded or ctx.saved("divisor_override") is not None)


@rule("ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "ReplicationPad1D", "ReplicationPad2D",
      "ReplicationPad3D")  # fmt: skip
def pad_with_own(ctx: Context) -> Value:
    """Padding with elements of the tensor itself."""
    value, ndim = ctx.source(), len(ctx.shape)
    return _mixed(ctx, value, range(ndim - len(ctx.saved("padding")) // 2, ndim))


@rule("ConstantPadNd")
def pad_with_number(ctx: Context) -> Value:
    """Padding with zeros, which scale as their neighbours do, or with what counts as any other added number."""
    value, ndim = ctx.source(), len(ctx.shape)
    padding = [signed(int(size)) for size in ctx.saved("pad")]
    for place in range(0, len(padding), 2):
        axis, (before, after) = ndim - 1 - place // 2, padding[place : place + 2]
        size = value.shape[axis]
        value = _taken(value, axis, np.arange(-before, size + after).clip(0, size - 1))
    if not any(size > 0 for size in padding):
        return value
    number = _padded_number(ctx, padding)
    if number is not None and not isfinite(number):
        return value  # as before max-pooling
    wider = {ndim - 1 - place // 2 for place, size in enumerate(padding) if size > 0}
    offsets = tuple(
        replace(o, varies=tuple(flag or axis in wider for axis, flag in enumerate(o.varies)), key=None)
        for o in value.offsets
    )
    everywhere = (True,) * ndim
    if number != 0:
        offsets = (*offsets, constant_offset(everywhere, "padding"))
    return replace(value, offsets=offsets, varies=everywhere)


def _padded_number(ctx: Context, padding: Sequence[int]) -> float | None:
    """The number that was padded, if it is known: the operation does not save it but a reader may."""
    padded = Values(ctx.graph).later((ctx.position, 0))
    place = next(place for place, size in enumerate(padding) if size > 0)
    if padded is None:
        edges = torch.zeros(ctx.shape[-1 - place // 2], dtype=torch.bool)
        edges[0 if place % 2 == 0 else -1] = True
        return filler(ctx.graph, (ctx.position, 0), edges.reshape(-1, *(1,) * (place // 2)))
    if type(padded).__name__ == "FakeTensor" or not padded.numel():
        return None
    return float(padded.select(-1 - place // 2, 0 if place % 2 == 0 else -1).flatten()[0])


@rule("Roll", "Flip")
def shift(ctx: Context) -> Value:
    """Elements change places along some dimensions."""
    value, ndim = ctx.source(), len(ctx.shape)
    axes = ctx.dims("dims", ndim)
    shifts = [signed(int(shift)) for shift in ctx.saved("shifts", ())]
    if ctx.name == "Roll" and len(shifts) != len(ctx.saved("dims")):
        return _mixed(ctx, value, axes)  # of the flattened tensor
    for place, axis in enumerate(axes):
        index = np.arange(ctx.shape[axis])
        value = _taken(value, axis, np.roll(index, shifts[place]) if ctx.name == "Roll" else index[::-1])
    return value


@rule("Rot90")
def rotate(ctx: Context) -> Value:
    """A plane is turned by right angles."""
    value, ndim = ctx.source(), len(ctx.shape)
    turns, axes = signed(int(ctx.saved("k"))), ctx.dims("dims", ndim)
    order = list(range(ndim))
    if turns % 2:
        order[axes[0]], order[axes[1]] = axes[1], axes[0]
    turned = value.map(
        lambda rows: np.rot90(rows, turns, (axes[0], axes[1])),
        ctx.shape,
        lambda flags: tuple(flags[axis] for axis in order),
    )
    return replace(turned, offsets=tuple(replace(o, key=None) for o in turned.offsets))


@rule("ChannelShuffle")
def shuffle_channels(ctx: Context) -> Value:
    """Channels of several groups are interleaved."""
    value = ctx.source()
    batch, channels, *space = value.shape
    groups = int(ctx.saved("groups"))
    split = reshaped(ctx, value, (batch, groups, channels // groups, *space))
    return reshaped(ctx, permuted(split, (0, 2, 1, *range(3, len(space) + 3))), ctx.shape)


@rule("PixelShuffle", "PixelUnshuffle")
def shuffle_pixels(ctx: Context) -> Value:
    """Channels become pixels, or pixels channels."""
    value = ctx.source()
    *lead, channels, height, width = value.shape
    first = range(len(lead))
    n = len(lead)
    if ctx.name == "PixelShuffle":
        factor = int(ctx.saved("upscale_factor"))
        split = reshaped(ctx, value, (*lead, channels // factor**2, factor, factor, height, width))
        moved = permuted(split, (*first, n, n + 3, n + 1, n + 4, n + 2))
    else:
        factor = int(ctx.saved("downscale_factor"))
        split = reshaped(ctx, value, (*lead, channels, height // factor, factor, width // factor, factor))
        moved = permuted(split, (*first, n, n + 2, n + 4, n + 1, n + 3))
    return reshaped(ctx, moved, ctx.shape)


@rule("GridSampler2D", "GridSampler3D", "GridSampler2DCpuFallback", "MaxUnpool2D", "MaxUnpool3D")
def sample(ctx: Context) -> Value:
    """Elements are taken from, or put to, other places, which must not scale; zeros elsewhere."""
    for place in ctx.inputs[1:]:
        ctx.zero(place)
    value = ctx.source()
    if not ctx.name.startswith("GridSampler") or not ctx.saved("padding_mode", 0):
        value = ctx.settle(value)
    return _mixed(ctx, value, range(2, len(ctx.shape)))


@rule("Im2Col", "Col2Im")
def patches(ctx: Context) -> Value:
    """Patches of an image as columns of channels and places, and sums of such columns."""
    value = ctx.source()
    kernel = [int(size) for size in ctx.saved("kernel_size")]
    places = kernel[0] * kernel[1]
    if ctx.name == "Im2Col":
        batch, channels = value.shape[:2]
        value = ctx.settle(value) if any(int(size) for size in ctx.saved("padding")) else value
        mixed = replace(_mixed(ctx, value, (2, 3)), shape=value.shape)
        # What is the same for all pixels is the same for all places in a patch.
        rows = mixed.map(lambda r: r[..., 0], (batch, channels, 1), lambda flags: (*flags[:2], flags[2] or flags[3]))
        spread = rows.map(
            lambda r: r if r.shape[1] == 1 else r.repeat(places, 1), ctx.shape, lambda flags: (flags[0], True, flags[2])
        )
        return replace(spread, varies=(True, True, True))
    batch, columns, length = value.shape
    once = tuple(ctx.saved("stride")) == tuple(kernel) and not any(int(size) for size in ctx.saved("padding"))
    value = value if once else ctx.settle(value)  # overlapping patches are summed up, fewer of them at the border
    split = reshaped(ctx, value, (batch, columns // places, places, length))
    merged = replace(_mixed(ctx, split, (2, 3)), shape=split.shape)
    return replace(merged, shape=ctx.shape, varies=(True,) * 4)


@rule("Unfold")
def windows(ctx: Context) -> Value:
    """Windows along one dimension, with a new last dimension for the places in each."""
    value = ctx.source()
    (axis,) = ctx.dims("dimension", len(value.shape))
    mixed = replace(_mixed(ctx, value, (axis,)), shape=value.shape)
    return mixed.map(lambda rows: rows[..., None], ctx.shape, lambda flags: (*flags, flags[axis]))
