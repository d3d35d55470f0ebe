"""Where each number of the hot path goes: tensors -> segments -> groups.

A *segment* is one block of one tensor. Tensors whose segments have the same length share a *bucket*, so that a whole
bucket is one matrix ``[rows, length]`` and costs a handful of operations whatever the number of layers. The ring
stores sums per segment; adding the segments of a joint group (a weight and its bias) waits until the flush.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_sphere.groups import ScaleGroup

CHUNK_ELEMENTS = 1 << 18
"""Elements of a bucket at most, unless one tensor has more: temporaries in float64 then stay in the CPU's cache."""

_HOST = torch.device("cpu")
"""Where the index tables for the flush live, whatever the user's default device is."""


@dataclass(frozen=True)
class Slot:
    """One tensor cut into segments."""

    parameter: nn.Parameter
    param_group: int
    """Index into ``optimizer.param_groups``."""
    axis: int
    blocks: int
    layer: int
    """Index into the plan's layers."""

    def as_rows(self, tensor: Tensor) -> Tensor:
        """View (or copy, where strides forbid a view) a tensor shaped like the parameter as ``[blocks, length]``."""
        if self.axis:
            tensor = tensor.movedim(self.axis, 0)
        return tensor.reshape(self.blocks, -1)


@dataclass(frozen=True)
class Bucket:
    """Tensors whose segments have one length, on one device and of one dtype."""

    slots: tuple[Slot, ...]
    start: int
    """First segment of the bucket in the ring's order."""

    @cached_property
    def rows(self) -> int:
        """Segments in the bucket."""
        return sum(slot.blocks for slot in self.slots)

    @cached_property
    def length(self) -> int:
        """Elements per segment."""
        return self.slots[0].parameter.numel() // self.slots[0].blocks

    @property
    def stop(self) -> int:
        """One past the bucket's last segment."""
        return self.start + self.rows


class Plan:
    """The layout of one optimizer's measurement.

    Args:
        layers: what to measure, in the order shown to people; every parameter belongs to the optimizer.
        parameters: parameter by name.
        param_group: index of the optimizer's param group by name of the parameter.

    Attributes:
        layers: as given.
        buckets: in the ring's order.
        device: where the sums are stored; all parameters live there.
    """

    def __init__(
        self, layers: Sequence[ScaleGroup], parameters: Mapping[str, nn.Parameter], param_group: Mapping[str, int]
    ) -> None:
        self.layers = tuple(layers)
        slots = [
            Slot(parameters[part.parameter], param_group[part.parameter], part.axis, layer.blocks, index)
            for index, layer in enumerate(self.layers)
            for part in layer.parts
        ]
        self.buckets = _buckets(slots)
        self.slots = tuple(slot for bucket in self.buckets for slot in bucket.slots)
        self.segments = self.buckets[-1].stop if self.buckets else 0
        self.device = self.slots[0].parameter.device if self.slots else _HOST

    @cached_property
    def first_group(self) -> tuple[int, ...]:
        """Index of each layer's first group, and the number of all groups as last entry."""
        starts = [0]
        for layer in self.layers:
            starts.append(starts[-1] + layer.blocks)
        return tuple(starts)

    @cached_property
    def group_of_segment(self) -> Tensor:
        """int64 ``[segments]``: the group that a segment's sums belong to."""
        return _cat([torch.arange(slot.blocks, device=_HOST) + self.first_group[slot.layer] for slot in self.slots])

    @cached_property
    def slot_of_segment(self) -> Tensor:
        """int64 ``[segments]``: index of the segment's tensor in :attr:`slots`."""
        return _cat([torch.full((slot.blocks,), index, device=_HOST) for index, slot in enumerate(self.slots)])

    @cached_property
    def param_group_of_segment(self) -> Tensor:
        """int64 ``[segments]``: index of the optimizer's param group."""
        groups = [slot.param_group for slot in self.slots]
        return torch.tensor(groups, dtype=torch.int64, device=_HOST)[self.slot_of_segment]

    @cached_property
    def size_of_segment(self) -> Tensor:
        """float64 ``[segments]``: elements of the segment."""
        sizes = [slot.parameter.numel() // slot.blocks for slot in self.slots]
        return torch.tensor(sizes, dtype=torch.float64, device=_HOST)[self.slot_of_segment]


def _cat(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors) if tensors else torch.empty(0, dtype=torch.int64, device=_HOST)


def _buckets(slots: Sequence[Slot]) -> tuple[Bucket, ...]:
    """Sort slots by segment length and dtype and device, and cut them where a bucket would outgrow the cache."""
    by_kind: dict[tuple[int, torch.dtype, torch.device], list[Slot]] = {}
    for slot in slots:
        length = slot.parameter.numel() // slot.blocks
        by_kind.setdefault((length, slot.parameter.dtype, slot.parameter.device), []).append(slot)
    buckets: list[Bucket] = []
    for kind in by_kind.values():
        for chunk in _chunks(kind):
            buckets.append(Bucket(chunk, buckets[-1].stop if buckets else 0))
    return tuple(buckets)


def _chunks(slots: Sequence[Slot]) -> Iterator[tuple[Slot, ...]]:
    """Consecutive slots of together at most :data:`CHUNK_ELEMENTS`, or one that has more."""
    chunk: list[Slot] = []
    elements = 0
    for slot in slots:
        size = slot.parameter.numel()
        if chunk and elements + size > CHUNK_ELEMENTS:
            yield tuple(chunk)
            chunk, elements = [], 0
        chunk.append(slot)
        elements += size
    yield tuple(chunk)
