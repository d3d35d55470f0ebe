"""What keeps a norm from dividing by zero: which numbers are small enough to be that, and how much they weigh.

Autograd does not keep a number that was added. It is the difference of two values, the sum and what it was added to,
of which one element each is read or computed from what the graph saved. The element is that with the smallest sum:
there the difference is known best, and the number weighs most.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, prod

import numpy as np
import torch
from torch import Tensor

from lightning_sphere.discovery.elements import Elements, sampled
from lightning_sphere.discovery.graph import Graph, short_name
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.values import LARGEST, Values, whole

BOUND = 1e-2
"""Largest number that is taken for the ``eps`` of a norm: what is added to a statistic, or bounds it from below."""

SMALL = 1 << 14
"""Sums of at most so many elements are compared everywhere, if they can be read; of others, samples are."""

ROUNDING = 16
"""Differences of so many units in the last place are not seen."""


@dataclass(frozen=True)
class Stabilizer:
    """A number added to a value, or a bound from below."""

    small: bool
    """Whether it can be overlooked."""
    share: float | None = None
    """Largest share that it has in the sum; ``None`` if it is not known."""


def added_number(graph: Graph, position: int, statistic: bool) -> Stabilizer:
    """Judge the number that a sum's node adds to the only tensor that the graph knows of.

    Args:
        graph: The graph.
        position: The node.
        statistic: Whether the tensor is a reduction. Where a hook hides the numbers, what is added to a reduction is
            overlooked: nearly all norms are written so.

    Returns:
        What is known of it.
    """
    key = ("added number", position)
    found = graph.memory.get(key)
    if not isinstance(found, Stabilizer):
        values = Values(graph)
        try:
            found = _added(values, position)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            found = None  # an operation of a kind never seen: its number is not known
        found = found or Stabilizer(values.hidden and statistic)
        graph.memory[key] = found
    return found


@dataclass(frozen=True)
class Summand:
    """Data that is added to a value, as far as samples tell."""

    zero: bool
    """Whether it is zero, as the first term of Python's ``sum`` is."""


def one_number(graph: Graph, position: int) -> Summand | None:
    """Judge the data that a sum's node adds: whether it is a single number.

    Args:
        graph: The graph.
        position: The node.

    Returns:
        What the number is; ``None`` if the data vary, or can not be read.
    """
    key = ("one number", position)
    if key not in graph.memory:
        graph.memory[key] = None
        with suppress(RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            graph.memory[key] = _one_number(Elements(graph), position)
    found = graph.memory[key]
    return found if isinstance(found, Summand) else None


def _one_number(values: Elements, position: int) -> Summand | None:
    graph = values.graph
    number, edge = next((n, e) for n, e in enumerate(graph.edges[position]) if e is not None)
    if values.shape_of(edge) != graph.shapes[position][0]:
        return None
    factor, found, scale, unseen = _factor(graph, position, number), [], 0.0, 0.0
    if prod(graph.shapes[position][0]) <= SMALL:
        everywhere, terms = values.later((position, 0)), values.part(edge, whole(graph.shapes[position][0]))
        if everywhere is not None and terms is not None:
            difference = everywhere.double() - factor * terms.double()
            if float(difference.max() - difference.min()) > 8 * max(3e-5, _precision(everywhere)) * float(
                everywhere.abs().max() + terms.abs().max()
            ):
                return None
    for index in sampled(graph.shapes[position][0]):
        total = values.element((position, 0), index)
        term = None if total is None else values.part(edge, index)
        if total is None or term is None:
            return None
        found.append(float(total) - factor * float(term))
        scale = max(scale, abs(float(total)), abs(float(term)))
        unseen = max(unseen, 3e-5, 4 * _precision(total), 4 * _precision(term))
        if not isfinite(found[-1]) or max(found) - min(found) > unseen * scale:
            return None
    return Summand(max(map(abs, found)) <= unseen * scale) if found and scale else None


def _factor(graph: Graph, position: int, number: int) -> float:
    """What an operand of a sum is multiplied by."""
    name, alpha = short_name(graph.names[position]), float(getattr(graph.nodes[position], "_saved_alpha", 1))
    if name == "Rsub":
        return -alpha
    return alpha * (-1 if name == "Sub" else 1) if number == 1 else 1.0


def _added(values: Values, position: int) -> Stabilizer | None:
    graph = values.graph
    number, edge = next((n, e) for n, e in enumerate(graph.edges[position]) if e is not None)
    total = values.later((position, 0))
    if total is None or not 0 < total.numel() <= LARGEST:
        return None
    factor, found = _factor(graph, position, number), []
    sizes = total.abs().flatten()
    for place in dict.fromkeys((int(sizes.argmin()), int(sizes.argmax()))):  # data could be small at one of them
        where = np.unravel_index(place, tuple(total.shape)) if total.ndim else ()
        term = values.part(edge, _element(where, graph.shapes[edge[0]][edge[1]]))
        if term is None:
            return None
        result, part = float(total.flatten()[place]), factor * float(term)
        unseen = ROUNDING * max(_precision(total), _precision(term)) * max(abs(result), abs(part))
        difference = abs(result - part)
        if not isfinite(difference):
            return None
        share = 0.0 if difference <= unseen or not result else min(1.0, difference / abs(result))
        found.append(Stabilizer(difference <= BOUND + unseen, share))
    return Stabilizer(all(one.small for one in found), found[0].share)


def _element(where: tuple[np.intp, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The element of an operand that belongs to one of the result."""
    own = where[len(where) - len(shape) :]
    return tuple(slice(0, 1) if size == 1 else slice(int(i), int(i) + 1) for i, size in zip(own, shape, strict=True))


def _precision(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def lower_bound(graph: Graph, position: int, bound: float, operand: str = "self") -> Stabilizer:
    """Judge a bound that keeps a statistic away from zero.

    Args:
        graph: The graph.
        position: Node of the clamping.
        bound: The bound.
        operand: Name under which the node saved the statistic.

    Returns:
        What is known of it; bounds that hold for values far below them do more than to avoid a division by zero.
    """
    if not 0 < bound <= BOUND:
        return Stabilizer(False)
    clamped = saved_tensor(graph.nodes[position], operand)
    if clamped is None or not 0 < clamped.numel() <= LARGEST:
        return Stabilizer(True)
    lowest = float(clamped.min())
    return Stabilizer(lowest > -bound, float(lowest < bound))


def eps_share(graph: Graph, position: int, centred: bool) -> float | None:
    """The largest share of the ``eps`` in what a norm that is one operation divides by.

    Args:
        graph: The graph.
        position: The norm; one that does not save its ``eps`` must normalize the last dimensions of its input.
        centred: Whether it subtracts the mean.

    Returns:
        ``eps / (variance + eps)`` where that is largest; ``None`` if it is not known.
    """
    key = ("share of eps", position)
    if key not in graph.memory:
        graph.memory[key] = _eps_share(graph.nodes[position], centred)
    share = graph.memory[key]
    return share if isinstance(share, float) else None


def _eps_share(node: object, centred: bool) -> float | None:
    inverse = saved_tensor(node, "result2" if centred else "result1")
    if inverse is None or not inverse.numel() or not inverse.dtype.is_floating_point:
        return None
    eps = getattr(node, "_saved_eps", getattr(node, "_saved_epsilon", None))
    place = int(inverse.argmax())
    square = float(inverse.flatten()[place]) ** 2
    if eps is not None:
        return min(1.0, float(eps) * square)
    inputs = saved_tensor(node, "input")
    if inputs is None or not inputs.numel() or inputs.numel() % inverse.numel():
        return None
    row = inputs.reshape(inverse.numel(), -1)[place].to(torch.float64)
    variance = float(row.var(correction=0) if centred else row.square().mean())
    share = 1 - variance * square
    return min(1.0, share) if share > ROUNDING * _precision(inverse) else 0.0
