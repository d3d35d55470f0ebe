"""What discovery hands out."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_sphere.discovery.together import describe_sets
from lightning_sphere.groups import ScaleGroup

if TYPE_CHECKING:
    from lightning_sphere.discovery.display import Page


@dataclass(frozen=True, repr=False)
class Discovery:
    """The scale-invariant groups of a model, and why each weight is, or is not, invariant.

    Holds names and numbers only: no tensor, no parameter, no graph. ``print()`` and notebooks show it as a table.

    Attributes:
        layers: every trainable parameter with two dimensions or more, in the model's order; kind ``none`` for what is
            not invariant.
        joint_sets: names of parameters that are invariant only together, without those that are parts of one layer.
        frozen: parameters with two dimensions or more that are not trained.
        order: names of all parameters, in the model's order.
        reached: names of the parameters that the loss depends on.
        way: how it was found out: ``graph`` of the loss as it is; ``traced`` where compiled modules or reentrant
            checkpoints were looked through on tensors without numbers; ``uncompiled`` where the loss was computed for
            it, eagerly; ``gradients`` where some weights are read by operations that can't be looked into, and were
            judged by several steps' gradients alone.
        hidden: names of the weights of which the graph does not show what reads them; they are not claimed to be
            invariant.
        joint_facts: of each of :attr:`joint_sets`: the norms that read it, and the largest share of their ``eps`` if
            known.
    """

    layers: tuple[ScaleGroup, ...] = ()
    joint_sets: tuple[tuple[str, ...], ...] = ()
    frozen: tuple[ScaleGroup, ...] = ()
    order: tuple[str, ...] = ()
    reached: frozenset[str] = frozenset()
    way: str = "graph"
    hidden: frozenset[str] = frozenset()

    joint_facts: tuple[tuple[tuple[str, ...], float | None], ...] = field(default=(), compare=False)

    @property
    def groups(self) -> tuple[ScaleGroup, ...]:
        """Those of :attr:`layers` that are invariant, some together with their bias; joint sets are not among them."""
        return tuple(layer for layer in self.layers if layer.invariant)

    @property
    def joint_groups(self) -> tuple[ScaleGroup, ...]:
        """Each of :attr:`joint_sets` as one group of one block, named for people: "residual stream, 14 tensors"."""
        return describe_sets(self.joint_sets, self.joint_facts, (*self.layers, *self.frozen))

    def table(self) -> list[dict[str, Any]]:
        """One row per parameter with two dimensions or more, frozen ones included.

        Returns:
            Rows, in the model's order, with ``parameter``, its name; ``kind`` (``row``, ``group``, ``whole``,
            ``none``); ``axis``, the dimension that is cut into groups; ``blocks``, into how many; ``members``, the
            indices of the invariant ones, ``None`` for all; ``joint_with``, names of the parameters to scale along with
            it, such as its bias; ``norm``, what normalizes it; and ``reason``, a sentence. Where the kind is ``none``,
            ``axis``, ``blocks``, ``members`` and ``norm`` are ``None``.
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

    # -- for people; rich is loaded when it is needed --------------------------------------------------------------

    def to_text(self, width: int | None = None, expand: bool = False) -> str:
        """The table with all reasons as plain text.

        Args:
            width: Columns; those of the terminal if not given.
            expand: Whether every weight has a line of its own. Else the weights of repeated blocks that are alike share
                one, such as ``encoder.layer.{0-11}.attention.query``.
        """
        from lightning_sphere.discovery.display import to_text

        return to_text(self, width or shutil.get_terminal_size().columns, expand)

    def to_html(self, expand: bool = False) -> str:
        """The table with all reasons as HTML; ``expand`` as for :meth:`to_text`."""
        from lightning_sphere.discovery.display import to_html

        return to_html(self, expand)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        from lightning_sphere.discovery.display import title

        return f"<Discovery: {title(self)}; print() shows why>"

    def __rich__(self) -> Page:
        from lightning_sphere.discovery.display import Page

        return Page(self)

    def _repr_html_(self) -> str:
        return self.to_html()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


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
    facts = {names: fact for d in found for names, fact in zip(d.joint_sets, d.joint_facts, strict=False)}
    return Discovery(
        layers=tuple(layers),
        joint_sets=joint_sets,
        joint_facts=tuple(facts.get(names, ((), None)) for names in joint_sets),
        frozen=tuple(frozen.values()),
        order=found[0].order,
        reached=frozenset().union(*(discovery.reached for discovery in found)),
        way=next((discovery.way for discovery in found if discovery.way != "graph"), "graph"),
        hidden=frozenset(
            name
            for name in frozenset().union(*(discovery.hidden for discovery in found))
            if all(name in discovery.hidden or name not in discovery.reached for discovery in found)
        ),
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
