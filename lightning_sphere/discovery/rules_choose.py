"""Rules for operations that take one of two values at each element."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_sphere.discovery.degrees import Value
from lightning_sphere.discovery.elements import filler_of_sum
from lightning_sphere.discovery.graph import Graph, short_name
from lightning_sphere.discovery.known import RESHAPES
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_pointwise import settled_operands
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.stabilizers import lower_bound
from lightning_sphere.discovery.values import LARGEST, Values


@rule("Maximum", "Minimum", "Where", "Lerp", "Hypot", "Fmax", "Fmin")
def choose(ctx: Context) -> Value:
    """One of two values, or between them: both must scale equally."""
    if ctx.name == "Lerp" and len(ctx.inputs) > 2:
        ctx.zero(ctx.inputs[2])
    if ctx.name == "Maximum" and (bounded := _bounded(ctx)) is not None:
        return bounded
    if ctx.name == "Where" and (alone := _else_zero(ctx)) is not None:
        return alone
    settled = settled_operands(ctx, 2)
    cause = ctx.cause("added", settled[0].degree, settled[1].degree)
    degree = ctx.system.equal(settled[0].degree, settled[1].degree, cause)
    return Value(ctx.shape, degree, varies=(True,) * len(ctx.shape), via=settled[0].via)


def _else_zero(ctx: Context) -> Value | None:
    """One of the values, where the numbers show that the other one is zero, or infinite."""
    condition = saved_tensor(ctx.node, "condition")
    value = next((v for v in ctx.inputs[:2] if v is not None), None)
    if condition is None or value is None or None not in ctx.inputs[:2]:
        return None
    unused = condition if ctx.inputs[0] is None else condition.logical_not()
    if not scales_at(ctx, unused):
        return None
    return replace(ctx.settle(value.broadcast(ctx.shape)), varies=(True,) * len(ctx.shape))


def scales_at(ctx: Context, where: Tensor) -> bool:
    """Whether the numbers show nothing but zeros and infinities at some elements of the output."""
    numbers = Values(ctx.graph).later((ctx.position, 0))
    readers = _readers(ctx.graph, ctx.position)
    if numbers is None:
        return readers == {"Sum"} and filler_of_sum(ctx.graph, ctx.position, where) == 0
    if not 0 < numbers.numel() <= LARGEST:
        return False
    finite = numbers.isfinite() if readers != {"Amax"} else numbers > NEVER_LARGEST
    return not bool((numbers.ne(0) & finite & where).any())


def _readers(graph: Graph, position: int) -> set[str]:
    """Names of the operations that read a value, of whatever shape."""
    names: set[str] = set()
    for reader in graph.consumers[position]:
        name = short_name(graph.names[reader])
        names |= _readers(graph, reader) if name in RESHAPES else {name}
    return names


NEVER_LARGEST = -1e4
"""Numbers below are filled in where a maximum must not be taken."""


def _bounded(ctx: Context) -> Value | None:
    """A statistic that a small number bounds from below."""
    for value, operand in zip(ctx.inputs[:2], ("other", "self"), strict=True):
        data = saved_tensor(ctx.node, operand)
        if value is not None and value.statistic and data is not None and data.numel() == 1:
            bound = lower_bound(ctx.graph, ctx.position, float(data), "self" if operand == "other" else "other")
            ctx.system.note_share(value.degree, bound.share)
            if bound.small and value is not None:
                return replace(ctx.settle(value.broadcast(ctx.shape)), shape=ctx.shape)
    return None
