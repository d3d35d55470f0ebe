"""Inner products per group of tensors that are cut into blocks.

A number per group is kept as a *compact* tensor beside each tensor of the group: with as many dimensions, of length 1
except along the axis that is cut, so that it broadcasts against the tensor. A filter bank ``[64, 3, 3, 3]`` whose rows
are groups has ``[64, 1, 1, 1]``; where blocks of several rows are groups, their rows repeat the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """How one tensor is cut: block ``i`` of it belongs to group ``i`` of the layer."""

    layer: int
    """Number of the layer; tensors of the same one make up its groups together."""
    shape: tuple[int, ...]
    """Shape of the tensor; of a complex one, as a real tensor (with a last dimension of 2)."""
    axis: int
    """Dimension that is cut into equal consecutive blocks."""
    blocks: int
    """How many."""
    members: tuple[int, ...] | None = None
    """Indices of the blocks that are groups, where only some are."""
    _masks: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def compact(self) -> tuple[int, ...]:
        """Shape of what holds one number per group."""
        cut = self.axis if self.blocks > 1 else -1
        return tuple(length if dim == cut else 1 for dim, length in enumerate(self.shape))

    @property
    def entries(self) -> int:
        """Entries of the tensor per block."""
        return torch.Size(self.shape).numel() // self.blocks

    def sums(self, values: Tensor) -> Tensor:
        """``[blocks]``: sums of a tensor of :attr:`shape` over each block."""
        if self.blocks == 1:
            return values.sum().reshape(1)
        others = [dim for dim in range(len(self.shape)) if dim != self.axis]
        rows = values.sum(others) if others else values
        return rows if self.blocks == len(rows) else rows.view(self.blocks, -1).sum(1)

    def spread(self, values: Tensor) -> Tensor:
        """Compact tensor of ``[blocks]`` numbers."""
        if self.blocks == 1 or self.blocks == self.shape[self.axis]:
            return values.reshape(self.compact)
        return values.unsqueeze(1).expand(-1, self.shape[self.axis] // self.blocks).reshape(self.compact)

    def only_members(self, values: Tensor, others: Tensor | float) -> Tensor:
        """``values`` (compact) where blocks are groups, ``others`` (compact, a number, or of full shape) elsewhere."""
        if self.members is None:
            return values
        if values.device not in self._masks:  # kept, for copying it to the device at every step would wait for it
            chosen = torch.zeros(self.blocks, dtype=torch.bool)
            chosen[list(self.members)] = True
            self._masks[values.device] = self.spread(chosen).to(values.device)
        return torch.where(self._masks[values.device], values, others)


def inner(lhs: Sequence[Tensor], rhs: Sequence[Tensor], cuts: Sequence[Cut], foreach: bool) -> list[Tensor]:
    """Inner products per group.

    Args:
        lhs: one tensor per cut.
        rhs: the same.
        cuts: how they are cut.
        foreach: whether to multiply all of them at once, which takes memory for all products.

    Returns:
        Compact tensors, one per cut, in float32 (float64 for float64): for every block the sum over all tensors of the
        layer, the same for each of them. They may share memory: not to be written to.
    """
    lhs, rhs = [widened(tensor) for tensor in lhs], [widened(tensor) for tensor in rhs]
    products: Iterable[Tensor] = (a * b for a, b in zip(lhs, rhs, strict=True))
    if foreach:
        products = torch._foreach_mul(lhs, rhs)
    totals: dict[int, Tensor] = {}
    for cut, product in zip(cuts, products, strict=True):
        sums = cut.sums(product)
        totals[cut.layer] = totals[cut.layer] + sums if cut.layer in totals else sums
    return [cut.spread(totals[cut.layer]) for cut in cuts]


def entries(cuts: Sequence[Cut]) -> list[int]:
    """For every cut: ``d``, the entries per group, over all tensors of its layer that are among the cuts."""
    sizes: dict[int, int] = {}
    for cut in cuts:
        sizes[cut.layer] = sizes.get(cut.layer, 0) + cut.entries
    return [sizes[cut.layer] for cut in cuts]


def widened(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where its precision is lower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
