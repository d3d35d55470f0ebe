"""The entry point: from a loss to its scale-invariant groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from lightning_sphere.discovery.compiled import run_uncompiled, standins_for
from lightning_sphere.discovery.graph import Graph, Parameter, parameters_of, read_graph, tensors_in
from lightning_sphere.discovery.plain import layer_names, plain_layer
from lightning_sphere.discovery.reasons import Reasons
from lightning_sphere.discovery.result import Discovery
from lightning_sphere.discovery.saved import freed
from lightning_sphere.discovery.solve import Finding, solve
from lightning_sphere.discovery.standins import Standins
from lightning_sphere.groups import GroupPart, Kind, ScaleGroup

Outputs = Tensor | Sequence[object] | Mapping[str, object]


def discover(loss: Outputs | Callable[[], Outputs], model: nn.Module, standins: Standins | None = None) -> Discovery:
    """Find which weights of a model are scale-invariant, from the graph of its loss.

    Call it in training mode and before the backward pass, which frees the graph. Nothing is run: the operations that
    made the loss are read, with the rules by which each of them carries a scaling along. What is not understood counts
    as not invariant.

    The graph of a model compiled by ``torch.compile`` can hide its operations. Give a function that computes the loss
    instead: it is run once, with everything compiled run eagerly; buffers and PyTorch's random numbers are put back
    afterwards.

    Args:
        loss: The loss; or the model's outputs (a tensor, or tensors in sequences and mappings), each of which is then
            taken to matter with its scale; or a function without arguments that computes either.
        model: The model. Of its parameters that are not behind the loss the reason is "not part of this loss".
        standins: What to read in place of operations that hide what they do; for the package's own use.

    Returns:
        The groups and the reasons; ``print()`` shows them.

    Raises:
        TypeError: If the model is no ``torch.nn.Module``, or the loss holds no tensor.
        ValueError: If the loss has no graph: it was computed without gradients, or detached, or a backward pass has
            freed it. What a given function raises is passed on.

    Example:
        >>> loss = torch.nn.functional.cross_entropy(model(images), labels)
        >>> discover(loss, model).groups[0].reason
        'invariant per filter: BatchNorm `bn1` follows'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model takes a torch.nn.Module, got {model!r}")
    way = "graph"
    if callable(loss) and not isinstance(loss, Tensor):
        loss, way = run_uncompiled(loss, model), "uncompiled"
    given = tensors_in(loss)
    if not given:
        raise TypeError(f"loss takes a tensor, tensors in sequences or mappings, or a function, got {loss!r}")
    tensors = [tensor for tensor in given if tensor.requires_grad]
    if not tensors:
        raise ValueError("the loss has no graph: call discover() before backward, on a loss that needs gradients")
    parameters = parameters_of(model)
    standins = standins or standins_for(model)
    graph = read_graph(tensors, model, standins)
    if freed(reversed(graph.nodes)):
        raise ValueError("the loss's graph was freed by a backward pass: call discover() before it")
    if standins.looked_through:
        way = "traced"
    solution = solve(graph, parameters)
    names, reasons = layer_names(parameters), Reasons(graph, parameters, solution)
    layers: list[ScaleGroup] = []
    frozen: list[ScaleGroup] = []
    for number, parameter in enumerate(parameters):
        if len(parameter.shape) < 2:
            continue
        layer = _layer(number, names[number], solution.findings.get(number), parameters, reasons)
        (layers if parameter.trainable else frozen).append(layer)
    return Discovery(
        layers=tuple(layers),
        joint_sets=tuple(tuple(parameters[number].name for number in members) for members in solution.joint_sets),
        joint_facts=solution.joint_facts,
        frozen=tuple(frozen),
        order=tuple(parameter.name for parameter in parameters),
        reached=frozenset(parameters[number].name for number in graph.leaves.values()),
        way=way,
        hidden=_hidden(graph, parameters, solution.findings),
    )


def _hidden(graph: Graph, parameters: list[Parameter], findings: Mapping[int, Finding]) -> frozenset[str]:
    """Weights that unknown operations read, or that operations written in Python may read without telling."""
    reached = set(graph.leaves.values())
    secretive = any(hasattr(node, "_forward_cls") for node in graph.nodes)
    names = set()
    for number, parameter in enumerate(parameters):
        finding = findings.get(number)
        unknown = finding is not None and finding.cause is not None and finding.cause.kind == "unknown"
        unseen = secretive and number not in reached
        if len(parameter.shape) > 1 and parameter.trainable and (unseen or unknown):
            names.add(parameter.name)
    return frozenset(names)


def _layer(
    number: int, name: str, finding: Finding | None, parameters: list[Parameter], reasons: Reasons
) -> ScaleGroup:
    """Describe one parameter."""
    parameter = parameters[number]
    if finding is None or finding.axis is None:
        return plain_layer(parameter, name, reasons.reason(number, "none"))
    rows = parameter.shape[finding.axis]
    kind: Kind = "row" if finding.blocks == rows else "whole" if finding.blocks == 1 else "group"
    parts = [GroupPart(parameter.name, finding.axis)]
    if finding.partner is not None:
        parts.append(GroupPart(parameters[finding.partner].name, 0))
    return ScaleGroup(
        name,
        tuple(parts),
        finding.blocks,
        kind,
        parameter.shape,
        finding.members,
        reasons.norm(number),
        reasons.reason(number, kind),
        finding.eps_share,
    )
