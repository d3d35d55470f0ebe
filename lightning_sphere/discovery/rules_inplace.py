"""The rule for in-place operations on views, such as ``x[:, :4] = y`` or ``x[:, 0].mul_(2)``.

Autograd keeps them as ``CopySlices``, which tells neither the view nor the operation. Both are read from the node's
backward: it is called with the elements' own numbers as gradient, and what comes back tells where each one went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sphere.discovery.degrees import Blank, Shape, Value, constant
from lightning_sphere.discovery.graph import short_name
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_pointwise import unknown
from lightning_sphere.discovery.rules_shape import rearrange
from lightning_sphere.discovery.rules_write import write
from lightning_sphere.discovery.saved import hooked
from lightning_sphere.discovery.system import constant_offset

LARGEST = 1 << 22
"""Most elements of a tensor that is followed: as many numbers are sent, and come back, on its device."""

_VIEWS = ("AsStrided", "Slice", "Select", "View", "Transpose", "Permute", "Unsqueeze", "Squeeze", "Narrow", "Alias")


@dataclass(frozen=True)
class Probe:
    """What came back for the numbers ``1, 2, ...`` of the output's elements."""

    sent: Tensor
    base: Tensor | None
    """For the tensor that was written into; ``None`` if it is data."""
    source: Tensor | None
    copied: bool
    """Whether the source was copied: its gradient was cast to its own type, as copying does and nothing else."""


@rule("CopySlices")
def copy_slices(ctx: Context) -> Value | Sequence[Value]:
    """A view was written to, added to, scaled or filled; anything else is not followed."""
    edges = ctx.graph.edges[ctx.position]
    base, source = ctx.inputs[0], ctx.inputs[1] if len(edges) > 1 else None
    probe = _probe(ctx) if len(edges) <= 2 and (base is not None or source is not None) else None
    if probe is None:
        return unknown(ctx)
    if source is None:
        return _alone(ctx, base, probe) if base is not None else constant(ctx.shape)
    if probe.source is None:
        return unknown(ctx)
    if probe.copied and base is not None and _copied_onto_itself(ctx, probe):
        return base
    place = _region(probe.source.detach().to(torch.float64).cpu().numpy(), ctx.shape)
    if place is not None and probe.copied:
        return _written(ctx, base, source, place)
    if place is not None:
        return _added(ctx, base, source, probe, place)
    return unknown(ctx)


@dataclass(frozen=True)
class Region:
    """Where the elements of a source are in the tensor."""

    key: tuple[slice, ...]
    order: tuple[int | None, ...]
    """For every dimension of the tensor, the source's dimension that runs along it."""


def _aligned(source: Value, region: Region) -> Value:
    """A source with the tensor's dimensions."""
    used = [axis for axis in region.order if axis is not None]

    def rows(array: IntArray) -> IntArray:
        rest = [axis for axis in range(array.ndim) if axis not in used]
        moved = array.transpose([*used, *rest])
        result: IntArray = moved.reshape([1 if axis is None else array.shape[axis] for axis in region.order])
        return result

    def varies(flags: tuple[bool, ...]) -> tuple[bool, ...]:
        return tuple(axis is not None and flags[axis] for axis in region.order)

    shape = tuple(1 if axis is None else source.shape[axis] for axis in region.order)
    return source.map(rows, shape, varies)


def _written(ctx: Context, base: Value | None, source: Value, region: Region) -> Value:
    return write(ctx, base, _aligned(source, region), region.key, range(len(ctx.shape)))


def _added(ctx: Context, base: Value | None, source: Value, probe: Probe, region: Region) -> Value | Sequence[Value]:
    """``base[key] += source``: the gradient of the tensor passes unchanged."""
    if base is None or probe.base is None or not torch.equal(probe.base, probe.sent):
        return unknown(ctx)
    base = ctx.settle(base)
    added = ctx.settle(_aligned(source, region))
    cut = base.degree.map(
        lambda rows: rows[tuple(p if n > 1 else slice(None) for p, n in zip(region.key, rows.shape, strict=True))]
    )
    degree = ctx.system.equal(cut, added.degree, ctx.cause("added", cut, added.degree))
    return _written(ctx, base, replace(added, degree=degree, shape=ctx.shape), _straight(region))


def _straight(region: Region) -> Region:
    return Region(region.key, tuple(range(len(region.key))))


def _alone(ctx: Context, base: Value, probe: Probe) -> Value | Sequence[Value]:
    """An operation on a view that involves no other tensor with a gradient."""
    assert probe.base is not None
    ratio = (probe.base / probe.sent).to(torch.float64).cpu()
    factors = set(torch.unique(ratio).tolist()) if ratio.numel() else set()
    if factors <= {1.0}:  # a number was added, if anything
        return replace(base, offsets=(*base.offsets, constant_offset((True,) * len(ctx.shape), ctx.name)))
    if factors <= {0.0, 1.0}:  # filled
        where = np.asarray((ratio == 0).numpy())
        if where.size > 1 << 20:
            return unknown(ctx)
        settled = ctx.settle(base)
        degree = settled.degree.map(lambda rows: np.where(where, 0, rows))
        return replace(settled, degree=degree, blank=Blank(where, False), varies=(True,) * len(ctx.shape))
    if len(factors - {1.0}) == 1 and 0.0 not in factors:  # multiplied by a number
        return replace(ctx.settle(base), varies=(True,) * len(ctx.shape))
    return unknown(ctx)


@rule("AsStrided")
def as_strided(ctx: Context) -> Value | Sequence[Value]:
    """A view by steps through memory: cut out where the steps run along dimensions."""
    value, key = ctx.source(), ("view", ctx.position)
    if key not in ctx.graph.memory:
        ctx.graph.memory[key] = _viewed(ctx, value.shape)
    region = ctx.graph.memory[key]
    if not isinstance(region, Region):
        return rearrange(ctx)

    def take(rows: IntArray) -> IntArray:
        cut = rows[tuple(p if n > 1 else slice(None) for p, n in zip(region.key, rows.shape, strict=True))]
        return _laid_out(cut, region, len(ctx.shape))

    def varies(flags: tuple[bool, ...]) -> tuple[bool, ...]:
        return tuple(axis in region.order and flags[region.order.index(axis)] for axis in range(len(ctx.shape)))

    return value.map(take, ctx.shape, varies)


def _laid_out(rows: IntArray, region: Region, ndim: int) -> IntArray:
    """Bring a part of a tensor into the dimensions of a view of it."""
    used = [d for d, axis in enumerate(region.order) if axis is not None]
    moved = rows.transpose([*used, *(d for d in range(rows.ndim) if d not in used)])
    moved = moved.reshape([rows.shape[d] for d in used])
    places = [region.order[d] for d in used]
    moved = moved.transpose(np.argsort(np.array(places, dtype=np.intp)))
    kept = iter(moved.shape)
    result: IntArray = moved.reshape([next(kept) if axis in places else 1 for axis in range(ndim)])
    return result


def _viewed(ctx: Context, shape: Shape) -> Region | None:
    """Where the elements of a view are in the tensor; ``None`` if they overlap or do not run along dimensions."""
    count = prod(ctx.shape)
    if not 0 < count < LARGEST or prod(shape) >= LARGEST:
        return None
    sent = torch.arange(1, count + 1, dtype=torch.float64, device=ctx.node._input_metadata[0].device).view(ctx.shape)
    with torch.no_grad():
        found = ctx.node(sent)
    back = (found if isinstance(found, Tensor) else found[0]).flatten().cpu()
    places = back.nonzero().flatten()
    if len(places) != count:
        return None
    numbers = torch.zeros(count, dtype=torch.float64)
    numbers[back[places].long() - 1] = (places + 1).to(torch.float64)
    return _region(numbers.view(ctx.shape).numpy(), shape)


def _probe(ctx: Context) -> Probe | None:
    """Call the node's backward, which changes nothing; not where a hook may hide what it saved."""
    key = ("probe", ctx.position)
    if key not in ctx.graph.memory:
        ctx.graph.memory[key] = None
        if 0 < prod(ctx.shape) < LARGEST and not _hooks_nearby(ctx):
            ctx.graph.memory[key] = _called(ctx)
    found = ctx.graph.memory[key]
    return found if isinstance(found, Probe) else None


def _called(ctx: Context) -> Probe | None:
    node = ctx.node
    metadata = node._input_metadata[0]
    other = node.next_functions[1] if len(node.next_functions) > 1 else (None, 0)
    kind = metadata.dtype if other[0] is None else other[0]._input_metadata[other[1]].dtype
    if kind.is_complex:
        exact = torch.complex64 if kind == torch.complex128 else torch.complex128
    elif kind.is_floating_point:
        exact = torch.float32 if kind == torch.float64 else torch.float64
    else:
        return None
    sent = torch.arange(1, prod(ctx.shape) + 1, device=metadata.device).to(exact).view(ctx.shape)
    try:
        with torch.no_grad():
            found = node(sent)
    except RuntimeError:  # some operations take gradients of their own type only
        return None
    base, source = (*((found,) if isinstance(found, Tensor) else found), None)[:2]
    copied = source is not None and source.dtype == kind
    if copied and kind.itemsize < 4:
        source = _in_digits(node, sent)
    return Probe(_real(sent), _real(base), _real(source), copied)


def _real(numbers: Any) -> Any:
    """The numbers sent, or come back, without the imaginary part that complex tensors have and these do not."""
    if numbers is None or not numbers.is_complex():
        return numbers
    return numbers.real if not numbers.imag.any() else torch.full_like(numbers.real, torch.nan)


def _in_digits(node: Any, sent: Tensor) -> Tensor:
    """The numbers of a source of low precision, which keeps eight bits: sent byte by byte."""
    total: Tensor | None = None
    whole = sent.long()
    for shift in (0, 8, 16):
        with torch.no_grad():
            part = node(((whole >> shift) & 255).to(sent.dtype))[1].to(torch.float64) * (1 << shift)
        total = part if total is None else total + part
    assert total is not None
    return total


def _hooks_nearby(ctx: Context) -> bool:
    """Whether what is written was made where tensors are saved through hooks: the node's own ones can not be seen."""
    graph = ctx.graph
    edges = [edge[0] for edge in graph.edges[ctx.position] if edge is not None]
    near = {*edges, *graph.consumers[ctx.position]}
    near |= {edge[0] for position in edges for edge in graph.edges[position] if edge is not None}
    for position in near:
        node = graph.nodes[position]
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                raw = getattr(node, name)
                if any(map(hooked, raw)) if isinstance(raw, (tuple, list)) else raw is not None and hooked(raw):
                    return True
    return False


def _copied_onto_itself(ctx: Context, probe: Probe) -> bool:
    """Whether the source is a view of the tensor at the very place that it is copied to, as ``x[i] += y`` does."""
    edge, target = ctx.graph.edges[ctx.position][1], ctx.graph.edges[ctx.position][0]
    gradient = probe.source
    for _ in range(4):
        if edge is None or gradient is None or probe.base is None:
            return False
        if edge == target:
            return torch.equal((probe.base + gradient).to(torch.float64), probe.sent.to(torch.float64))
        if short_name(ctx.graph.names[edge[0]]) not in _VIEWS:
            return False
        node = ctx.graph.nodes[edge[0]]
        with torch.no_grad():
            found = node(gradient)
        gradient = found if isinstance(found, Tensor) else found[0]
        edge = ctx.graph.edges[edge[0]][0]
    return False


def _region(numbers: Any, shape: Shape) -> Region | None:
    """Find steps along the tensor's dimensions in the numbers that a source got back; ``None`` if it has none."""
    if numbers.size == 0 or not np.isfinite(numbers).all():
        return None
    places = np.rint(np.abs(numbers)).astype(np.intp) - 1
    if places.min() < 0 or places.max() >= prod(shape) or not np.array_equal(np.abs(numbers), places + 1):
        return None
    start = np.unravel_index(int(places[(0,) * places.ndim]), shape) if shape else ()
    key = [slice(int(first), int(first) + 1) for first in start]
    order: list[int | None] = [None] * len(shape)
    expected = np.zeros((1,) * places.ndim, dtype=np.intp)
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for axis, size in enumerate(places.shape):
        if size == 1:
            continue
        line = places[tuple(slice(None) if a == axis else 0 for a in range(places.ndim))]
        coordinates = np.array(np.unravel_index(line, shape))
        moving = [d for d in range(len(shape)) if (coordinates[d] != coordinates[d][0]).any()]
        if len(moving) != 1 or order[moving[0]] is not None:
            return None
        (d,) = moving
        step = int(coordinates[d][1] - coordinates[d][0])
        if step <= 0:
            return None
        order[d] = axis
        key[d] = slice(int(start[d]), int(coordinates[d][-1]) + 1, step)
        expected = expected + (np.arange(size) * step * strides[d]).reshape(
            [size if a == axis else 1 for a in range(places.ndim)]
        )
    if not np.array_equal(np.broadcast_to(expected, places.shape) + places[(0,) * places.ndim], places):
        return None
    return Region(tuple(key), tuple(order))
