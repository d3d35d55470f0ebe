"""What is taken to be invariant: what discovery found, or in its place what the user gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from lightning_sphere.discovery import Discovery
from lightning_sphere.discovery.graph import parameters_of
from lightning_sphere.discovery.plain import layer_names
from lightning_sphere.given import Groups, fitted
from lightning_sphere.groups import ScaleGroup

NOT_GIVEN = "not among the groups given"


@dataclass(frozen=True)
class Claims:
    """The layers of a model as they are taken."""

    weights: Discovery
    """Of every weight, whether it is invariant by itself."""
    joint: tuple[ScaleGroup, ...]
    """Sets of weights that are invariant together."""

    @property
    def order(self) -> list[str]:
        """Names of all layers in the order to show: the weights in the model's order, then the joint sets."""
        place = {name: index for index, name in enumerate(self.weights.order)}
        weights = sorted((*self.weights.layers, *self.weights.frozen), key=lambda layer: place[layer.parameter])
        return [layer.name for layer in (*weights, *self.joint)]


def claims_of(discovery: Discovery, given: Sequence[ScaleGroup] | None) -> Claims:
    """What is taken to be invariant.

    Args:
        discovery: what the losses showed.
        given: what the user gave, checked against the model; ``None`` leaves it to discovery.
    """
    if given is None:
        return Claims(discovery, discovery.joint_groups)
    found = {layer.parameter: layer for layer in (*discovery.layers, *discovery.frozen)}
    groups = [_with_second_opinion(group, found, discovery) for group in given]
    alone = {group.parameter: group for group in groups if not group.joint}
    frozen = {layer.parameter for layer in discovery.frozen}
    part_of = {part.parameter: group for group in groups for part in group.parts}
    layers = [
        alone[name] if name in alone else _not_given(found[name], part_of.get(name))
        for name in discovery.order
        if name in alone or (name in found and name not in frozen)
    ]
    still = tuple(layer for layer in discovery.frozen if layer.parameter not in alone)
    weights = replace(discovery, layers=tuple(layers), frozen=still, joint_sets=())
    return Claims(weights, tuple(group for group in groups if group.joint))


def given_groups(groups: Groups | None, model: nn.Module) -> tuple[ScaleGroup, ...] | None:
    """The user's groups, checked against the model.

    Raises:
        TypeError, ValueError: naming the argument, what it takes and what it got.
    """
    if groups is None:
        return None
    found = fitted(groups, model)
    alone = {group.parameter for group in found if not group.joint}
    parameters = parameters_of(model)
    for parameter, name in zip(parameters, layer_names(parameters), strict=True):
        if len(parameter.shape) > 1 and parameter.name not in alone and any(group.name == name for group in found):
            raise ValueError(f"groups takes names that no other layer has, got {name!r}, that of {parameter.name!r}")
    return found


def _with_second_opinion(group: ScaleGroup, found: dict[str, ScaleGroup], discovery: Discovery) -> ScaleGroup:
    """A given group with what discovery says of the same tensors: its norm, the share of its eps, and its reason."""
    candidates = [found[group.parameter]] if group.parameter in found else []
    if group.joint:
        names = {part.parameter for part in group.parts}
        candidates = [set_ for set_ in discovery.joint_groups if names == {part.parameter for part in set_.parts}]
        candidates += [found[name] for name in names if name in found]
    if not candidates:
        return replace(group, reason="given by the user; discovery says nothing of it")
    other = candidates[0]
    opinion = "finds the same" if _same(group, other) else f"says: {other.reason}"
    return replace(
        group,
        norm=group.norm or other.norm,
        eps_share=other.eps_share if group.eps_share is None else group.eps_share,
        reason=f"given by the user; discovery {opinion}",
    )


def _same(one: ScaleGroup, other: ScaleGroup) -> bool:
    """Whether two groups cut the same tensors in the same way; of one block, the axis says nothing."""
    if one.invariant != other.invariant or one.blocks != other.blocks or one.members != other.members:
        return not one.invariant and not other.invariant
    parts = [{(part.parameter, part.axis if one.blocks > 1 else 0) for part in group.parts} for group in (one, other)]
    return parts[0] == parts[1]


def _not_given(layer: ScaleGroup, group: ScaleGroup | None) -> ScaleGroup:
    """A weight that the user does not take to be invariant by itself."""
    plain = layer if not layer.invariant else replace(layer, parts=layer.parts[:1], kind="none", members=None)
    reason = NOT_GIVEN if group is None else f"not by itself: part of {group.name!r}, given by the user"
    return replace(plain, norm=None, reason=reason)
