"""The argument ``groups``: what the user takes to be invariant, checked by itself and against a model."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, get_args

from torch import Tensor, nn

from lightning_sphere.groups import GroupPart, Kind, ScaleGroup

Groups: TypeAlias = Sequence[ScaleGroup] | Callable[[nn.Module], Sequence[ScaleGroup]]
"""What ``groups`` takes."""

TAKES = "a sequence of ScaleGroup, or a function that maps a module to one"


def checked(groups: Any, source: str = "groups") -> tuple[ScaleGroup, ...]:
    """Check what can be known without a model.

    Args:
        groups: what should be a sequence of groups.
        source: who gave it, for messages.

    Raises:
        TypeError, ValueError: naming the argument, what it takes and what it got.
    """
    if isinstance(groups, (str, bytes, Mapping)) or not isinstance(groups, Sequence):
        raise TypeError(f"{source} takes {TAKES}, got {groups!r}")
    for number, group in enumerate(groups):
        if not isinstance(group, ScaleGroup):
            raise TypeError(f"{source} takes {TAKES}; number {number} is {group!r}")
    if not groups:
        raise ValueError(f"{source} takes at least one ScaleGroup (None leaves it to discovery), got none")
    for group in groups:
        _check_one(group, source)
    _unique(source, "name", [group.name for group in groups])
    _unique(source, "parameter", [part.parameter for group in groups for part in group.parts])
    return tuple(groups)


def fitted(groups: Groups, model: nn.Module) -> tuple[ScaleGroup, ...]:
    """Check groups, or those that a function returns, against the model they are for.

    Args:
        groups: the argument.
        model: the network.

    Returns:
        The groups with the shapes of the model's tensors.

    Raises:
        TypeError, ValueError: naming the argument, what it takes and what it got.
    """
    found = checked(groups(model), "groups: the function") if callable(groups) else checked(groups)
    parameters = dict(model.named_parameters())
    return tuple(fit(group, parameters) for group in found)


def _check_one(group: ScaleGroup, source: str) -> None:
    """Check that one group is consistent in itself."""
    if not isinstance(group.name, str) or not group.name:
        raise ValueError(f"{source} takes groups with a name, got {group!r}")
    about = f"{source}: {group.name!r}"
    if not isinstance(group.parts, tuple) or not all(isinstance(part, GroupPart) for part in group.parts):
        raise TypeError(f"{about} takes a tuple of GroupPart as parts, got {group.parts!r}")
    if not group.parts:
        raise ValueError(f"{about} takes at least one GroupPart, got none")
    for part in group.parts:
        if not isinstance(part.parameter, str) or not _is_index(part.axis):
            raise TypeError(f"{about} takes parts with a parameter's name and an axis from 0 on, got {part!r}")
    if not isinstance(group.reason, str) or not isinstance(group.norm, (str, type(None))):
        raise TypeError(f"{about} takes text as reason and as norm, got {group.reason!r} and {group.norm!r}")
    if group.eps_share is not None and not (isinstance(group.eps_share, (int, float)) and group.eps_share >= 0):
        raise TypeError(f"{about} takes a share as eps_share, or None if unknown, got {group.eps_share!r}")
    if group.kind not in get_args(Kind):
        raise ValueError(f"{about} takes one of {', '.join(map(repr, get_args(Kind)))} as kind, got {group.kind!r}")
    if not _is_index(group.blocks) or group.blocks < 1:
        raise ValueError(f"{about} takes a positive integer as blocks, got {group.blocks!r}")
    if group.kind == "whole" and group.blocks != 1:
        raise ValueError(f"{about} of kind 'whole' takes 1 as blocks, got {group.blocks}")
    members = group.members
    if members is not None and (
        not isinstance(members, tuple)
        or not members
        or not all(_is_index(index) and index < group.blocks for index in members)
        or list(members) != sorted(set(members))
    ):
        raise ValueError(
            f"{about} takes as members a tuple of increasing indices below blocks={group.blocks}, or None for all; "
            f"got {members!r}"
        )


def fit(group: ScaleGroup, parameters: Mapping[str, Tensor]) -> ScaleGroup:
    """Check one group against the tensors that it names.

    Args:
        group: checked by itself.
        parameters: the tensors by name.

    Returns:
        The group with the shape of its weight.

    Raises:
        ValueError: naming the argument, what it takes and what it got.
    """
    about = f"groups: {group.name!r}"
    for part in group.parts:
        if part.parameter not in parameters:
            close = difflib.get_close_matches(part.parameter, parameters, n=3)
            hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"{about} takes names of the model's parameters, got {part.parameter!r}{hint}")
        shape = tuple(parameters[part.parameter].shape)
        if part.axis >= max(1, len(shape)):
            raise ValueError(f"{about} takes an axis of {part.parameter!r} of shape {shape}, got axis={part.axis}")
        if group.blocks == 1:
            continue
        rows = shape[part.axis]
        if group.kind == "row" and rows != group.blocks:
            raise ValueError(
                f"{about} of kind 'row' takes blocks={rows}, the length of axis {part.axis} of {part.parameter!r} of "
                f"shape {shape}, got blocks={group.blocks}"
            )
        if rows == 0 or rows % group.blocks:
            raise ValueError(
                f"{about} takes blocks that divide {rows}, the length of axis {part.axis} of {part.parameter!r} of "
                f"shape {shape}, got blocks={group.blocks}"
            )
    weights = [part for part in group.parts if parameters[part.parameter].dim() > 1]
    several = len(weights) > 1 or (len(group.parts) > 1 and not weights)
    return replace(group, shape=() if several else tuple(parameters[group.parameter].shape))


def _unique(source: str, what: str, values: Sequence[str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{source} takes each {what} once, got {value!r} {count} times")


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
