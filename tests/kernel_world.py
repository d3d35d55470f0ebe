"""Tensors in a guarded memory, a plan of them, and the sums of every sweep, formed one by one in extended precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.measurement.host_kernel import HostKernel
from lightning_sphere.measurement.layout import DTYPES, Factor, Field, Sources, Sweep, Total, layout_of
from lightning_sphere.measurement.plan import Plan

MADE = {
    Sweep.BEFORE: (Total.XX, Total.GX, Total.GG),
    Sweep.AFTER: (Total.XD, Total.DD, Total.V, Total.ROOT_V, Total.AA, Total.AX, Total.AD),
    Sweep.WHOLE: tuple(Total)[: Total.P_SIZE],
    Sweep.PAIR: (Total.XX, Total.XD, Total.DD),
    Sweep.ASKED: (Total.P_SIZE, Total.P_UNMOVED, Total.PP, Total.ERROR),
}
UNTOUCHED = 77.0


@dataclass(frozen=True)
class Case:
    """One tensor of a plan, and what stands at each of its addresses."""

    shape: tuple[int, ...]
    axis: int = 0
    blocks: int = 1
    channels_last: bool = False
    dtypes: Sequence[torch.dtype] = (torch.float32,) * len(Field)
    absent: frozenset[Field] = frozenset()
    factors: Sequence[float] = (0.9, 0.3, 0.02, 0.01, 1.3, 0.05, 0.001)

    @property
    def turned(self) -> bool:
        """Whether the entries of a block have another order in memory than along the rows of its matrix."""
        return self.channels_last or (self.axis > 0 and self.blocks < self.shape[self.axis])


@dataclass
class World:
    """The tensors of some cases, each within a larger memory, and the plan of their weights."""

    cases: Sequence[Case]
    seed: int = 0
    memories: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.tensors = [[self._tensor(case, kind, generator) for kind in Field] for case in self.cases]
        for case, tensors in zip(self.cases, self.tensors, strict=True):
            if case.dtypes[Field.WEIGHT] == case.dtypes[Field.OTHER]:  # some weights do not move
                tensors[Field.OTHER].copy_(torch.where(tensors[Field.GRADIENT] > 1, *tensors[:2]))
        names = [str(number) for number in range(len(self.cases))]
        layers = [
            ScaleGroup(name, (GroupPart(name, axis=case.axis),), blocks=case.blocks, kind="group")
            for name, case in zip(names, self.cases, strict=True)
        ]
        parameters = {name: nn.Parameter(tensors[0]) for name, tensors in zip(names, self.tensors, strict=True)}
        self.plan = Plan(layers, parameters, dict.fromkeys(names, 0))

    def _tensor(self, case: Case, kind: Field, generator: torch.Generator) -> Tensor:
        """Random numbers with something else before and after them in memory."""
        shape = case.shape
        size = int(np.prod(shape))
        guard = torch.inf if kind == Field.OTHER else torch.nan
        memory = torch.full((size + 40,), guard, dtype=case.dtypes[kind])
        order = (0, 2, 3, 1) if case.channels_last else tuple(range(len(shape)))
        tensor = memory[20 : 20 + size].view([shape[d] for d in order]).permute(np.argsort(order).tolist())
        tensor.copy_(torch.randn(shape, generator=generator))
        self.memories.append(memory)
        return tensor.abs_() if kind == Field.SECOND_MOMENT else tensor

    def tensor(self, slot: int, kind: Field) -> Tensor | None:
        number = int(self.plan.slots[slot].name)
        return None if kind in self.cases[number].absent else self.tensors[number][kind]

    def sources(self) -> Sources:
        found = [[self.tensor(slot, kind) for kind in Field] for slot in range(len(self.plan.slots))]
        codes = [[0 if t is None else DTYPES.index(t.dtype) for t in row] for row in found]
        factors = [list(self.cases[int(slot.name)].factors) for slot in self.plan.slots]
        return Sources(
            torch.tensor([[0 if t is None else t.data_ptr() for t in row] for row in found]).reshape(-1, len(Field)),
            torch.tensor(codes, dtype=torch.int32).reshape(-1, len(Field)),
            torch.tensor(factors, dtype=torch.float64).reshape(-1, len(Factor)),
        )

    def copied(self) -> list[Tensor]:
        """All memory as it has to be after the weights were copied to OTHER."""
        expected = [memory.clone() for memory in self.memories]
        for number in range(len(self.cases)):
            weight, other = (number * len(Field) + kind for kind in (Field.WEIGHT, Field.OTHER))
            if self.memories[weight].dtype == self.memories[other].dtype:
                expected[other][20:-20] = self.memories[weight][20:-20]
        return expected

    def measured(self, sweep: Sweep, wanted: Sequence[Total] = tuple(Total), level: int | None = None) -> Tensor:
        """``[totals, segments]``; what is not wanted, or not made, must stay untouched."""
        layout = layout_of(self.plan)
        assert layout is not None
        out = torch.full((len(Total) + 4, self.plan.segments), UNTOUCHED, dtype=torch.float64)
        rows = {total: len(Total) + 1 - total for total in wanted}
        sources = self.sources()
        expected = self.memories
        if sweep == Sweep.BEFORE:
            expected = self.copied()
            sources.addresses[sources.dtypes[:, Field.WEIGHT] != sources.dtypes[:, Field.OTHER], Field.OTHER] = 0
        expected = [bits(memory).clone() for memory in expected]
        HostKernel(layout, level).launch(sweep, sources, out, rows)
        assert all(torch.equal(bits(a), b) for a, b in zip(self.memories, expected, strict=True))
        written = [rows[total] for total in wanted if total in MADE[sweep]]
        assert (out[[row for row in range(len(out)) if row not in written]] == UNTOUCHED).all()
        return out[[rows.get(total, len(out) - 1) for total in Total]]

    def expected(self, sweep: Sweep, slot: int) -> tuple[dict[Total, npt.NDArray], dict[Total, npt.NDArray]]:
        """What each entry adds, ``[blocks, length]``, and its size as far as rounding is concerned."""
        rows = self.plan.slots[slot].as_rows
        none = np.longdouble(0)
        t = [None if (x := self.tensor(slot, k)) is None else rows(x).double().numpy().astype("g") for k in Field]
        w, other, g, p, v = t
        f = dict(zip(Factor, map(np.longdouble, self.cases[int(self.plan.slots[slot].name)].factors), strict=True))
        root = None if v is None else np.sqrt(v)
        b = np.longdouble(1) if root is None else f[Factor.ROOT] * root + f[Factor.OFFSET]
        a = f[Factor.OF_MOMENTUM] * (none if p is None else p) + f[Factor.OF_GRADIENT] * (none if g is None else g)
        big = abs(f[Factor.OF_MOMENTUM] * (none if p is None else p))
        big = big + abs(f[Factor.OF_GRADIENT] * (none if g is None else g))
        rate, shrink, of_weight = f[Factor.RATE], f[Factor.SHRINK], f[Factor.OF_WEIGHT]
        if sweep == Sweep.BEFORE:
            x = w
        elif sweep == Sweep.WHOLE:
            x = (w + rate * a / b) / (1 - rate * of_weight / b - shrink)
        else:
            x = other
        a, big = a + of_weight * x, big + abs(of_weight * x)
        step, big_step = -rate * a / b - shrink * x, abs(rate) * big / b + abs(shrink * x)
        d = step if sweep == Sweep.WHOLE else w - x
        big_d = big_step if sweep == Sweep.WHOLE else abs(d)
        unknown = np.full(w.shape, np.nan)
        still = d == 0
        sums = {
            Total.XX: (x * x, x * x), Total.XD: (x * d, abs(x) * big_d), Total.DD: (d * d, big_d**2),
            Total.GX: (unknown,) * 2 if g is None else (g * x, abs(g * x)),
            Total.GG: (unknown,) * 2 if g is None else (g * g, g * g),
            Total.V: (unknown,) * 2 if v is None else (v, v),
            Total.ROOT_V: (unknown,) * 2 if root is None else (root, root),
            Total.AA: (a * a, big * big), Total.AX: (a * x, abs(big * x)), Total.AD: (a * d, big * big_d),
            Total.P_SIZE: (abs(step), big_step),
            Total.P_UNMOVED: (np.where(still, abs(step), 0), np.where(still, big_step, 0)),
            Total.PP: (step * step, big_step**2), Total.ERROR: ((d - step) ** 2, (abs(d) + big_step) ** 2),
        }  # fmt: skip
        made = {total: (np.broadcast_to(s, w.shape), np.broadcast_to(m, w.shape)) for total, (s, m) in sums.items()}
        return {k: s for k, (s, _) in made.items()}, {k: m for k, (_, m) in made.items()}

    def check(self, sweep: Sweep, wanted: Sequence[Total] = tuple(Total), level: int | None = None) -> None:
        found = self.measured(sweep, wanted, level).numpy()
        for slot, pieces in enumerate(self.plan.segments_of_slot):
            case = self.cases[int(self.plan.slots[slot].name)]
            terms, sizes = self.expected(sweep, slot)
            for total in set(MADE[sweep]) & set(wanted):
                rounded = sweep == Sweep.AFTER and total == Total.ROOT_V and case.dtypes[4] != torch.float64
                tolerance = 2e-7 if rounded else 1e-13 if sweep != Sweep.WHOLE else 1e-12
                blocks = np.zeros(self.plan.slots[slot].blocks)
                for piece, span, _ in pieces:
                    np.add.at(blocks, np.array(piece.rows), found[total, span])
                    if case.turned and len(piece.columns) < self.plan.slots[slot].length:
                        continue  # which entries a part has follows their order in memory
                    part, size = (np.asarray(piece.of(m)).sum(1) for m in (terms[total], sizes[total]))
                    close(found[total, span], part, tolerance * size)
                close(blocks, terms[total].sum(1), tolerance * sizes[total].sum(1))


def bits(tensor: Tensor) -> Tensor:
    """As integers, so that NaN equals itself."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def close(found: npt.NDArray, expected: npt.NDArray, tolerance: npt.NDArray) -> None:
    with np.errstate(invalid="ignore"):
        same = (abs(found - expected) <= tolerance) | (found == expected) | (np.isnan(found) & np.isnan(expected))
    assert same.all(), (found, expected)
