"""The types that every part of the package speaks: what is measured together.

A *group* is a vector ``x`` of parameters that share one radial invariance, ``L(a x) = L(x)`` for every ``a > 0``:
one filter before a BatchNorm, one head before a query/key norm, a whole weight (with its bias) before a LayerNorm.
One :class:`ScaleGroup` describes all groups of one layer at once, because they are cut from the same tensors in the
same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["row", "group", "whole", "none"]
"""Granularity of a layer's groups.

``row``: each index of the axis is a group; ``group``: equal consecutive blocks of indices are; ``whole``: all entries
together are one; ``none``: the layer is not scale-invariant and is measured for its norm and rotation alone.
"""


@dataclass(frozen=True)
class GroupPart:
    """One parameter tensor of a layer and the axis along which it is cut into the layer's blocks.

    Attributes:
        parameter: name in ``model.named_parameters()``.
        axis: dimension of the tensor, from 0 on, that is cut into ``blocks`` equal consecutive blocks; without meaning
            for a single block.
    """

    parameter: str
    axis: int = 0


@dataclass(frozen=True)
class ScaleGroup:
    """The groups of one layer: ``blocks`` equal consecutive slices of its parts.

    Block ``i`` is the concatenation, over all parts, of the part's ``i``-th slice along its axis. A weight invariant
    only together with its bias is a layer of two parts. For ``groups=`` the first four attributes are enough.

    Example::

        weight, bias = GroupPart("conv1.weight"), GroupPart("conv1.bias")
        ScaleGroup("conv1", (weight,), blocks=64, kind="row")  # each of 64 filters, before a BatchNorm
        ScaleGroup("conv1", (weight, bias), blocks=8, kind="group")  # 8 blocks of 8 filters, before a GroupNorm

    Attributes:
        name: the layer's name for people: the module's name, or the parameter's where a module has several weights.
        parts: the tensors; the first one is the layer's weight.
        blocks: how many groups the layer holds; 1 where the kind is ``whole``.
        kind: granularity of the invariance, ``none`` when there is none.
        shape: shape of the first part's tensor; empty where several weights make one group, a joint set.
        members: indices of the invariant blocks where only some are; ``None`` for all.
        norm: what normalizes it: a module's name and type, or the operation.
        reason: one short sentence: why it is, or is not, invariant.
        eps_share: largest share that a small constant (the norm's ``eps``) had in what the norm divides by, when the
            loss was read: 0 is ideal, 1 means that nothing is normalized. ``None`` if it is not known.
    """

    name: str
    parts: tuple[GroupPart, ...]
    blocks: int
    kind: Kind
    shape: tuple[int, ...] = ()
    members: tuple[int, ...] | None = None
    norm: str | None = None
    reason: str = ""
    eps_share: float | None = field(default=None, compare=False)

    @property
    def parameter(self) -> str:
        """Name of the first part's parameter."""
        return self.parts[0].parameter

    @property
    def axis(self) -> int:
        """Axis of the first part."""
        return self.parts[0].axis

    @property
    def joint_with(self) -> tuple[str, ...]:
        """Names of the parameters that must be scaled along with the first one."""
        return tuple(part.parameter for part in self.parts[1:])

    @property
    def joint(self) -> bool:
        """Whether it is a joint set: weights of several layers that are invariant only together."""
        return len(self.parts) > 1 and not self.shape

    @property
    def invariant(self) -> bool:
        """Whether any block of the layer is scale-invariant."""
        return self.kind != "none"
