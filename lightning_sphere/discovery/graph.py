"""The autograd graph as a list in forward order, and the names of what it contains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sphere.discovery.degrees import Shape
from lightning_sphere.discovery.standins import NodeOutput, Standins, may_read

Edge = tuple[int, int] | None
"""Position of the node that made an input, and which of its outputs; ``None`` for what needs no gradient."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model."""

    name: str
    shape: Shape
    module: str
    """Name of the module that owns it; for a parametrized weight, of the parametrized module."""
    module_type: str
    trainable: bool
    also: tuple[str, ...] = ()
    """Names of other modules that it is tied to."""

    @property
    def output_axis(self) -> int:
        """Axis of the outputs: the second one where the module's type is known to keep its weight that way."""
        return int(self.module_type.startswith(("ConvTranspose", "LazyConvTranspose")) or self.module_type == "Conv1D")


@dataclass
class Graph:
    """All operations between the parameters and the loss, inputs before outputs."""

    nodes: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Name of each operation without its number, such as ``Relu``."""
    edges: list[tuple[Edge, ...]] = field(default_factory=list)
    shapes: list[tuple[Shape, ...]] = field(default_factory=list)
    """Shapes of each node's outputs."""
    leaves: dict[int, int] = field(default_factory=dict)
    """Position of a leaf node -> number of its parameter."""
    roots: list[tuple[int, int]] = field(default_factory=list)
    consumers: list[list[int]] = field(default_factory=list)
    """Positions of the nodes that read a node's outputs."""
    memory: dict[object, object] = field(default_factory=dict)
    """What was found out about nodes, for the next reading."""
    norms: dict[int, str] = field(default_factory=dict)
    """Names for people of the normalizations that the rules found, by position."""

    def readers(self, position: int, limit: int = 64) -> Iterator[int]:
        """Nodes that read a value, nearest first."""
        queue, seen = [position], {position}
        for current in queue:
            for reader in self.consumers[current]:
                if reader not in seen:
                    seen.add(reader)
                    queue.append(reader)
                    yield reader
            if len(seen) > limit:
                return

    def writers(self, position: int, limit: int = 32) -> Iterator[int]:
        """Numbers of the parameters that made the inputs of a node, nearest first."""
        queue, seen = [position], {position}
        for current in queue:
            for edge in reversed(self.edges[current]):
                if edge is not None and edge[0] not in seen:
                    seen.add(edge[0])
                    queue.append(edge[0])
                    own = current == position and "Norm" in self.names[position]  # gain and bias of the reader
                    if edge[0] in self.leaves and not own:
                        yield self.leaves[edge[0]]
            if len(seen) > limit:
                return


def operation_name(node: Any) -> str:
    """Name of a node as PyTorch prints it, such as ``ReluBackward0``."""
    return str(node.name()).rsplit("::", 1)[-1]


@lru_cache(maxsize=4096)
def short_name(name: str) -> str:
    """Name of an operation for people: ``ReluBackward0`` becomes ``Relu``."""
    return re.sub(r"Backward\d*$", "", name)


def signed(number: int) -> int:
    """Undo the unsigned form in which PyTorch saves negative dimensions."""
    return number - (1 << 64) if number >= 1 << 63 else number


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of a model, without those of lazy modules that were never used."""
    return ((name, p) for name, p in model.named_parameters() if not nn.parameter.is_lazy(p))


def parameters_of(model: nn.Module) -> list[Parameter]:
    """Describe the parameters in the order of ``model.named_parameters()``."""
    types = {name: type(module).__name__ for name, module in model.named_modules(remove_duplicate=False)}
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    result = []
    for name, parameter in named_parameters(model):
        owner = re.sub(r"(^|\.)parametrizations\.[^.]+$", "", name.rpartition(".")[0])
        kind = types.get(owner, "").removeprefix("Parametrized")
        also = tuple(without_compiled(other) for other in owners[id(parameter)][1:] if other)
        shape = tuple(parameter.shape)
        result.append(Parameter(name, shape, without_compiled(owner), kind, parameter.requires_grad, also))
    return result


def without_compiled(name: str) -> str:
    """A name without the level that ``torch.compile`` adds."""
    return re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name).lstrip(".")


def read_graph(outputs: Iterable[Tensor], model: nn.Module, standins: Standins | None = None) -> Graph:
    """List the operations behind ``outputs``, without running or unpacking anything.

    Args:
        outputs: Tensors that still have their graph.
        model: The model whose parameters are looked for.
        standins: What to read in place of operations that hide what they do.

    Returns:
        The graph; leaves that are no parameters of the model count as data.
    """
    numbers = {id(parameter): number for number, (_, parameter) in enumerate(named_parameters(model))}
    standins = standins or Standins()
    graph = Graph()
    positions: dict[Any, int] = {}
    roots: list[tuple[Any, int]] = []
    for output in outputs:
        if output.grad_fn is not None:
            roots.append(standins.resolve((output.grad_fn, output.output_nr)))
        elif id(output) in numbers:
            with torch.enable_grad():  # a view of a parameter has the node that stands for it
                roots.append((output.view_as(output).grad_fn, 0))
    stack: list[tuple[Any, list[NodeOutput] | None]] = [(root, None) for root, _ in roots]
    while stack:
        node, following = stack.pop()
        if node in positions:
            continue
        if following is None:  # what it reads comes first
            sources = [*node.next_functions, *may_read(node, model)]
            following = [source if source[0] is None else standins.resolve(source) for source in sources]
            stack.append((node, following))
            stack.extend((source, None) for source, _ in following if source is not None and source not in positions)
            continue
        position = positions[node] = len(graph.nodes)
        graph.nodes.append(node)
        graph.names.append(operation_name(node))
        graph.edges.append(tuple(None if source is None else (positions[source], index) for source, index in following))
        graph.shapes.append(_output_shapes(node))
        graph.consumers.append([])
        for source in dict.fromkeys(edge[0] for edge in graph.edges[-1] if edge is not None):
            graph.consumers[source].append(position)
        variable = getattr(node, "variable", None)
        if variable is not None:
            graph.shapes[-1] = (tuple(variable.shape),)
            number = numbers.get(standins.identity(variable))
            if number is not None:
                graph.leaves[position] = number
    graph.roots = [(positions[node], index) for node, index in roots]
    return graph


def _output_shapes(node: Any) -> tuple[Shape, ...]:
    """Shapes of a node's outputs."""
    return tuple(_shape(metadata) for metadata in getattr(node, "_input_metadata", ()))


def _shape(metadata: Any) -> Shape:
    """Shape of one output; empty where PyTorch does not tell (an output that was never defined, a nested tensor)."""
    try:
        return tuple(int(size) for size in metadata.shape)
    except (RuntimeError, TypeError, ValueError):
        return ()


def tensors_in(outputs: object) -> list[Tensor]:
    """Collect the tensors of a loss, of a sequence or of a mapping, however deep."""
    found: list[Tensor] = []
    stack = [outputs]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            stack.extend(item)
    return found
