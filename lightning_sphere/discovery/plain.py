"""Layers of which no invariance is known: how they are named and cut, and a discovery that claims nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from lightning_sphere.discovery.graph import Parameter, parameters_of
from lightning_sphere.discovery.result import Discovery
from lightning_sphere.groups import GroupPart, ScaleGroup


def layer_names(parameters: Sequence[Parameter]) -> list[str]:
    """The name for people of each parameter: its module's if it is the one ``weight`` in it, else its own."""
    weights = Counter(parameter.module for parameter in parameters if len(parameter.shape) > 1)
    return [
        parameter.module
        if parameter.module and weights[parameter.module] == 1 and parameter.name.endswith("weight")
        else parameter.name
        for parameter in parameters
    ]


def plain_layer(parameter: Parameter, name: str, reason: str) -> ScaleGroup:
    """A layer that is not invariant: embeddings are measured whole, everything else per row of its output axis."""
    axis, blocks = parameter.output_axis, parameter.shape[parameter.output_axis]
    if parameter.module_type.startswith("Embedding"):
        axis, blocks = 0, 1
    return ScaleGroup(name, (GroupPart(parameter.name, axis),), blocks, "none", parameter.shape, reason=reason)


def undiscovered(model: nn.Module) -> Discovery:
    """What is known of a model whose loss was never seen: every weight, none of them claimed to be invariant."""
    parameters = parameters_of(model)
    weights = [
        (parameter, plain_layer(parameter, name, "unknown: no loss was seen before the optimizer's first step"))
        for parameter, name in zip(parameters, layer_names(parameters), strict=True)
        if len(parameter.shape) > 1
    ]
    return Discovery(
        layers=tuple(layer for parameter, layer in weights if parameter.trainable),
        frozen=tuple(layer for parameter, layer in weights if not parameter.trainable),
        order=tuple(parameter.name for parameter in parameters),
    )
