"""Walks through the graph that explain a finding: on which way a weight reaches a node, and what meets it there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

from lightning_sphere.discovery.graph import Edge, Graph, Parameter, short_name
from lightning_sphere.discovery.names import CONTRACTIONS, NEAR, only_moves, operation, owner, weight_of
from lightning_sphere.discovery.registry import RULES
from lightning_sphere.discovery.rules_pointwise import not_homogeneous

FAR = 4000
"""A weight is not followed over more nodes than this."""

Step = tuple[int, int]
"""A node, and by which of its inputs a way enters it."""

SUMS = {"Add": (0, 1), "Sub": (0, 1), "Rsub": (0, 1), "Addmm": (0, 1), "Baddbmm": (0, 1), "Linear": (2, 0),
        "Convolution": (2, 0), "Maximum": (0, 1), "Minimum": (0, 1), "Where": (0, 1), "Lerp": (0, 1),
        "Addcmul": (0, 1)}  # fmt: skip
"""Operations that add, with the two inputs that stand for the two summands."""

JOINS = ("Cat", "Stack")

PENALTIES = {"Pow", "Abs", "Sum", "Norm", "LinalgVectorNorm"}
"""Operations that a penalty on a weight begins with."""

BATCH_NORMS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")


@dataclass(frozen=True)
class Reader:
    """What reads a value next: a normalization, a layer, or an operation."""

    name: str
    kind: Literal["norm", "layer", "operation"]


class Walks:
    """Answers about one graph.

    Args:
        graph: The graph, whose normalizations the rules have named.
        parameters: The model's parameters.
    """

    def __init__(self, graph: Graph, parameters: Sequence[Parameter]) -> None:
        self.graph, self.parameters = graph, parameters

    @cached_property
    def _places(self) -> dict[int, int]:
        return {number: position for position, number in self.graph.leaves.items()}

    @cached_property
    def _roots(self) -> set[int]:
        return {position for position, _ in self.graph.roots}

    def name(self, position: int) -> str:
        """The operation of a node."""
        return short_name(self.graph.names[position])

    def way(self, number: int, goal: int) -> list[Step]:
        """The shortest way from a parameter to a node that no normalization cuts; empty if there is none."""
        start = self._places.get(number)
        if start is None:
            return []
        came_from: dict[int, int] = {start: start}
        queue = [start]
        for node in queue:
            if node == goal or len(queue) > FAR:
                break
            if node != start and self._cuts(node, came_from[node]):
                continue
            for reader in self.graph.consumers[node]:
                if reader <= goal and reader not in came_from:
                    came_from[reader] = node
                    queue.append(reader)
        if goal not in came_from:
            return []
        steps: list[Step] = []
        node = goal
        while node != start:
            steps.append((node, self.entrance(node, came_from[node])))
            node = came_from[node]
        return steps[::-1]

    def uses(self, number: int) -> list[int]:
        """The operations that multiply by a parameter; those that move its elements are passed."""
        start = self._places.get(number)
        queue, found = [] if start is None else [start], []
        for node in islice(queue, FAR):
            for reader in self.graph.consumers[node]:
                if self.name(reader) in CONTRACTIONS:
                    found.append(reader)
                elif len(queue) < NEAR and reader not in queue:
                    queue.append(reader)
        return list(dict.fromkeys(found))

    def penalized(self, number: int) -> bool:
        """Whether something that is no layer takes the size of a parameter itself, as a weight penalty does."""
        start = self._places.get(number)
        readers = {self.name(reader) for reader in ([] if start is None else self.graph.consumers[start])}
        return bool(readers & PENALTIES) and len(readers) > 1

    def layers_on(self, way: Sequence[Step]) -> list[str]:
        """Modules that a way passes after the parameter's own product."""
        products = [step for step in way if self.name(step[0]) in CONTRACTIONS]
        weights = [weight_of(self.graph, self.parameters, node) for node, _ in products[1:]]
        return list(dict.fromkeys(weight.module or weight.name for weight in weights if weight is not None))

    def multiplied(self, way: Sequence[Step]) -> bool:
        """Whether a way has passed a product, after which there is an output to speak of."""
        return any(self.name(node) in CONTRACTIONS for node, _ in way)

    def evaluated(self, way: Sequence[Step]) -> int | None:
        """The first batch norm in evaluation mode that a way passes."""
        for node, entered in way:
            if self.name(node) in BATCH_NORMS and entered == 0 and not self.training(node):
                return node
        return None

    def attention_parts(self, number: int) -> str:
        """Of a weight that makes several operands of an attention: which are normalized, and which are not."""
        for use in self.uses(number):
            for node in self.graph.readers(use, FAR):
                if self.name(node).startswith("ScaledDotProduct"):
                    operands = zip(("queries", "keys", "values"), self.graph.edges[node], strict=False)
                    found = {what: self._made_by(use, edge) for what, edge in operands}
                    some = " and ".join(what for what, bare in found.items() if bare is False)
                    rest = " or ".join(what for what, bare in found.items() if bare)
                    return f"{some}, not {rest}" if some and rest else ""
        return ""

    def _made_by(self, use: int, edge: Edge) -> bool | None:
        """Whether an operand comes from a product without a normalization; ``None`` if it does not come from it."""
        normalized = False
        queue = [] if edge is None else [edge[0]]
        for node in islice(queue, NEAR):
            if node == use:
                return not normalized
            normalized = normalized or node in self.graph.norms
            queue += [source[0] for source in self.graph.edges[node] if source is not None and source[0] not in queue]
        return None

    def training(self, position: int) -> bool:
        """Whether a batch norm normalizes with the batch's own statistics."""
        return bool(getattr(self.graph.nodes[position], "_saved_training", True))

    def name_of_affine(self, position: int) -> str:
        """A batch norm in evaluation mode, by the module of its gain."""
        gains = (owner(self.graph, self.parameters, edge) for edge in self.graph.edges[position][1:3])
        gain = next((found for found in gains if found is not None and found.module), None)
        return f"BatchNorm `{gain.module}`" if gain is not None else "BatchNorm"

    # -- sums ----------------------------------------------------------------------------------------------------

    def sums(self, way: Sequence[Step]) -> Iterator[tuple[int, tuple[int, Edge]]]:
        """Sums on a way: how many steps lead through each, its node, and the other summand, ``None`` for a constant."""
        for place, (node, entered) in enumerate(way):
            pair = SUMS.get(self.name(node))
            if pair is None:
                continue
            edges = self.graph.edges[node]
            other = pair[1] if entered == pair[0] else pair[0]
            edge = edges[other] if other < len(edges) else None
            if edge is None and self.name(node) not in ("Add", "Sub", "Rsub", "Addmm") and not self._frozen_bias(node):
                continue  # a convolution without a bias
            multiplies = entered != pair[0] and self.name(node) in ("Addmm", "Baddbmm", "Addcmul", *CONTRACTIONS)
            yield place + multiplies, (node, edge)

    def _frozen_bias(self, position: int) -> bool:
        """Whether a convolution adds a bias that needs no gradient."""
        sizes = getattr(self.graph.nodes[position], "_saved_bias_sym_sizes_opt", None)
        return isinstance(sizes, (tuple, list)) and any(sizes)

    def onward(self, position: int) -> list[Step]:
        """The way from a sum to the next one, if nothing but moving elements lies between."""
        steps: list[Step] = []
        for _ in range(NEAR):
            following = [
                (reader, self.entrance(reader, position))
                for reader in self.graph.consumers[position]
                if only_moves(self.graph, reader) or self.name(reader) in ("Add", "Sub")
            ]
            if len(following) != 1:
                break
            steps += following
            position = following[0][0]
            if not only_moves(self.graph, position):
                return steps
        return []

    def entrance(self, position: int, source: int) -> int:
        """By which of its inputs a node reads another one."""
        return next(i for i, edge in enumerate(self.graph.edges[position]) if edge is not None and edge[0] == source)

    def summands(self, edge: Edge) -> list[str]:
        """What wrote a summand, each for people; through further sums."""
        queue, found = [] if edge is None else [edge[0]], []
        for node in islice(queue, NEAR):
            if node in self.graph.leaves:
                parameter = self.parameters[self.graph.leaves[node]]
                found.append(f"`{parameter.name}`")
            elif node in self.graph.norms:
                norm = self.graph.norms[node]
                found.append(f"the output of {norm}" if "`" in norm else f"the result of {norm}")
            elif (weight := weight_of(self.graph, self.parameters, node)) is not None:
                found.append(f"the output of `{weight.module or weight.name}`")
            else:
                sources = [source for source in self.graph.edges[node] if source is not None]
                if self.name(node) in ("Mul", "Div"):  # of a product with a parameter, the other factor
                    sources = [s for s in sources if owner(self.graph, self.parameters, s) is None] or sources
                queue += [source[0] for source in sources]
        return list(dict.fromkeys(found))

    def is_stream(self, node: int) -> bool:
        """Whether a sum is part of a residual stream: several sums in a row that several layers read."""
        queue, additions, readers = [node], 0, set()
        for current in islice(queue, NEAR * 2):
            if self.name(current) in ("Add", "Sub") and None not in self.graph.edges[current][:2]:
                parts = [owner(self.graph, self.parameters, edge) for edge in self.graph.edges[current][:2]]
                additions += all(part is None or len(part.shape) > 1 for part in parts)
            elif not only_moves(self.graph, current):
                continue
            for source in self.graph.edges[current]:
                if source is not None and source[0] not in queue:
                    queue.append(source[0])
            for reader in self.graph.consumers[current]:
                if reader in self.graph.norms or self.name(reader) in CONTRACTIONS:
                    readers.add(reader)
                elif reader not in queue:
                    queue.append(reader)
            if additions > 1 and len(readers) > 1:
                return True
        return False

    # -- what comes next -----------------------------------------------------------------------------------------

    def reader(self, position: int) -> Reader | None:
        """The nearest normalization, layer or operation that is no sum and reads a node's output, or is that node."""
        if position in self.graph.norms:
            return Reader(self.graph.norms[position], "norm")
        queue = [(reader, position) for reader in self.graph.consumers[position]]
        for node, source in islice(queue, NEAR):
            if node in self.graph.norms:
                return Reader(self.graph.norms[node], "norm")
            if (weight := weight_of(self.graph, self.parameters, node)) is not None:
                return Reader(f"`{weight.module or weight.name}`", "layer")
            if self.stops(node, source):
                return Reader(operation(self.graph, node), "operation")
            queue += [(reader, node) for reader in self.graph.consumers[node] if (reader, node) not in queue]
        return Reader("the loss", "operation") if position in self._roots else None

    def stops(self, position: int, source: int) -> bool:
        """Whether what a node reads from a source must not scale."""
        if self.name(position).startswith("ScaledDotProduct"):
            return self.entrance(position, source) < 2
        rule = RULES.get(self.name(position))
        return rule is None or rule is not_homogeneous or "Softmax" in self.name(position)

    def _cuts(self, position: int, source: int) -> bool:
        """Whether a node normalizes what comes from a source: a layer's output, not a weight or a gain."""
        norm = self.graph.norms.get(position)
        if norm is None or norm.startswith(("weight ", "spectral ")):
            return False
        first = self.graph.edges[position][0]
        return self.name(position) in ("Mul", "Div") or (first is not None and first[0] == source)
