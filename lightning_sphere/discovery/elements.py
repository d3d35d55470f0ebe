"""Single elements of values that are large, or that only sums and convolutions read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod

import numpy as np
import torch
from torch import Tensor

from lightning_sphere.discovery.graph import Edge, Graph, short_name, signed
from lightning_sphere.discovery.known import RESHAPES
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.values import Index, Values, broadcast, whole

SAMPLES = 16


class Elements(Values):
    """Single elements of values."""

    def element(self, edge: tuple[int, int], index: Index, depth: int = 4) -> Tensor | None:
        """An element, also where only the sum is known that it is a summand of.

        Args:
            edge: The value.
            index: Which element.
            depth: How many sums may be looked through.
        """
        value = self.part(edge, index)
        if value is None and (whole := self.later(edge)) is not None:
            value = whole[index]
        if value is not None or depth == 0:
            return value
        for reader in self.graph.consumers[edge[0]]:
            edges, name = self.graph.edges[reader], short_name(self.graph.names[reader])
            if name in ("Slice", "Cat"):
                moved = (self._in_slice if name == "Slice" else self._in_cat)(reader, edge, index)
                if moved is not None and (found := self.element((reader, 0), moved, depth - 1)) is not None:
                    return found
                continue
            if len(edges) != 2 or self.shape_of(edge) != self.shape_of((reader, 0)):
                continue
            if name in ("Mul", "Div") and edges == (edge, None):
                data, product = (
                    saved_tensor(self.graph.nodes[reader], "other"),
                    self.element((reader, 0), index, depth - 1),
                )
                if data is None or product is None:
                    continue
                given = data[broadcast(index, tuple(data.shape))]
                return torch.div(product, given) if name == "Mul" else torch.mul(product, given)
            if name not in ("Add", "Sub"):
                continue
            first = edges[0] == edge
            other = edges[1] if first else edges[0]
            total = self.element((reader, 0), index, depth - 1)
            if other is None or total is None:
                continue
            rest = self.part(other, broadcast(index, self.shape_of(other)))
            factor = float(self.graph.nodes[reader]._saved_alpha) * (1 if name == "Add" else -1)
            if rest is not None:
                return total - factor * rest if first else (total - rest) / factor
        return None

    def _in_slice(self, position: int, _: Edge, index: Index) -> Index | None:
        """Where an element is in a slice of the value; ``None`` if it is not in there."""
        node, shape = self.graph.nodes[position], self.graph.shapes[position][0]
        axis = signed(int(node._saved_dim)) % len(shape)
        start, step = signed(int(node._saved_start)), signed(int(node._saved_step))
        place = index[axis].start - start
        if start < 0 or step != 1 or not 0 <= place < shape[axis]:
            return None
        return (*index[:axis], slice(place, place + 1), *index[axis + 1 :])

    def _in_cat(self, position: int, edge: Edge, index: Index) -> Index | None:
        """Where an element is among what the value is concatenated with."""
        edges, shape = self.graph.edges[position], self.graph.shapes[position][0]
        axis = signed(int(self.graph.nodes[position]._saved_dim)) % len(shape)
        before = edges[: edges.index(edge)]
        if edges.count(edge) > 1 or None in before:
            return None
        start = index[axis].start + sum(self.shape_of(e)[axis] for e in before if e is not None)
        return (*index[:axis], slice(start, start + 1), *index[axis + 1 :])


def filler(graph: Graph, edge: tuple[int, int], where: Tensor) -> float | None:
    """The number that is at some places of a value.

    Args:
        graph: The graph.
        edge: The value.
        where: The places, of a shape that can be broadcast to the value's.

    Returns:
        The number, as far as samples tell; ``None`` if the value can not be read, or holds several there.
    """
    return _remembered(graph, ("filler", edge), lambda: _filler(Elements(graph), edge, where))


def _remembered(graph: Graph, key: object, find: Callable[[], float | None]) -> float | None:
    """A number that is looked for once; ``None`` also where the search fails."""
    if key not in graph.memory:
        graph.memory[key] = None
        with suppress(RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            graph.memory[key] = find()
    found = graph.memory[key]
    return found if isinstance(found, float) else None


def _filler(values: Elements, edge: tuple[int, int], where: Tensor) -> float | None:
    places = where.expand(values.shape_of(edge)).nonzero()
    found, scale = [], 0.0
    for place in places[:: max(1, len(places) // SAMPLES)][:SAMPLES].tolist():
        number = values.element(edge, tuple(slice(i, i + 1) for i in place))
        if number is None:
            return None
        found.append(float(number))
        scale = max(scale, *(abs(n) for n in found), 1.0)
    if not found or max(found) - min(found) > 1e-4 * scale:
        return None
    return 0.0 if max(map(abs, found)) <= 1e-4 else found[0]


def filler_of_sum(graph: Graph, position: int, where: Tensor) -> float | None:
    """The number that an operation fills in at some places of its input, where only a sum of the result is known.

    Args:
        graph: The graph.
        position: The operation.
        where: The places, of a shape that can be broadcast to the result's.

    Returns:
        The number, as the first sum that it is in tells; ``None`` if that or the input can not be read.
    """
    return _remembered(graph, ("filler of a sum", position), lambda: _filler_of_sum(Elements(graph), position, where))


def _filler_of_sum(values: Elements, position: int, where: Tensor) -> float | None:
    graph, shape = values.graph, values.graph.shapes[position][0]
    source = next(edge for edge in graph.edges[position] if edge is not None)
    given = values.part(source, whole(values.shape_of(source))) if prod(shape) <= LARGEST_SUMMED else None
    reader = position
    while short_name(graph.names[reader]) != "Sum":
        reader = graph.consumers[reader][0]
        if short_name(graph.names[reader]) not in (*RESHAPES, "Sum"):
            return None
    if given is None:
        return None
    before = graph.shapes[next(edge[0] for edge in graph.edges[reader] if edge is not None)][0]
    node = graph.nodes[reader]
    dims = [signed(int(dim)) % len(before) for dim in getattr(node, "_saved_dim", None) or range(len(before))]
    filled = where.expand(shape).reshape(before)
    counts = filled.double().sum(dims)
    sums = given.expand(shape).reshape(before).double().masked_fill(filled, 0).sum(dims)
    found = []
    for place in counts.nonzero()[:4].tolist():
        total = values.element((reader, 0), _kept_dims(place, dims, len(graph.shapes[reader][0]) == len(before)))
        if total is None:
            return None
        found.append(float((total.double() - sums[tuple(place)]) / counts[tuple(place)]))
    return None if not found else 0.0 if max(map(abs, found)) <= 1e-4 else found[0]


LARGEST_SUMMED = 1 << 18


def _kept_dims(place: list[int], dims: Sequence[int], kept: bool) -> Index:
    """The index of an element of a sum, whose dimensions may have been kept."""
    for axis in sorted(dims) if kept else ():
        place.insert(axis, 0)
    return tuple(slice(i, i + 1) for i in place)


def sampled(shape: tuple[int, ...]) -> list[Index]:
    """Elements that are spread over a tensor."""
    size = prod(shape)
    if size == 0:
        return []
    step = max(1, int(size * 0.6180339887))  # the golden section spreads them over all dimensions
    places = dict.fromkeys([0, size - 1, *((i * step) % size for i in range(1, SAMPLES - 1))])
    found = [np.unravel_index(place, shape) if shape else () for place in places]
    return [tuple(slice(int(i), int(i) + 1) for i in element) for element in found]
