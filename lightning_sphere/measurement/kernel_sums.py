"""The sums of one step by a kernel: one sweep before the optimizer's arithmetic and one after it, or one in all.

Where the optimizer's formula is known and seen to hold, the weights before the step follow from those after it and from
the optimizer's state: then no copy is kept, and one sweep makes all sums.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_sphere.measurement.around import Kept
from lightning_sphere.measurement.layout import DTYPES, Factor, Field, Kernel, Sources, Sweep, Total
from lightning_sphere.measurement.plan import Piece, Plan

TOTALS: dict[str, Total] = {
    "xx": Total.XX,
    "gx": Total.GX,
    "gg": Total.GG,
    "xd": Total.XD,
    "dd": Total.DD,
    "v": Total.V,
    "sqrt_v": Total.ROOT_V,
    "aa": Total.AA,
    "ax": Total.AX,
    "ad": Total.AD,
}
"""Sum by name of the ring's column."""

_BEFORE = (Total.XX, Total.GX, Total.GG)
_PAIR = {Total.XX: 0, Total.XD: 1, Total.DD: 2}
_ASKED = {Total.P_SIZE: 0, Total.P_UNMOVED: 1, Total.PP: 2, Total.ERROR: 3}
_LASTING = (Field.MOMENTUM, Field.SECOND_MOMENT)
"""Fields of tensors that stay from step to step: they need not be looked at again, and may be held."""
_CODE = {dtype: code for code, dtype in enumerate(DTYPES)}


class MovedError(RuntimeError):
    """A parameter is no longer what the plan was made for: another device, dtype or memory layout."""


class KernelError(RuntimeError):
    """A kernel could not be made: it is compiled at its first launch."""


class KernelSums:
    """Measures the steps of a plan by a kernel.

    Args:
        plan: what to measure.
        columns: names of the sums per segment, the order of a row of the ring.
        kernel: made for the plan's layout.
    """

    def __init__(self, plan: Plan, columns: Sequence[str], kernel: Kernel) -> None:
        self.plan, self.name, self._kernel = plan, kernel.name, kernel
        self._launched = False
        self._columns: dict[Field, _Column] = {}
        self._memory: dict[int, Tensor] = {}
        self._wanted = {TOTALS[name]: index for index, name in enumerate(columns)}
        self._before = {total: row for total, row in self._wanted.items() if total in _BEFORE}
        self._after = {total: row for total, row in self._wanted.items() if total not in _BEFORE}
        self._parameters = [slot.parameter for slot in plan.slots]
        self._like = [_Like(parameter, kernel.dtypes) for parameter in self._parameters]
        self._direct = torch.zeros(len(plan.slots), len(Factor), dtype=torch.float64, device="cpu")
        self._direct[:, Factor.OF_MOMENTUM] = 1.0

    def before(self, row: Tensor) -> KeptWeights:
        """Write ``xx, gx, gg`` into a row ``[columns, segments]`` of the ring, and keep the weights."""
        kept = self._memory or {id(p): torch.empty_like(p.detach()) for p in self._parameters}
        if self.plan.device.type == "cpu":  # the system takes longer to give memory than a sweep does
            self._memory = dict(kept)
        copies = [kept[id(parameter)] for parameter in self._parameters]
        once = [kept.pop(id(parameter), None) for parameter in self._parameters]  # measured twice, it is copied once
        gradients = [parameter.grad for parameter in self._parameters]
        self._launch(Sweep.BEFORE, row, self._before, {Field.OTHER: once, Field.GRADIENT: gradients})
        return KeptWeights(self.plan, copies)

    def forget(self) -> None:
        """Let go of memory that is held for the copies of the next step."""
        self._memory = {}

    def late_gradients(self, row: Tensor, kept: Kept) -> None:
        """Write ``gx, gg`` again, from the gradients that are there now."""
        gradients = [parameter.grad for parameter in self._parameters]
        fields = {Field.WEIGHT: kept.copies, Field.GRADIENT: gradients}
        self._launch(Sweep.BEFORE, row, self._before, fields)

    def after(
        self,
        row: Tensor,
        kept: Kept,
        moments: Sequence[Tensor | None] | None,
        directions: Sequence[Tensor | None] | None,
    ) -> None:
        """Write the other sums into the same row.

        Args:
            row: of the ring.
            kept: what :meth:`before` gave.
            moments: the optimizer's second moment of each slot; ``None`` if none is wanted.
            directions: its direction before the division; ``None`` if none is wanted.
        """
        fields: dict[Field, Sequence[Tensor | None]] = {Field.OTHER: kept.copies}
        factors = None
        if moments is not None:
            fields[Field.SECOND_MOMENT] = moments
        if directions is not None:
            fields[Field.MOMENTUM] = directions
            missing = [index for index, direction in enumerate(directions) if direction is None]
            factors = self._direct.clone()
            factors[missing] = torch.nan
        self._launch(Sweep.AFTER, row, self._after, fields, factors)

    def at_once(
        self,
        row: Tensor,
        momenta: Sequence[Tensor | None],
        moments: Sequence[Tensor | None],
        factors: Tensor,
    ) -> None:
        """Write all sums of a step, right after it: the weights before it follow from the optimizer's formula.

        Args:
            row: of the ring.
            momenta: the optimizer's momentum of each slot.
            moments: its second moment.
            factors: float64 ``[slots, 7]``, see :class:`~lightning_sphere.measurement.layout.Factor`.
        """
        gradients = [parameter.grad for parameter in self._parameters]
        fields = {Field.GRADIENT: gradients, Field.MOMENTUM: momenta, Field.SECOND_MOMENT: moments}
        self._launch(Sweep.WHOLE, row, self._wanted, fields, factors)

    def pair(self, then: Sequence[Tensor | None], out: Tensor) -> None:
        """Write ``<x0, x0>, <x0, E>, <E, E>`` into ``[3, segments]``, ``E`` being the weights less ``x0``.

        Args:
            then: ``x0`` of each slot, where the weights are; NaN results where it is ``None``.
            out: of the ring's precision.
        """
        self._launch(Sweep.PAIR, out, _PAIR, {Field.OTHER: then})

    def asked(
        self,
        out: Tensor,
        kept: Kept,
        gradients: Sequence[Tensor | None],
        momenta: Sequence[Tensor | None],
        moments: Sequence[Tensor | None],
        factors: Tensor,
    ) -> None:
        """Write the sums of :data:`~lightning_sphere.measurement.asked.ASKED` into ``[4, segments]``.

        Args:
            out: of the ring's precision.
            kept: the weights before the step.
            gradients: those that the optimizer used.
            momenta: its momentum.
            moments: its second moment.
            factors: as :meth:`at_once` takes them.
        """
        fields = {
            Field.OTHER: kept.copies,
            Field.GRADIENT: gradients,
            Field.MOMENTUM: momenta,
            Field.SECOND_MOMENT: moments,
        }
        self._launch(Sweep.ASKED, out, _ASKED, fields, factors)

    def _launch(
        self,
        sweep: Sweep,
        out: Tensor,
        wanted: dict[Total, int],
        fields: Mapping[Field, Sequence[Tensor | None]],
        factors: Tensor | None = None,
    ) -> None:
        addresses = np.zeros((len(self._like), len(Field)), dtype=np.int64)
        codes = np.zeros((len(self._like), len(Field)), dtype=np.int32)
        alive = []
        everything: dict[Field, Sequence[Tensor | None]] = {Field.WEIGHT: self._parameters, **fields}
        for field, tensors in everything.items():
            column = self._column(field, tensors)
            addresses[:, field], codes[:, field] = column.addresses, column.codes
            alive.append(column)
        sources = Sources(torch.from_numpy(addresses), torch.from_numpy(codes), factors)
        try:
            self._kernel.launch(sweep, sources, out, wanted)
        except Exception as error:
            if self._launched or self.plan.device.type != "cuda":
                raise
            raise KernelError(f"{type(error).__name__}: {error}") from error
        self._launched = True

    def _column(self, field: Field, tensors: Sequence[Tensor | None]) -> _Column:
        """Where some tensors are, converted where a kernel cannot read them as they are."""
        last = self._columns.get(field)
        if last is not None and last.still(tensors):
            return last
        readable = [
            tensor if tensor is None or like.fits(tensor) else like.made_to_fit(tensor)
            for tensor, like in zip(tensors, self._like, strict=True)
        ]
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in readable]
        codes = [0 if tensor is None else _CODE[tensor.dtype] for tensor in readable]
        found = _Column(readable, addresses, codes, [0 if tensor is None else tensor.nbytes for tensor in readable])
        if field in _LASTING and all(map(operator.is_, readable, tensors)):
            self._columns[field] = found
        return found


@dataclass(frozen=True)
class _Column:
    """One field of the tables, an entry per slot."""

    tensors: Sequence[Tensor | None]
    """Held while a kernel may read them."""
    addresses: list[int]
    codes: list[int]
    sizes: list[int]
    """In bytes: other data may have come to the same address."""

    def still(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these are the same tensors, in the same place."""
        return (
            all(map(operator.is_, self.tensors, tensors))
            and self.addresses == [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
            and self.sizes == [0 if tensor is None else tensor.nbytes for tensor in tensors]
        )


class KeptWeights:
    """The weights before a step, one copy per slot in its parameter's layout."""

    def __init__(self, plan: Plan, copies: Sequence[Tensor]) -> None:
        self._plan, self.copies = plan, copies

    def whole(self, index: int) -> Tensor:
        """Those of a slot, in the parameter's shape and dtype."""
        return self.copies[index]

    def piece(self, index: int, piece: Piece, rows: slice, bucket: int) -> Tensor:
        """Those of a piece, ``[segments, length]``."""
        return piece.of(self._plan.slots[index].as_rows(self.copies[index]))


class _Like:
    """What a kernel must find of every tensor of one slot: the place and layout that its parameter had."""

    def __init__(self, parameter: Tensor, dtypes: Collection[torch.dtype]) -> None:
        self._dtypes = dtypes
        self._parameter, self._device, self._entries = parameter, parameter.device, parameter.numel()
        self._contiguous, self._strides = parameter.is_contiguous(), parameter.stride()
        self._dtype = parameter.dtype

    def fits(self, tensor: Tensor) -> bool:
        """Whether a kernel can read a tensor as it is."""
        return (
            (tensor.dtype is self._dtype or (tensor is not self._parameter and tensor.dtype in self._dtypes))
            and tensor.layout is torch.strided
            and not tensor.is_neg()
            and (tensor.is_contiguous() if self._contiguous else tensor.stride() == self._strides)
            and tensor.numel() == self._entries
            and tensor.device == self._device
        )

    def made_to_fit(self, tensor: Tensor) -> Tensor:
        """A copy that fits.

        Raises:
            MovedError: for the parameter itself.
        """
        if tensor is self._parameter:
            raise MovedError("a weight has another device, dtype or memory layout than before")
        tensor = tensor.detach().to_dense()
        dtype = tensor.dtype if tensor.dtype in self._dtypes else torch.float32
        like = torch.empty_like(self._parameter.detach(), dtype=dtype, device=self._device)
        return like.copy_(tensor.expand(self._parameter.shape))
