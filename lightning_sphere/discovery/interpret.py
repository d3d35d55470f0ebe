"""Read a graph once: run the rule of every node, from the parameters to the loss."""

from __future__ import annotations

import numpy as np

from lightning_sphere.discovery import (  # noqa: F401  # most are imported for their rules
    blanks,
    rules_attention,
    rules_backward,
    rules_choose,
    rules_complex,
    rules_embedding,
    rules_images,
    rules_index,
    rules_inplace,
    rules_linear,
    rules_norm,
    rules_pointwise,
    rules_products,
    rules_shape,
    rules_write,
)
from lightning_sphere.discovery.degrees import Degree, Shape, Value, constant
from lightning_sphere.discovery.graph import Graph, Parameter, short_name
from lightning_sphere.discovery.registry import RULES, Context
from lightning_sphere.discovery.rules_pointwise import unknown
from lightning_sphere.discovery.system import Cause, Symbol, System


def interpret(
    graph: Graph, parameters: list[Parameter], symbols: list[Symbol], record: bool, free: bool = False
) -> System:
    """Collect the constraints that a graph puts on the exponents of some symbols.

    Args:
        graph: The graph.
        parameters: The model's parameters.
        symbols: What is scaled, each symbol alone.
        record: Whether to record the exponents of whole parameters too.
        free: Whether single numbers may scale by anything.

    Returns:
        The constraints. Rules that fail count as unknown operations: nothing is ever raised from here.
    """
    system = System(symbols, record, free)
    leaves = _leaf_degrees(parameters, symbols)
    values: list[tuple[Value, ...]] = []
    buffers: set[int] = set()  # positions of nodes whose output is not written everywhere yet
    for position, edges in enumerate(graph.edges):
        shapes = graph.shapes[position]
        if position in graph.leaves:
            number = graph.leaves[position]
            degree = leaves.get(number, Degree())
            if record:
                degree = Degree(degree.fields, {number: 1.0})
            shape = parameters[number].shape
            values.append((Value(shape, degree, varies=tuple(size > 1 for size in shape)),))
            continue
        inputs = [None if edge is None else _output(values[edge[0]], edge[1]) for edge in edges]
        name = short_name(graph.names[position])
        if buffers and (moved := blanks.moved_zeros(name, inputs, shapes)) is not None:
            values.append(moved)
            buffers.add(position)
            continue
        zeros = name in blanks.WRITERS or (name == "Mul" and None in edges)  # may be made, or be left
        if all(value is None or value.trivial for value in inputs) and not zeros:
            values.append(tuple(constant(shape) for shape in shapes))
            continue
        context = Context(system, graph, parameters, position, inputs)
        if buffers and any(edge is not None and edge[0] in buffers for edge in edges):
            context.inputs = [
                value if value is None or value.blank is None else blanks.seen_by(context, edge, value)
                for value, edge in zip(inputs, edges, strict=True)
            ]
        function = RULES.get(name, unknown)
        try:
            outputs = function(context)
        except Exception:
            # A graph of a kind never seen must not stop a training run; claiming nothing is always right.
            outputs = unknown(context)
        for index, value in context.settled.items():
            source = edges[index]
            if source is not None:
                values[source[0]] = tuple(value if i == source[1] else v for i, v in enumerate(values[source[0]]))
        result = (outputs,) if isinstance(outputs, Value) else tuple(outputs)
        if any(value.blank is not None for value in result):
            buffers.add(position)
        values.append(result + tuple(constant(shape) for shape in shapes[len(result) :]))
    for position, index in graph.roots:
        root = _output(values[position], index)
        cause = Cause("loss", position, "loss")
        for degree in (root.degree, *(offset.degree for offset in root.offsets)):
            system.zero(degree, cause)
    system.close()
    return system


def _output(values: tuple[Value, ...], index: int) -> Value:
    return values[index] if index < len(values) else constant(())


def _leaf_degrees(parameters: list[Parameter], symbols: list[Symbol]) -> dict[int, Degree]:
    """The degree of each parameter: every row scales with itself."""
    fields: dict[int, dict[int, tuple[tuple[float, np.ndarray[Shape, np.dtype[np.intp]]], ...]]] = {}
    for number, symbol in enumerate(symbols):
        for parameter, axis in symbol.axes:
            ndim = len(parameters[parameter].shape)
            if axis is None:
                rows = np.ones((1,) * ndim, dtype=np.intp)
            else:
                shape = [1] * ndim
                shape[axis] = symbol.rows
                rows = np.arange(1, symbol.rows + 1, dtype=np.intp).reshape(shape)
            fields.setdefault(parameter, {})[number] = ((1.0, rows),)
    return {parameter: Degree(found) for parameter, found in fields.items()}
