"""The words that the kernels and their callers share: what is read, how it is cut, which sums are wanted.

A kernel makes one sweep over all tensors of a plan. It finds them through a table of addresses, and writes its sums
into one row of the ring, one float64 number per segment and sum. There is one for the host
(:mod:`~lightning_sphere.measurement.host_kernel`) and one for CUDA
(:mod:`~lightning_sphere.measurement.cuda_kernel`).

Legend, per entry of a tensor: ``x`` weight before the step, ``w`` weight after it, ``D = w - x``, ``g`` gradient,
``p`` the optimizer's momentum, ``v`` its second moment, and ::

    a = of_momentum p + of_gradient g + of_weight x        b = root sqrt(v) + offset   (1 where there is no v)
    P = -rate a / b - shrink x                             the step that the optimizer's formula asks for
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from lightning_sphere.measurement.plan import Plan, Slot


class Sweep(IntEnum):
    """What one sweep does."""

    BEFORE = 0
    """Right before the step: read ``x`` (at WEIGHT) and ``g``; write ``x`` to OTHER, bit for bit, where that address is
    not 0; sums XX, GX, GG."""
    AFTER = 1
    """Right after it, with ``x`` at OTHER and ``w`` at WEIGHT: sums XD, DD, V, ROOT_V, AA, AX, AD."""
    WHOLE = 2
    """Right after it, without a copy: ``D = P``, formed from the formula, and ``x`` solved from ``w = x + P``; OTHER is
    not read; all sums of BEFORE and AFTER."""
    PAIR = 3
    """Any two sets of weights, ``x`` at OTHER and ``w`` at WEIGHT; sums XX, XD, DD."""
    ASKED = 4
    """Right after it, with ``x`` at OTHER: sums P_SIZE, P_UNMOVED, PP, ERROR."""


class Field(IntEnum):
    """Columns of the address table; the address 0 means that the tensor is absent."""

    WEIGHT = 0
    OTHER = 1
    GRADIENT = 2
    MOMENTUM = 3
    SECOND_MOMENT = 4


class Factor(IntEnum):
    """Columns of the table of factors, see the legend above."""

    OF_MOMENTUM = 0
    OF_GRADIENT = 1
    OF_WEIGHT = 2
    RATE = 3
    ROOT = 4
    OFFSET = 5
    SHRINK = 6


class Total(IntEnum):
    """The sums over a segment that a sweep can write.

    Where ``g`` is absent GX and GG are NaN, where ``v`` is absent V and ROOT_V are; an absent ``p`` or ``g`` counts as
    0 in ``a``.
    """

    XX = 0
    GX = 1
    GG = 2
    XD = 3
    DD = 4
    V = 5
    ROOT_V = 6
    AA = 7
    AX = 8
    AD = 9
    P_SIZE = 10
    """Sum of ``|P|``."""
    P_UNMOVED = 11
    """Sum of ``|P|`` where ``D`` is exactly 0."""
    PP = 12
    """Sum of ``P^2``."""
    ERROR = 13
    """Sum of ``(D - P)^2``."""


DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""A dtype's code in the tables is its place here."""


@dataclass(frozen=True)
class Geometry:
    """Where the entries of a block are in memory, in elements of the tensor.

    Entry ``c`` of block ``k`` is at ``k * inner + c // inner * outer + c % inner``: runs of ``inner`` entries that are
    ``outer`` apart. A block in one run has ``inner`` entries.
    """

    inner: int
    outer: int


def geometry_of(slot: Slot) -> Geometry | None:
    """How a slot's blocks lie in its parameter's memory; ``None`` if its memory has gaps or overlaps.

    The order of entries within a block is that of the memory: sums do not depend on it.
    """
    parameter, blocks = slot.parameter, slot.blocks
    strides = parameter.stride()
    outer = entries = 1
    for d in sorted((d for d in range(parameter.dim()) if parameter.shape[d] > 1), key=lambda d: strides[d]):
        if strides[d] != entries:
            return None
        entries *= parameter.shape[d]
        if d == slot.axis:
            outer = entries
    return Geometry(max(1, entries), 0) if blocks == 1 else Geometry(outer // blocks, outer)


@dataclass(frozen=True)
class Layout:
    """How a plan's segments lie in the memory of its tensors. All tensors are on the host.

    Attributes:
        segments: int64 ``[segments, 4]``, in the ring's order: slot, block, first of the block's entries, how many.
            Segments of one slot and one cut follow one another.
        geometry: int64 ``[slots, 2]``: ``inner`` and ``outer``, see :class:`Geometry`.
    """

    segments: Tensor
    geometry: Tensor


def layout_of(plan: Plan) -> Layout | None:
    """The layout of a plan; ``None`` if a kernel cannot read one of its tensors."""
    found = [geometry_of(slot) for slot in plan.slots]
    known = [geometry for geometry in found if geometry is not None]
    if len(known) < len(found) or any(slot.parameter.dtype not in DTYPES for slot in plan.slots):
        return None
    pieces = []
    for piece in plan.pieces:
        rows = torch.arange(piece.rows.start, piece.rows.stop, device="cpu")
        same = torch.tensor([piece.slot, 0, piece.columns.start, len(piece.columns)], device="cpu")
        pieces.append(same.repeat(len(rows), 1).index_copy_(1, torch.tensor([1], device="cpu"), rows.unsqueeze(1)))
    segments = torch.cat(pieces) if pieces else torch.empty(0, 4, dtype=torch.int64, device="cpu")
    geometry = torch.tensor([(g.inner, g.outer) for g in known], dtype=torch.int64, device="cpu").reshape(-1, 2)
    return Layout(segments, geometry)


@dataclass(frozen=True)
class Sources:
    """The tables of one sweep, one row per slot.

    Attributes:
        addresses: int64 ``[slots, 5]`` on the host, columns as in :class:`Field`. Every tensor has the memory layout of
            its slot's parameter (same shape, same strides), and is kept alive by whoever launches.
        dtypes: int32 ``[slots, 5]`` on the host: codes of the tensors' dtypes, see :data:`DTYPES`; 0 for absent ones.
        factors: float64 ``[slots, 7]``, columns as in :class:`Factor`, on the host or on the device of the weights;
            ``None`` for sweeps that need none (BEFORE, PAIR, and AFTER without AA, AX, AD).
    """

    addresses: Tensor
    dtypes: Tensor
    factors: Tensor | None = None


class Kernel(Protocol):
    """One way of making sweeps over all tensors of one plan."""

    name: str
    """For people: "host kernel", "CUDA kernel"."""

    @property
    def dtypes(self) -> Collection[torch.dtype]:
        """Those of the tensors that it reads."""

    def launch(self, sweep: Sweep, sources: Sources, out: Tensor, wanted: dict[Total, int]) -> None:
        """Make one sweep; nothing waits for the device.

        Args:
            sweep: which one.
            sources: where the tensors are.
            out: ``[rows, segments]`` on the weights' device, contiguous along the segments; in the precision of the
                ring.
            wanted: row of ``out`` by sum. Sums that the sweep does not make are not written.
        """
