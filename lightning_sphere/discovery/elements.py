"""Single elements of values that are large, or that only sums and convolutions read."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from lightning_sphere.discovery.graph import short_name
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.values import Index, Values, broadcast

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


def sampled(shape: tuple[int, ...]) -> list[Index]:
    """Elements that are spread over a tensor."""
    size = prod(shape)
    if size == 0:
        return []
    step = max(1, int(size * 0.6180339887))  # the golden section spreads them over all dimensions
    places = dict.fromkeys([0, size - 1, *((i * step) % size for i in range(1, SAMPLES - 1))])
    found = [np.unravel_index(place, shape) if shape else () for place in places]
    return [tuple(slice(int(i), int(i) + 1) for i in element) for element in found]
