"""Where each number of the hot path goes: tensors -> pieces -> segments -> groups.

A tensor is seen as a matrix of one row per block. It is cut into *pieces* that fit into the cache; a row of a piece
is a *segment*, for which the ring stores sums. Pieces of one width share a *bucket*, so that a bucket is one matrix and
costs a handful of operations, whatever the number of layers and filters. Adding up the segments of a group (the parts
of a long row, a weight and its bias, all tensors of a joint set) waits until the flush. Groups may overlap there: a
tensor that is measured by itself is not read again for a joint set that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_sphere.groups import ScaleGroup

CHUNK_ELEMENTS = {"cpu": 1 << 18}
"""Elements of a bucket at most, by type of device: on the CPU the float64 temporaries then stay in the cache."""

CHUNK_ELEMENTS_ELSEWHERE = 1 << 22
"""The same for accelerators, where few launches count more."""

LONGEST_ELSEWHERE = 1 << 14
"""Elements of a segment at most on an accelerator: one program of a kernel adds up a segment."""

_HOST = torch.device("cpu")
"""Where the index tables for the flush live, whatever the user's default device is."""


@dataclass(frozen=True)
class Slot:
    """One tensor, cut into blocks."""

    name: str
    """The parameter's name in the model."""
    parameter: nn.Parameter
    param_group: int
    """Index into ``optimizer.param_groups``."""
    axis: int
    blocks: int

    @property
    def length(self) -> int:
        """Elements per block."""
        return self.parameter.numel() // self.blocks

    def as_rows(self, tensor: Tensor) -> Tensor:
        """View (or copy, where strides forbid a view) a tensor shaped like the parameter as ``[blocks, length]``."""
        if self.axis:
            tensor = tensor.movedim(self.axis, 0)
        return tensor.reshape(self.blocks, -1)


@dataclass(frozen=True)
class Use:
    """A slot that a layer takes its sums from: several consecutive blocks of the slot make one of the layer's."""

    layer: int
    """Index into the plan's layers."""
    slot: int
    """Index into the plan's slots."""
    blocks: int
    """How many blocks the layer has; they divide the slot's."""


@dataclass(frozen=True)
class Piece:
    """A rectangle of one tensor's matrix ``[blocks, length]``."""

    slot: int
    """Index into the plan's slots."""
    rows: range
    columns: range

    def of(self, matrix: Tensor) -> Tensor:
        """The piece of a matrix ``[blocks, length]``, as a view."""
        if len(self.rows) < matrix.shape[0]:
            matrix = matrix[self.rows.start : self.rows.stop]
        if len(self.columns) < matrix.shape[1]:
            matrix = matrix[:, self.columns.start : self.columns.stop]
        return matrix


@dataclass(frozen=True)
class Bucket:
    """Pieces of one width, of tensors of one dtype."""

    pieces: tuple[Piece, ...]
    start: int
    """First segment of the bucket in the ring's order."""
    dtype: torch.dtype

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Segments, and elements per segment."""
        return sum(len(piece.rows) for piece in self.pieces), len(self.pieces[0].columns)

    @cached_property
    def span(self) -> slice:
        """The bucket's segments in the ring's order."""
        return slice(self.start, self.start + self.shape[0])


class Plan:
    """The layout of one optimizer's measurement.

    Args:
        layers: what to measure, in the order shown to people; every parameter belongs to the optimizer.
        parameters: parameter by name.
        param_group: index of the optimizer's param group by name of the parameter.
        probes: further layers to measure, which are not shown; their groups come last.

    Attributes:
        layers: as given.
        probes: as given.
        slots: the tensors, each once where the layers' cuts allow it.
        uses: which slots make which layer, in the layers' order.
        buckets: in the ring's order.
        pieces: those of all buckets, in the ring's order.
        segments: how many there are.
        device: where the sums are stored; all parameters live there.
    """

    def __init__(
        self,
        layers: Sequence[ScaleGroup],
        parameters: Mapping[str, nn.Parameter],
        param_group: Mapping[str, int],
        probes: Sequence[ScaleGroup] = (),
    ) -> None:
        self.layers, self.probes = tuple(layers), tuple(probes)
        self.slots, self.uses = _slots((*self.layers, *self.probes), parameters, param_group)
        self.device = self.slots[0].parameter.device if self.slots else _HOST
        limit = CHUNK_ELEMENTS.get(self.device.type, CHUNK_ELEMENTS_ELSEWHERE)
        longest = limit if self.device.type == "cpu" else LONGEST_ELSEWHERE
        self.buckets = _buckets(self.slots, limit, longest)
        self.pieces = tuple(piece for bucket in self.buckets for piece in bucket.pieces)
        self.segments = self.buckets[-1].span.stop if self.buckets else 0

    @cached_property
    def first_group(self) -> tuple[int, ...]:
        """Index of the first group of each layer and probe, and the number of all groups as last entry."""
        starts = [0]
        for layer in (*self.layers, *self.probes):
            starts.append(starts[-1] + layer.blocks)
        return tuple(starts)

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """int64 ``[pairs]`` twice: segments, and the groups that their sums belong to; a segment may have several."""
        segments: list[Tensor] = []
        groups: list[Tensor] = []
        users: dict[int, list[Use]] = {}
        for use in self.uses:
            users.setdefault(use.slot, []).append(use)
        start = 0
        for piece in self.pieces:
            rows = torch.tensor(piece.rows, device=_HOST)
            for use in users[piece.slot]:
                segments.append(torch.arange(start, start + len(rows), device=_HOST))
                groups.append(self.first_group[use.layer] + rows // (self.slots[piece.slot].blocks // use.blocks))
            start += len(rows)
        return _cat(segments), _cat(groups)

    @cached_property
    def slot_of_segment(self) -> Tensor:
        """int64 ``[segments]``: index of the segment's tensor in :attr:`slots`."""
        return _cat([torch.full((len(piece.rows),), piece.slot, device=_HOST) for piece in self.pieces])

    @cached_property
    def segments_of_slot(self) -> tuple[tuple[tuple[Piece, slice, int], ...], ...]:
        """Per slot its pieces: where their sums stand in the ring's order, and in which bucket they are."""
        found: list[list[tuple[Piece, slice, int]]] = [[] for _ in self.slots]
        for number, bucket in enumerate(self.buckets):
            start = bucket.start
            for piece in bucket.pieces:
                found[piece.slot].append((piece, slice(start, start + len(piece.rows)), number))
                start += len(piece.rows)
        return tuple(map(tuple, found))

    @cached_property
    def slots_of_layer(self) -> tuple[tuple[int, ...], ...]:
        """Per layer and probe: the slots that its tensors are measured in."""
        found: list[list[int]] = [[] for _ in (*self.layers, *self.probes)]
        for use in self.uses:
            found[use.layer].append(use.slot)
        return tuple(map(tuple, found))

    @cached_property
    def size_of_segment(self) -> Tensor:
        """float64 ``[segments]``: elements of the segment."""
        return _cat(
            [torch.full((len(piece.rows),), len(piece.columns), device=_HOST) for piece in self.pieces]
        ).double()


def _slots(
    layers: Sequence[ScaleGroup], parameters: Mapping[str, nn.Parameter], param_group: Mapping[str, int]
) -> tuple[tuple[Slot, ...], tuple[Use, ...]]:
    """Cut the layers' tensors, the finest cuts first: a coarser one of the same tensor uses their sums."""
    slots: list[Slot] = []
    of_tensor: dict[str, list[int]] = {}
    uses: list[Use] = []
    for index, layer in sorted(enumerate(layers), key=lambda item: -item[1].blocks):
        for part in layer.parts:
            known = of_tensor.setdefault(part.parameter, [])
            slot = next((number for number in known if _makes(slots[number], layer.blocks, part.axis)), None)
            if slot is None:
                slot = len(slots)
                name = part.parameter
                slots.append(Slot(name, parameters[name], param_group[name], part.axis, layer.blocks))
                known.append(slot)
            uses.append(Use(index, slot, layer.blocks))
    return tuple(slots), tuple(sorted(uses, key=lambda use: use.layer))


def _makes(slot: Slot, blocks: int, axis: int) -> bool:
    """Whether blocks of a slot add up to those of another cut of its tensor."""
    return blocks == 1 or (slot.axis == axis and slot.blocks % blocks == 0)


def _cat(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors) if tensors else torch.empty(0, dtype=torch.int64, device=_HOST)


def _cut(total: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size`` that cover ``range(total)``."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


def _buckets(slots: Sequence[Slot], limit: int, longest: int) -> tuple[Bucket, ...]:
    """Cut tensors into pieces, and put those of one width and dtype together, at most ``limit`` elements in all.

    A piece has at most ``longest`` columns.
    """
    by_kind: dict[tuple[int, torch.dtype], list[Piece]] = {}
    for index, slot in enumerate(slots):
        for columns in _cut(slot.length, min(limit, longest)):
            for rows in _cut(slot.blocks, max(1, limit // len(columns))):
                kind = len(columns), slot.parameter.dtype
                by_kind.setdefault(kind, []).append(Piece(index, rows, columns))
    buckets: list[Bucket] = []
    for (width, dtype), pieces in by_kind.items():
        for together in _fill(pieces, max(1, limit // width)):
            buckets.append(Bucket(together, buckets[-1].span.stop if buckets else 0, dtype))
    return tuple(buckets)


def _fill(pieces: Sequence[Piece], rows: int) -> Iterator[tuple[Piece, ...]]:
    """Consecutive pieces of together at most so many rows."""
    chunk: list[Piece] = []
    held = 0
    for piece in pieces:
        if chunk and held + len(piece.rows) > rows:
            yield tuple(chunk)
            chunk, held = [], 0
        chunk.append(piece)
        held += len(piece.rows)
    yield tuple(chunk)
