"""Sets of tensors that are invariant only together, described as groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lightning_sphere.groups import GroupPart, ScaleGroup

FEW = 3
"""So many weights are named one by one."""

MANY = 6
"""More weights than these write into a residual stream, even if only one norm is known to read it."""


def describe_sets(
    sets: Sequence[Sequence[str]],
    facts: Sequence[tuple[Sequence[str], float | None]],
    layers: Sequence[ScaleGroup],
) -> tuple[ScaleGroup, ...]:
    """One group of one block per set, with a name that no other layer has.

    Args:
        sets: names of parameters.
        facts: of each set, the norms that read it and the share of their ``eps``; shorter if not known.
        layers: what is known of all parameters with two dimensions or more.
    """
    by_parameter = {layer.parameter: layer for layer in layers}
    facts = [*facts, *[((), None)] * (len(sets) - len(facts))]
    groups = [
        _describe(names, [by_parameter[name] for name in names if name in by_parameter], *fact)
        for names, fact in zip(sets, facts, strict=True)
    ]
    repeated = Counter(group.name for group in groups)
    groups = [
        replace(group, name=f"{group.name}, {group.norm or group.parameter}") if repeated[group.name] > 1 else group
        for group in groups
    ]
    taken = {layer.name for layer in layers}
    unique = []
    for group in groups:
        name, number = group.name, 2
        while name in taken:
            name, number = f"{group.name} ({number})", number + 1
        taken.add(name)
        unique.append(replace(group, name=name))
    return tuple(unique)


def _describe(
    names: Sequence[str], weights: Sequence[ScaleGroup], norms: Sequence[str], eps_share: float | None
) -> ScaleGroup:
    """One set; ``weights`` are those of its parameters that have two dimensions or more."""
    norm = None if not norms else norms[0] if len(norms) == 1 else f"{norms[0]} and {len(norms) - 1} more"
    readers = f"{norm} read{'s' * (len(norms) == 1)}" if norm else "normalizations read"
    return ScaleGroup(
        name=_name(names, weights, len(norms)),
        parts=tuple(GroupPart(name) for name in names),
        blocks=1,
        kind="whole",
        norm=norm,
        reason=f"invariant only together: {len(names)} tensors write to the sums that {readers}",
        eps_share=eps_share,
    )


def _name(names: Sequence[str], weights: Sequence[ScaleGroup], norms: int) -> str:
    """What people would call the set."""
    if weights and all(_is_embedding(weight) for weight in weights):
        return f"embeddings ({len(names)} tensors)"
    if norms > 1 or len(weights) > MANY:
        return f"residual stream, {len(names)} tensors"
    labels = [weight.name for weight in weights] or list(names)
    if len(labels) > FEW:
        return f"{labels[0]} and {len(names) - 1} tensors more"
    parent, depth = labels[0].split(".")[:-1], 0
    while depth < len(parent) and all(label.split(".")[depth:-1][:1] == parent[depth : depth + 1] for label in labels):
        depth += 1
    together = " + ".join(".".join(label.split(".")[depth:]) for label in labels)
    return f"{'.'.join(parent[:depth])}: {together}" if depth and len(labels) > 1 else together


def _is_embedding(weight: ScaleGroup) -> bool:
    """Embeddings alone are measured whole where they are not invariant."""
    return weight.kind == "none" and weight.blocks == 1
