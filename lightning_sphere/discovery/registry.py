"""The table of rules, one function per kind of operation, and what a rule can ask and demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_sphere.discovery.degrees import Degree, Shape, Value, constant
from lightning_sphere.discovery.graph import Graph, Parameter, short_name, signed
from lightning_sphere.discovery.stabilizers import added_number
from lightning_sphere.discovery.system import Cause, System

Rule = Callable[["Context"], "Value | Sequence[Value]"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for autograd nodes, by their names without ``Backward`` and number."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@dataclass
class Context:
    """One node of the graph while its rule runs."""

    system: System
    graph: Graph
    parameters: list[Parameter]
    position: int
    inputs: list[Value | None]
    """The inputs; ``None`` for numbers and data."""
    settled: dict[int, Value] = field(default_factory=dict)
    """Inputs whose offsets were found to scale as they do: other readers need not ask again."""

    @property
    def node(self) -> Any:
        """The autograd node."""
        return self.graph.nodes[self.position]

    @property
    def name(self) -> str:
        """The operation's name, such as ``Relu``."""
        return short_name(self.graph.names[self.position])

    @property
    def shape(self) -> Shape:
        """Shape of the (first) output."""
        return self.graph.shapes[self.position][0]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of all outputs."""
        return self.graph.shapes[self.position]

    def saved(self, name: str, default: Any = None) -> Any:
        """A saved argument that is no tensor."""
        return getattr(self.node, f"_saved_{name}", default)

    def dims(self, name: str, ndim: int) -> tuple[int, ...]:
        """A saved argument that holds dimensions, as non-negative numbers; all dimensions if it holds none."""
        value = self.saved(name)
        if value is None:
            return tuple(range(ndim))
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if not values:
            return tuple(range(ndim))
        return tuple(signed(int(dim)) % ndim if ndim else 0 for dim in values)

    def cause(self, kind: str = "operation", *sides: Degree) -> Cause:
        """Describe this node as the reason of a constraint, for a sum with the degrees of its two sides."""
        return Cause(kind, self.position, self.name, tuple(side.powers for side in sides))

    def source(self, index: int = 0) -> Value:
        """An input that must be there."""
        value = self.inputs[index]
        return constant(self.shape) if value is None else value

    def leaf(self, index: int) -> Parameter | None:
        """The parameter that an input is, looking through casts, repetitions and reshapes."""
        edge = self.graph.edges[self.position][index] if index < len(self.graph.edges[self.position]) else None
        while edge is not None:
            if edge[0] in self.graph.leaves:
                return self.parameters[self.graph.leaves[edge[0]]]
            if short_name(self.graph.names[edge[0]]) not in _TRANSPARENT:
                return None
            edge = self.graph.edges[edge[0]][0]
        return None

    # -- steps that many rules share -----------------------------------------------------------------------------

    def settle(self, value: Value, forgive: bool = False) -> Value:
        """Demand that everything added to a value scales as the value does.

        Args:
            value: The value.
            forgive: Whether a small number may be overlooked: the ``eps`` of a norm.

        Returns:
            The value without offsets.
        """
        if not value.offsets:
            return value
        degree, forgiven = value.degree, False
        for offset in value.offsets:
            if forgive and offset.stabilizer is not None:
                found = added_number(self.graph, offset.stabilizer, value.statistic)
                if found.small:
                    forgiven = True
                    self.system.note_share(degree, found.share)
                    continue
            kind = "added"
            if offset.constant:
                kind = "statistic" if forgive and value.statistic else "constant"
            degree = self.system.equal(degree, offset.degree, self.cause(kind, degree, offset.degree))
        result = replace(value, degree=degree, offsets=())
        if not forgiven:
            self.settled.update((index, result) for index, given in enumerate(self.inputs) if given is value)
        return result

    def zero(self, value: Value | None, kind: str = "operation") -> None:
        """Demand that a value does not scale at all."""
        if value is None:
            return
        self.system.zero(value.degree, self.cause(kind))
        for offset in value.offsets:
            self.system.zero(offset.degree, self.cause(kind))

    def uniform(self, value: Value, axes: Sequence[int]) -> Value:
        """Demand that a value and what was added to it each scale equally along ``axes``."""
        if not value.degree.fields and not value.offsets:
            return value
        cause = self.cause("mixed")
        join = self.system.single if all(size == 1 for size in self.shape) else self.system.uniform
        return replace(
            value,
            degree=join(value.degree, axes, cause),
            offsets=tuple(o.rewritten(join(o.degree, axes, cause), o.varies) for o in value.offsets),
        )

    def passed(self, value: Value, label: str) -> Value:
        """Note for people that an operation was passed."""
        return value if label in value.via else replace(value, via=(*value.via, label))


_TRANSPARENT = {
    "ToCopy",
    "Repeat",
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "Unsqueeze",
    "Expand",
    "Clone",
    "Alias",
    "Add",
}
