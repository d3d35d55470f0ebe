"""What discovery hands out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_sphere.groups import ScaleGroup


@dataclass(frozen=True)
class Discovery:
    """The scale-invariant groups of a model, and why each weight is, or is not, invariant.

    Holds names and numbers only: no tensor, no parameter, no graph.
    """

    layers: tuple[ScaleGroup, ...] = ()
    """Every trainable parameter with two dimensions or more, in the model's order; kind ``none`` for what is not
    invariant."""
    joint_sets: tuple[tuple[str, ...], ...] = ()
    """Names of parameters that are invariant only together, without those that are parts of one layer."""
    frozen: tuple[ScaleGroup, ...] = ()
    """Parameters with two dimensions or more that are not trained."""
    order: tuple[str, ...] = ()
    """Names of all parameters, in the model's order."""
    reached: frozenset[str] = frozenset()
    """Names of the parameters that the loss depends on."""

    @property
    def groups(self) -> tuple[ScaleGroup, ...]:
        """The invariant layers."""
        return tuple(layer for layer in self.layers if layer.invariant)

    def table(self) -> list[dict[str, Any]]:
        """One row per parameter with two dimensions or more, frozen ones included.

        Returns:
            Rows with ``parameter``, ``kind``, ``axis``, ``blocks``, ``members``, ``joint_with``, ``norm`` and
            ``reason``; ``axis``, ``blocks`` and ``members`` are ``None`` where the kind is ``none``.
        """
        place = {name: position for position, name in enumerate(self.order)}
        layers = sorted((*self.layers, *self.frozen), key=lambda layer: place.get(layer.parameter, len(place)))
        return [
            {
                "parameter": layer.parameter,
                "kind": layer.kind,
                "axis": layer.axis if layer.invariant else None,
                "blocks": layer.blocks if layer.invariant else None,
                "members": layer.members if layer.invariant else None,
                "joint_with": layer.joint_with,
                "norm": layer.norm,
                "reason": layer.reason,
            }
            for layer in layers
        ]


def merge(discoveries: Iterable[Discovery]) -> Discovery:
    """Unite what several losses of one model tell.

    Args:
        discoveries: One result per loss. They must come from the same model.

    Returns:
        Every parameter as the losses that depend on it see it: invariant only if it is in all of them, with the
        coarsest of their granularities.

    Raises:
        ValueError: If there is nothing to merge, or the models differ.
    """
    found = list(discoveries)
    if not found:
        raise ValueError("merge() needs at least one Discovery")
    if any(other.order != found[0].order for other in found[1:]):
        raise ValueError("merge() needs discoveries of the same model: their parameters differ")
    by_name = [{layer.parameter: layer for layer in discovery.layers} for discovery in found]
    layers = []
    for name in found[0].order:  # a parameter may be frozen for one loss and trained by another
        versions = [known[name] for known in by_name if name in known]
        reached = [known[name] for known, d in zip(by_name, found, strict=True) if name in d.reached and name in known]
        if versions:
            layers.append(_merge_layer(reached or versions[:1]))
    trained = {layer.parameter for layer in layers}
    frozen = {layer.parameter: layer for d in found for layer in d.frozen if layer.parameter not in trained}
    sets = dict.fromkeys(names for discovery in found for names in discovery.joint_sets)
    joint_sets = tuple(
        names for names in sets if all(names in d.joint_sets or not d.reached.intersection(names) for d in found)
    )
    return Discovery(
        layers=tuple(layers),
        joint_sets=joint_sets,
        frozen=tuple(frozen.values()),
        order=found[0].order,
        reached=frozenset().union(*(discovery.reached for discovery in found)),
    )


def _merge_layer(versions: Sequence[ScaleGroup]) -> ScaleGroup:
    """What all losses agree on about one layer."""
    result = versions[0]
    for other in versions[1:]:
        if not result.invariant or other == result:
            continue
        coarse, fine = sorted((result, other), key=lambda layer: layer.blocks)
        same_parts = [part.parameter for part in coarse.parts] == [part.parameter for part in fine.parts]
        nested = fine.blocks % max(coarse.blocks, 1) == 0 and (coarse.kind == "whole" or coarse.parts == fine.parts)
        if not other.invariant:
            result = other
        elif same_parts and nested and coarse.members is None and fine.members is None:
            result = coarse
        elif coarse.parts == fine.parts and coarse.blocks == fine.blocks:
            members = tuple(sorted(set(_all_members(coarse)) & set(_all_members(fine))))
            result = replace(coarse, members=members) if members else _nothing(result)
        else:
            result = _nothing(result)
    return result


def _all_members(layer: ScaleGroup) -> Iterable[int]:
    return range(layer.blocks) if layer.members is None else layer.members


def _nothing(layer: ScaleGroup) -> ScaleGroup:
    """The layer as one that is not invariant."""
    return replace(
        layer,
        parts=layer.parts[:1],
        kind="none",
        members=None,
        norm=None,
        reason="not invariant: the losses that read it demand different scalings",
    )
