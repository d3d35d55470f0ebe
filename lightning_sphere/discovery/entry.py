"""The entry point: from a loss to its scale-invariant groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lightning_sphere.discovery.graph import Graph, Parameter, parameters_of, read_graph, tensors_in
from lightning_sphere.discovery.plain import layer_names, plain_layer
from lightning_sphere.discovery.reasons import norm_of, reason_for
from lightning_sphere.discovery.result import Discovery
from lightning_sphere.discovery.solve import Finding, solve
from lightning_sphere.groups import GroupPart, Kind, ScaleGroup


def discover(loss: Tensor | Sequence[object] | Mapping[str, object], model: nn.Module) -> Discovery:
    """Find which weights of a model are scale-invariant, from the graph of its loss.

    Call it before the backward pass, which frees the graph. Nothing is run: the operations that made the loss are
    read, with the rules by which each of them carries a scaling along. What is not understood counts as not invariant.

    Args:
        loss: The loss, or the model's outputs (tensors in sequences and mappings), none of which may scale.
        model: The model.

    Returns:
        The groups and the reasons.

    Raises:
        ValueError: If the loss has no graph: it was computed without gradients, or detached.

    Example:
        >>> loss = torch.nn.functional.cross_entropy(model(images), labels)
        >>> discover(loss, model).groups[0].reason
        'invariant per filter: BatchNorm `bn1` follows'
    """
    tensors = [tensor for tensor in tensors_in(loss) if tensor.requires_grad]
    if not tensors:
        raise ValueError("the loss has no graph: call discover() before backward, on a loss that needs gradients")
    parameters = parameters_of(model)
    graph = read_graph(tensors, model)
    solution = solve(graph, parameters)
    names = layer_names(parameters)
    layers: list[ScaleGroup] = []
    frozen: list[ScaleGroup] = []
    for number, parameter in enumerate(parameters):
        if len(parameter.shape) < 2:
            continue
        layer = _layer(parameter, names[number], solution.findings.get(number), graph, parameters)
        (layers if parameter.trainable else frozen).append(layer)
    return Discovery(
        layers=tuple(layers),
        joint_sets=tuple(tuple(parameters[number].name for number in members) for members in solution.joint_sets),
        frozen=tuple(frozen),
        order=tuple(parameter.name for parameter in parameters),
        reached=frozenset(parameters[number].name for number in graph.leaves.values()),
    )


def _layer(
    parameter: Parameter, name: str, finding: Finding | None, graph: Graph, parameters: list[Parameter]
) -> ScaleGroup:
    """Describe one parameter."""
    if finding is None or finding.axis is None:
        return plain_layer(parameter, name, reason_for(parameter, "none", finding, graph, parameters))
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
        norm_of(finding),
        reason_for(parameter, kind, finding, graph, parameters),
    )
