"""From what the user says is invariant to how each tensor of an optimizer is cut."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from lightning_sphere.given import checked, fit
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.optim.cuts import Cut


@runtime_checkable
class HasGroups(Protocol):
    """A :class:`~lightning_sphere.Discovery`, known by what it offers."""

    @property
    def groups(self) -> Sequence[ScaleGroup]:
        """The invariant groups."""


Groups: TypeAlias = HasGroups | Sequence[ScaleGroup] | None
"""What ``groups`` takes."""

TAKES = "a Discovery or a sequence of ScaleGroup"
INVARIANT = (None, "row", "whole")


@dataclass(frozen=True)
class Choice:
    """The argument ``groups``, checked by itself."""

    groups: tuple[ScaleGroup, ...] = ()
    discovered: bool = False
    """Whether they come from a Discovery: it may well tell of tensors that other optimizers step, or that this one gets
    later; names that a user wrote must be there."""

    @classmethod
    def of(cls, groups: Any) -> Choice:
        """Check the argument.

        Raises:
            TypeError, ValueError: naming the argument, what it takes and what it got.
        """
        if groups is None:
            return cls()
        discovered = isinstance(groups, HasGroups)
        found = groups.groups if discovered else groups
        if isinstance(found, (str, bytes)) or not isinstance(found, Sequence):
            raise TypeError(f"groups takes {TAKES}, got {found!r}")
        for number, group in enumerate(found):
            if not isinstance(group, ScaleGroup):
                raise TypeError(f"groups takes {TAKES}; number {number} is {group!r}")
        invariant = tuple(group for group in found if group.invariant)
        if not invariant:
            raise ValueError(f"groups takes at least one invariant group (None for none), got {groups!r}")
        return cls(checked(invariant), discovered)

    def cuts(self, param_groups: Sequence[Mapping[str, Any]], shared: Sequence[str]) -> dict[Tensor, Cut]:
        """Cut the tensors of an optimizer.

        Args:
            param_groups: of the optimizer.
            shared: options that all tensors of one group must have in common.

        Returns:
            The cut of each tensor that is in a group.

        Raises:
            ValueError: if names are missing or unknown, shapes do not fit, a group has only some of its tensors here,
                or its tensors differ in an option that they must share.
        """
        if not self.groups:
            return _by_option(param_groups)
        if any(options["invariant"] is not None for options in param_groups):
            raise ValueError("groups and the param groups' option 'invariant' both say what is invariant: give one")
        if any("param_names" not in options for options in param_groups):
            raise ValueError("groups goes by names: pass model.named_parameters() as params, got tensors without names")
        here = {
            _plain_name(name): (tensor, options)
            for options in param_groups
            for name, tensor in zip(options["param_names"], options["params"], strict=True)
        }
        cuts: dict[Tensor, Cut] = {}
        for layer, group in enumerate(self.groups):
            if self.discovered and not any(part.parameter in here for part in group.parts):
                continue
            missing = [part.parameter for part in group.parts if part.parameter not in here]
            if self.discovered and missing:
                raise ValueError(
                    f"groups: {group.name!r} is invariant only together with {', '.join(map(repr, missing))}; params "
                    "takes all of its tensors, got some"
                )
            group = fit(group, {name: tensor for name, (tensor, _) in here.items()})
            _check_shared(group, [here[part.parameter][1] for part in group.parts], shared)
            for part in group.parts:
                tensor = here[part.parameter][0]
                cuts[tensor] = Cut(layer, _real_shape(tensor), part.axis, group.blocks, group.members)
        if not cuts:
            raise ValueError(
                f"groups takes names of the parameters given as params, such as {next(iter(here))!r}; none of its own, "
                f"such as {self.groups[0].parameter!r}, is one of them"
            )
        return cuts


def check_invariant(value: Any) -> None:
    """Raise unless the value is one for the option ``invariant``."""
    if value not in INVARIANT:
        raise ValueError(f"invariant takes one of {', '.join(map(repr, INVARIANT))}, got {value!r}")


def _by_option(param_groups: Sequence[Mapping[str, Any]]) -> dict[Tensor, Cut]:
    """Each tensor of a param group by itself, as its option ``invariant`` says."""
    cuts: dict[Tensor, Cut] = {}
    for options in param_groups:
        for tensor in options["params"]:
            if options["invariant"] is not None and tensor.numel():
                rows = tensor.shape[0] if options["invariant"] == "row" and tensor.dim() else 1
                cuts[tensor] = Cut(len(cuts), _real_shape(tensor), 0, rows)
    return cuts


def _check_shared(group: ScaleGroup, options: Sequence[Mapping[str, Any]], shared: Sequence[str]) -> None:
    for key in shared:
        values = [option[key] for option in options]
        if any(value is not values[0] and value != values[0] for value in values):
            got = ", ".join(f"{value!r} ({part.parameter})" for part, value in zip(group.parts, values, strict=True))
            raise ValueError(
                f"params takes one {key} for all tensors of {group.name!r}, which groups says make one group; got {got}"
            )


def _plain_name(name: str) -> str:
    """The name without what ``torch.compile`` puts into it, as discovery has it."""
    return re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name).lstrip(".")


def _real_shape(tensor: Tensor) -> tuple[int, ...]:
    return (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
