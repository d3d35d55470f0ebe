"""The CUDA kernel against a float64 computation entry by entry: in Triton's interpreter here, and on a GPU if there is
one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton is not installed")

from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.measurement import sums
from lightning_sphere.measurement.cuda_kernel import MADE, CudaKernel, available, supported, supports
from lightning_sphere.measurement.cuda_programs import ABSENT, COLUMNS, LANES, MIXED, PART, programs_of
from lightning_sphere.measurement.layout import (
    DTYPES,
    Factor,
    Field,
    Layout,
    Sources,
    Sweep,
    Total,
    geometry_of,
    layout_of,
)
from lightning_sphere.measurement.plan import Plan, Slot

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")],
)
everywhere = pytest.mark.parametrize("device", [*["cpu"] * INTERPRETED, GPU])
"""Triton's interpreter must be chosen before Triton is imported: the tests of the kernel run in a process of their own,
which :func:`test_in_the_interpreter` starts."""

HALF = torch.float16
BF16 = torch.bfloat16


@dataclass
class Part:
    """One tensor, how it is cut, and what belongs to it."""

    shape: tuple[int, ...]
    axis: int = 0
    blocks: int = 1
    cut: int = 1 << 15
    """Entries of a segment at most."""
    channels_last: bool = False
    dtypes: dict[Field, torch.dtype] = field(default_factory=dict)
    absent: frozenset[Field] = frozenset()
    shift: int = 0
    """Elements by which the tensors miss their alignment."""
    weight: float = 1.0
    factors: tuple[float, ...] = (1.25, 0.5, 0.01, 1e-3, 1.1, 1e-8, 1e-4)


class Case:
    """Tensors with random entries, and all sums over them in float64."""

    def __init__(self, parts: Sequence[Part], device: str, seed: int = 0) -> None:
        self.parts, self.device = parts, torch.device(device)
        generator = np.random.default_rng(seed)
        self.tensors = [self._tensors(part, generator) for part in parts]
        slots = [
            Slot(str(n), nn.Parameter(tensors[Field.WEIGHT], requires_grad=False), 0, part.axis, part.blocks)
            for n, (part, tensors) in enumerate(zip(parts, self.tensors, strict=True))
        ]
        found = [geometry_of(slot) for slot in slots]
        geometry = torch.tensor([(g.inner, g.outer) for g in found if g is not None])
        self.segments = [
            (n, block, first, min(part.cut, slot.length - first))
            for n, (part, slot) in enumerate(zip(parts, slots, strict=True))
            for first in range(0, slot.length, part.cut)
            for block in range(part.blocks)
        ]
        self.layout = Layout(torch.tensor(self.segments), geometry)
        self.kernel = CudaKernel(self.layout, self.device)

    def _tensors(self, part: Part, generator: np.random.Generator) -> dict[Field, Tensor]:
        size = {Field.WEIGHT: 1.0, Field.OTHER: 1.0, Field.GRADIENT: 1e-3, Field.MOMENTUM: 1e-3}
        values = {name: generator.normal(0, scale, part.shape) for name, scale in size.items()}
        values[Field.OTHER] *= part.weight
        values[Field.WEIGHT] = values[Field.OTHER] + 1e-3 * values[Field.WEIGHT]
        values[Field.WEIGHT] = np.where(generator.random(part.shape) < 0.1, values[Field.OTHER], values[Field.WEIGHT])
        values[Field.SECOND_MOMENT] = (1e-3 * (0.3 + np.abs(generator.normal(size=part.shape)))) ** 2
        found = {}
        for name, value in values.items():
            if name in part.absent:
                continue
            dtype = part.dtypes.get(name, torch.float32)
            room = torch.full((part.shift + np.size(value) + 16,), torch.nan, dtype=dtype, device=self.device)
            tensor = room[part.shift : part.shift + np.size(value)].view(part.shape)
            if part.channels_last:
                n, c, h, w = part.shape
                tensor = tensor.view(n, h, w, c).permute(0, 3, 1, 2)
            found[name] = tensor.copy_(torch.from_numpy(np.asarray(value)))
        return found

    def sources(self, *without: Field, factors: bool = True, other: str = "") -> Sources:
        addresses = torch.zeros(len(self.parts), len(Field), dtype=torch.int64)
        dtypes = torch.zeros(len(self.parts), len(Field), dtype=torch.int32)
        for n, tensors in enumerate(self.tensors):
            for name, tensor in tensors.items():
                if name not in without:
                    addresses[n, name] = tensor.data_ptr()
                    dtypes[n, name] = DTYPES.index(tensor.dtype)
        numbers = torch.tensor([part.factors for part in self.parts], dtype=torch.float64)
        return Sources(addresses, dtypes, numbers.to(other or "cpu") if factors else None)

    def launch(self, sweep: Sweep, sources: Sources | None = None, wanted: Sequence[Total] | None = None) -> Tensor:
        """Make a sweep; rows of the result are those of all sums, then one that nobody may touch."""
        out = torch.full((len(Total) + 1, len(self.segments)), 77.0, dtype=torch.float64, device=self.device)
        rows = {total: int(total) for total in (Total if wanted is None else wanted)}
        self.kernel.launch(sweep, self.sources() if sources is None else sources, out, rows)
        return out.cpu()

    def expected(self, sweep: Sweep) -> tuple[np.ndarray, np.ndarray]:
        """All sums in float64, and the size that an error is compared with, ``[totals, segments]``."""
        sums = np.full((len(Total), len(self.segments)), np.nan)
        sizes = np.full((len(Total), len(self.segments)), np.nan)
        for column, (n, block, first, count) in enumerate(self.segments):
            part = self.parts[n]
            where = np.arange(part.shape[part.axis]) // (part.shape[part.axis] // part.blocks) if part.shape else 0
            shape = [-1 if d == part.axis else 1 for d in range(len(part.shape))]
            blocks = np.broadcast_to(np.reshape(where, shape), part.shape)
            blocks = in_memory(torch.from_numpy(blocks.copy()), part.channels_last)
            mine = np.flatnonzero(blocks == block)[first : first + count]
            at = {
                name: in_memory(tensor.cpu().double(), part.channels_last)[mine]
                for name, tensor in self.tensors[n].items()
            }
            sums[:, column], sizes[:, column] = totals(sweep, at, part.factors)
        return sums, sizes


def in_memory(tensor: Tensor, channels_last: bool) -> np.ndarray:
    """The entries in the order of the memory."""
    return np.ascontiguousarray((tensor.permute(0, 2, 3, 1) if channels_last else tensor).numpy()).reshape(-1)


def totals(sweep: Sweep, at: dict[Field, np.ndarray], factors: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    of = dict(zip(Factor, factors, strict=True))
    w, g, v = at[Field.WEIGHT], at.get(Field.GRADIENT), at.get(Field.SECOND_MOMENT)
    zero = np.zeros_like(w)
    a = of[Factor.OF_MOMENTUM] * at.get(Field.MOMENTUM, zero) + of[Factor.OF_GRADIENT] * (zero if g is None else g)
    b = zero + 1 if v is None else of[Factor.ROOT] * np.sqrt(v) + of[Factor.OFFSET]
    rate, shrink, of_weight = of[Factor.RATE], of[Factor.SHRINK], of[Factor.OF_WEIGHT]
    if sweep is Sweep.BEFORE:
        x = w
    elif sweep is Sweep.WHOLE:
        x = (w + rate * a / b) / (1 - shrink - rate * of_weight / b)
    else:
        x = at[Field.OTHER]
    a = a + of_weight * x
    p = -rate * a / b - shrink * x
    d = p if sweep is Sweep.WHOLE else w - x
    nan = np.full_like(w, np.nan)
    g, root = (nan if g is None else g), (nan if v is None else np.sqrt(v))
    one = np.ones_like(w)
    pairs = {
        Total.XX: (x, x), Total.GX: (g, x), Total.GG: (g, g), Total.XD: (x, d), Total.DD: (d, d), Total.V: (root, root),
        Total.ROOT_V: (root, one), Total.AA: (a, a), Total.AX: (a, x), Total.AD: (a, d), Total.P_SIZE: (np.abs(p), one),
        Total.P_UNMOVED: (np.abs(p) * (d == 0), one), Total.PP: (p, p), Total.ERROR: (d - p, d - p),
    }  # fmt: skip
    sums = np.array([np.dot(*pairs[total]) for total in Total])
    sizes = np.array([np.linalg.norm(pairs[total][0]) * np.linalg.norm(pairs[total][1]) for total in Total])
    sizes[Total.ERROR] = np.dot(np.abs(d) + np.abs(p), np.abs(d) + np.abs(p))
    return sums, sizes


CANCELLING = {Total.GX, Total.XD}
EXACT = {*CANCELLING, Total.XX, Total.GG, Total.DD, Total.V}
"""Products of what is read (or exact differences of it). The others are of what is computed in float32 itself."""


def limit(total: Total, sweep: Sweep, count: np.ndarray) -> np.ndarray:
    """The error that a sum over so many entries may have, relative to ``|a| |b|``."""
    if total in EXACT and sweep is not Sweep.WHOLE:
        return np.minimum(1.3e-7, (3e-7 if total in CANCELLING else 8e-7) / np.sqrt(count))
    return np.full(count.shape, 2e-6 if sweep in (Sweep.WHOLE, Sweep.ASKED) else 4e-7)


def check(case: Case, sweep: Sweep, sources: Sources | None = None) -> None:
    """Compare all sums of a sweep with the oracle's; rows that it does not make must be untouched."""
    got = case.launch(sweep, sources).numpy()
    sums, sizes = case.expected(sweep)
    for total in Total:
        if total not in MADE[sweep]:
            assert (got[total] == 77.0).all(), total.name
            continue
        unknown = np.isnan(sums[total])
        assert (np.isnan(got[total]) == unknown).all(), total.name
        error = np.abs(got[total] - sums[total]) / np.where(sizes[total] > 0, sizes[total], 1)
        bad = ~unknown & ~(error <= limit(total, sweep, np.array([count for *_, count in case.segments])))
        assert not bad.any(), (total.name, error[bad], np.array(case.segments)[bad])
    assert (got[-1] == 77.0).all()


MANY = [
    Part((5, 9), blocks=5),
    Part((70, 3), blocks=70),
    Part((9, 16, 2, 2), blocks=9),
    Part((6, 147), blocks=6),
    Part((3, 576), blocks=3),
    Part((3, 577), blocks=3),
    Part((2, 2300), blocks=2),
    Part((4500,), cut=2048),
    Part((7,)),
    Part((1,)),
    Part((), blocks=1),
    Part((4, 10), blocks=2),
]
RUNS = [
    Part((6, 5, 3, 3), axis=1, blocks=5),
    Part((7, 20, 3), axis=1, blocks=20),
    Part((40, 12), axis=1, blocks=12),
    Part((4, 6, 300), axis=1, blocks=3),
    Part((5, 8, 4, 4), axis=1, blocks=8),
    Part((3, 4, 300), axis=1, blocks=4, cut=500),
    Part((6, 5, 3, 3), axis=1, blocks=5, cut=25),
    Part((4, 3, 20), axis=2, blocks=20),
    Part((6, 5, 3, 3), blocks=6, channels_last=True),
    Part((6, 5, 3, 3), axis=1, blocks=5, channels_last=True),
    Part((20, 64, 2, 2), axis=1, blocks=64, channels_last=True, cut=50),
]


def some(dtype: torch.dtype) -> dict[Field, torch.dtype]:
    return dict.fromkeys(Field, dtype)


@pytest.mark.skipif(INTERPRETED, reason="this process is the one it starts")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-m", "not gpu and not slow"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@everywhere
@pytest.mark.parametrize("sweep", list(Sweep))
@pytest.mark.parametrize("parts", [MANY, RUNS], ids=["rows", "runs"])
def test_all_sums(device: str, sweep: Sweep, parts: list[Part]) -> None:
    check(Case(parts, device), sweep)


@everywhere
@pytest.mark.parametrize("sweep", list(Sweep))
def test_dtypes_of_all_kinds_and_mixed(device: str, sweep: Sweep) -> None:
    shape = {"shape": (3, 68), "blocks": 3}
    for dtype in (BF16, HALF):
        check(Case([Part(**shape, dtypes=some(dtype))], device), sweep)
    mixed = [
        Part(**shape, dtypes=some(HALF)),
        Part(**shape, dtypes={**some(BF16), Field.MOMENTUM: torch.float32, Field.SECOND_MOMENT: torch.float32}),
        Part(**shape, dtypes={Field.GRADIENT: HALF, Field.MOMENTUM: BF16}),
        Part((5, 7), blocks=5, dtypes=some(BF16), shift=1),
    ]
    check(Case(mixed, device), sweep)


@everywhere
@pytest.mark.parametrize("sweep", list(Sweep))
def test_absent_tensors(device: str, sweep: Sweep) -> None:
    some_absent = [
        Part((4, 20), blocks=4, absent=frozenset({Field.GRADIENT})),
        Part((4, 20), blocks=4, absent=frozenset({Field.MOMENTUM})),
        Part((4, 20), blocks=4, absent=frozenset({Field.SECOND_MOMENT})),
        Part((4, 20), blocks=4),
    ]
    check(Case(some_absent, device), sweep)
    nowhere = frozenset({Field.GRADIENT, Field.MOMENTUM, Field.SECOND_MOMENT})
    check(Case([Part((4, 20), blocks=4, absent=nowhere)], device), sweep)


@everywhere
def test_without_an_offset_nothing_comes_from_beyond_a_row(device: str) -> None:
    """Where nothing is read ``a / b`` is 0 / 0."""
    factors = (1.0, 0.0, 0.0, 1e-3, 1.0, 0.0, 0.0)
    for sweep in (Sweep.WHOLE, Sweep.ASKED):
        check(Case([Part((3, 21), blocks=3, factors=factors)], device), sweep)


@everywhere
@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_tensors_that_are_not_aligned(device: str, shift: int) -> None:
    for dtype in (torch.float32, BF16):
        case = Case([Part((3, 64), blocks=3, shift=shift, dtypes=some(dtype))], device)
        check(case, Sweep.BEFORE)
        check(case, Sweep.AFTER)


@everywhere
@pytest.mark.parametrize("wanted", [{Total.XD, Total.DD}, {Total.V}, {Total.AD, Total.XD}, {Total.GG, Total.XX}])
def test_only_wanted_sums_are_written(device: str, wanted: set[Total]) -> None:
    case = Case([Part((3, 20), blocks=3)], device)
    for sweep in (Sweep.BEFORE, Sweep.AFTER, Sweep.WHOLE):
        every, some_sums = case.launch(sweep), case.launch(sweep, wanted=sorted(wanted))
        for total in Total:
            same = every[total] if total in wanted & set(MADE[sweep]) else torch.full_like(every[total], 77.0)
            torch.testing.assert_close(some_sums[total], same, rtol=1e-6, atol=0)


@everywhere
def test_sums_go_to_the_rows_that_were_named(device: str) -> None:
    case = Case([Part((3, 20), blocks=3)], device)
    room = torch.full((9, 5), 77.0, dtype=torch.float64, device=device)
    out = room[::2, 1:4]
    case.kernel.launch(Sweep.PAIR, case.sources(), out, {Total.XX: 3, Total.XD: 0, Total.GG: 1})
    known = case.launch(Sweep.PAIR)
    assert torch.equal(out[3].cpu(), known[Total.XX])
    assert torch.equal(out[0].cpu(), known[Total.XD])
    untouched = torch.ones_like(room, dtype=torch.bool)
    untouched[::2, 1:4][torch.tensor([0, 3])] = False
    assert (room[untouched] == 77.0).all()


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, BF16, HALF])
def test_the_copy_is_made_bit_for_bit_and_nothing_beside_it(device: str, dtype: torch.dtype) -> None:
    parts = [
        Part((3, 64), blocks=3, dtypes=some(dtype)),
        Part((5, 7), blocks=5, dtypes=some(dtype), shift=1),
        Part((4, 6, 3), axis=1, blocks=6, dtypes=some(dtype), cut=7),
        Part((3, 5), blocks=3, dtypes=some(dtype), absent=frozenset({Field.OTHER})),
    ]
    case = Case(parts, device)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    info = torch.iinfo(bits)
    generator = torch.Generator().manual_seed(0)
    for tensors in case.tensors:  # all there are: NaN of all kinds, infinity, denormal numbers, -0
        weight = tensors[Field.WEIGHT]
        patterns = torch.randint(info.min, info.max, weight.shape, generator=generator, dtype=bits)
        patterns.view(-1)[:4] = torch.tensor([info.min, 1, 0x7F81 if bits == torch.int16 else 0x7F800001, 0])
        weight.view(bits).copy_(patterns)
    rooms = [tensors[Field.OTHER].untyped_storage() for tensors in case.tensors[:3]]
    before = [torch.tensor([], dtype=dtype, device=device).set_(room).view(bits).clone() for room in rooms]
    weights = [tensors[Field.WEIGHT].view(bits).clone() for tensors in case.tensors]
    for wanted in ([Total.XX, Total.GX, Total.GG], []):
        case.launch(Sweep.BEFORE, wanted=wanted)
        for n, tensors in enumerate(case.tensors):
            assert torch.equal(tensors[Field.WEIGHT].view(bits), weights[n])
            if Field.OTHER in tensors:
                assert torch.equal(tensors[Field.OTHER].view(bits), weights[n])
                after = torch.tensor([], dtype=dtype, device=device).set_(rooms[n]).view(bits)
                start, size = parts[n].shift, weights[n].numel()
                assert torch.equal(after[:start], before[n][:start])
                assert torch.equal(after[start + size :], before[n][start + size :])
                tensors[Field.OTHER].zero_()


@everywhere
def test_special_values_stay_in_their_row(device: str) -> None:
    case = Case([Part((6, 40), blocks=6)], device)
    gradient = case.tensors[0][Field.GRADIENT]
    clean = case.launch(Sweep.BEFORE)
    gradient[1, 3], gradient[2, 39], gradient[4] = torch.nan, torch.inf, 0
    got = case.launch(Sweep.BEFORE)
    assert got[Total.GG, 1].isnan()
    assert got[Total.GG, 2] == torch.inf
    assert got[Total.GG, 4] == 0
    assert got[Total.GX, 4] == 0
    assert torch.equal(got[:, [0, 3, 5]], clean[:, [0, 3, 5]])
    assert torch.equal(got[Total.XX], clean[Total.XX])


@everywhere
@pytest.mark.parametrize("size", [1e-24, 1e9])
def test_squares_of_tiny_and_huge_gradients(device: str, size: float) -> None:
    case = Case([Part((4, 100), blocks=4)], device)
    for tensors in case.tensors:
        tensors[Field.GRADIENT].mul_(size / 1e-3)
        tensors[Field.MOMENTUM].mul_(size / 1e-3)
        tensors[Field.OTHER].mul_(size * 1e-2)
        tensors[Field.WEIGHT].mul_(size * 1e-2)
    got, (sums, sizes) = case.launch(Sweep.BEFORE).numpy(), case.expected(Sweep.BEFORE)
    for total in (Total.GG, Total.GX):
        assert (np.abs(got[total] - sums[total]) <= (1e-7 if size > 1 or total is Total.GG else 1) * sizes[total]).all()
    got, (sums, sizes) = case.launch(Sweep.PAIR).numpy(), case.expected(Sweep.PAIR)
    assert (np.abs(got[Total.DD] - sums[Total.DD]) <= 1e-7 * sizes[Total.DD]).all()


@everywhere
def test_the_same_numbers_each_time(device: str) -> None:
    case = Case([*MANY[3:8], *RUNS[:3]], device)
    for sweep in (Sweep.BEFORE, Sweep.AFTER):
        assert torch.equal(case.launch(sweep), case.launch(sweep))


@everywhere
def test_tables_are_sent_only_when_they_changed(device: str) -> None:
    case = Case([Part((3, 20), blocks=3), Part((5,))], device)
    sources = case.sources()
    case.launch(Sweep.AFTER, sources)
    assert case.kernel.uploads == 3  # addresses, factors, rows
    case.launch(Sweep.AFTER, case.sources())
    assert case.kernel.uploads == 3
    assert sources.factors is not None
    sources.factors[1, int(Factor.RATE)] = torch.nan
    case.launch(Sweep.AFTER, sources)
    assert case.kernel.uploads == 4
    case.launch(Sweep.AFTER, sources)
    assert case.kernel.uploads == 4
    case.tensors[1][Field.WEIGHT] = torch.full((5,), 2.0, device=device)
    moved = case.sources()
    sources.addresses.copy_(moved.addresses)  # in place: what the kernel remembers is a copy
    got = case.launch(Sweep.PAIR, Sources(sources.addresses, sources.dtypes))
    sums, _ = case.expected(Sweep.PAIR)
    np.testing.assert_allclose(got[Total.DD], sums[Total.DD], rtol=1e-6)
    uploads = case.kernel.uploads
    case.launch(Sweep.AFTER, sources)
    assert case.kernel.uploads == uploads + 1


@everywhere
def test_what_it_cannot_do_is_said(device: str) -> None:
    case = Case([Part((3, 20), blocks=3)], device)
    with pytest.raises(ValueError, match="needs factors"):
        case.launch(Sweep.WHOLE, case.sources(factors=False))
    case.launch(Sweep.AFTER, case.sources(factors=False), [Total.XD, Total.DD, Total.V])
    wide = Case([Part((3, 20), blocks=3, dtypes={Field.MOMENTUM: torch.float64})], device)
    assert supports({torch.float32, BF16, HALF})
    assert not supports({torch.float32, torch.float64})
    assert supported(case.sources())
    assert not supported(wide.sources())
    for _ in range(2):
        with pytest.raises(ValueError, match="float32, bfloat16 and float16"):
            wide.launch(Sweep.AFTER)
    assert supported(wide.sources(Field.MOMENTUM))
    converted = Case([Part((3, 20), blocks=3, dtypes={Field.OTHER: HALF})], device)
    with pytest.raises(ValueError, match="copies without a change"):
        converted.launch(Sweep.BEFORE)
    with pytest.raises(ValueError, match="float64 of shape"):
        case.kernel.launch(Sweep.BEFORE, case.sources(), torch.zeros(3, 3, device=device), {Total.XX: 0})
    with pytest.raises(ValueError, match="has 2 rows"):
        case.kernel.launch(
            Sweep.BEFORE, case.sources(), torch.zeros(2, 3, device=device, dtype=torch.float64), {Total.XX: 2}
        )


def random_layout(generator: np.random.Generator) -> tuple[Layout, np.ndarray]:
    """Some tensors' cuts; and how many entries of each must be read."""
    geometry, segments, sizes = [], [], []
    for slot in range(int(generator.integers(1, 6))):
        blocks, inner, runs = (int(2 ** generator.uniform(0, top)) for top in (8, 10, 6))
        geometry.append((inner, 0 if runs == 1 else inner * blocks))
        cut = int(2 ** generator.uniform(3, 16))
        segments += [
            (slot, block, first, min(cut, inner * runs - first))
            for first in range(0, inner * runs, cut)
            for block in range(blocks)
        ]
        sizes.append(blocks * inner * runs)
    return Layout(torch.tensor(segments), torch.tensor(geometry)), np.array(sizes)


@pytest.mark.parametrize("seed", range(30))
def test_programs_have_each_segment_once(seed: int) -> None:
    layout, sizes = random_layout(np.random.default_rng(seed))
    table = programs_of(layout).numpy()
    assert table.shape[1] == COLUMNS
    of = np.concatenate([np.arange(start, start + rows) for start, rows in table[:, 1:3]])
    assert sorted(of) == list(range(len(layout.segments)))
    segments, geometry = layout.segments.numpy(), layout.geometry.numpy()
    read = np.zeros(len(sizes), dtype=np.int64)
    for slot, start, rows, base, count, left_out, runs, length, inner, outer, kind in table:
        assert (segments[start : start + rows, 0] == slot).all()
        assert (segments[start : start + rows, 3] == count).all()
        assert tuple(geometry[slot]) == (inner, outer)
        first = segments[start, 2]
        where = [base + run * outer + unit for run in range(runs) for unit in range(length)]
        where = where[left_out : left_out + count]
        at = np.arange(first, first + count)
        assert np.array_equal(where, segments[start, 1] * inner + at // inner * outer + at % inner)
        assert 1 << (kind & 15) <= LANES
        assert (kind >> 4) & 15 <= kind & 15
        assert not (kind >> 10) & 1 or not (inner | outer | count | base | left_out | length) & 3
        read[slot] += rows * count
    assert (read == sizes).all()


def test_long_rows_and_gaps_beyond_32_bits() -> None:
    blocks, inner = 3, 2**30
    layout = Layout(
        torch.tensor([(0, b, f, 100) for f in (0, inner + 7) for b in range(blocks)]),
        torch.tensor([(inner, inner * blocks)]),
    )
    for _, _, rows, base, *_, kind in programs_of(layout).tolist():
        assert rows == 3 or base % inner == 7
        assert kind & 15 == 7


def test_where_it_is_available() -> None:
    assert available(torch.device("cpu"))[0] == INTERPRETED
    assert available(torch.device("mps")) == (False, available(torch.device("mps"))[1])
    assert available(torch.device("meta"))[1]


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_one_launch_and_no_synchronization() -> None:
    case = Case([*MANY, *RUNS], "cuda")
    out = torch.zeros(len(Total), len(case.segments), dtype=torch.float64, device="cuda")
    rows = {total: int(total) for total in Total}
    device_factors = case.sources(other="cuda")
    for sweep in Sweep:
        case.kernel.launch(sweep, case.sources(), out, rows)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for sweep in Sweep:
            case.kernel.launch(sweep, device_factors, out, rows)
        changed = case.sources()
        assert changed.factors is not None
        changed.factors[0, 0] += 1
        case.kernel.launch(Sweep.AFTER, changed, out, rows)  # with an upload
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for sweep in Sweep:
            case.kernel.launch(sweep, device_factors, out, rows)
        torch.cuda.synchronize()
    launched = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launched) == len(Sweep), launched
    assert all("sphere" in name for name in launched)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_within_a_graph() -> None:
    case = Case([*MANY, *RUNS], "cuda")
    out = torch.zeros(len(Total), len(case.segments), dtype=torch.float64, device="cuda")
    rows, sources = {total: int(total) for total in MADE[Sweep.BEFORE]}, case.sources()
    case.kernel.launch(Sweep.BEFORE, sources, out, rows)
    uploads, expected = case.kernel.uploads, out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.kernel.launch(Sweep.BEFORE, sources, out, rows)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
    assert case.kernel.uploads == uploads


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_against_the_torch_path() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 7), nn.Conv2d(64, 128, 3), nn.Linear(900, 512)).cuda()
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    layers = [
        ScaleGroup(name, (GroupPart(name, 0),), parameter.shape[0], "filter") for name, parameter in parameters.items()
    ]
    plan = Plan(layers, parameters, dict.fromkeys(parameters, 0))
    layout = layout_of(plan)
    assert layout is not None
    row = torch.zeros(len(Total), plan.segments, dtype=torch.float64, device="cuda")
    sums.before_step(plan, row, sums.Scratch(plan))
    expected, kernel = row.clone(), CudaKernel(layout, torch.device("cuda"))
    addresses = torch.zeros(len(plan.slots), len(Field), dtype=torch.int64)
    for n, slot in enumerate(plan.slots):
        assert slot.parameter.grad is not None
        addresses[n, Field.WEIGHT] = slot.parameter.data_ptr()
        addresses[n, Field.GRADIENT] = slot.parameter.grad.data_ptr()
    sources = Sources(addresses, torch.zeros(addresses.shape, dtype=torch.int32))
    kernel.launch(Sweep.BEFORE, sources, row, {Total.XX: 0, Total.GX: 1, Total.GG: 2})
    size = (expected[0] * expected[2]).sqrt()
    assert ((row[1] - expected[1]).abs() <= 1.3e-7 * size).all()
    torch.testing.assert_close(row[[0, 2]], expected[[0, 2]], rtol=1.3e-7, atol=0)


COMPILED = {
    "BEFORE": (Sweep.BEFORE, (0, 0, 0, ABSENT, ABSENT), 64),
    "BEFORE mixed": (Sweep.BEFORE, (MIXED, MIXED, MIXED, ABSENT, ABSENT), 64),
    "AFTER": (Sweep.AFTER, (1, 1, ABSENT, 0, 0), 96),
    "WHOLE": (Sweep.WHOLE, (0, ABSENT, 0, 0, 0), 96),
    "PAIR": (Sweep.PAIR, (0, 0, ABSENT, ABSENT, ABSENT), 64),
    "ASKED": (Sweep.ASKED, (0, 0, MIXED, 0, 0), 96),
}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", COMPILED)
def test_it_compiles_without_spilling_registers(name: str, capability: int, tmp_path: Path) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lightning_sphere.measurement.triton_sweep import sphere_sweep

    sweep, codes, registers = COMPILED[name]
    values = {
        "SWEEP": int(sweep), "WANTED": sum(1 << total for total in MADE[sweep]),
        **{f"CODE_{letter}": code for letter, code in zip("WOGPV", codes, strict=True)},
        "BASE": int(MADE[sweep][0]), "PARTS": -(-len(MADE[sweep]) // PART), "K": 2 if registers == 64 else 1,
    }  # fmt: skip
    kinds = {"programs": "*i64", "tables": "*i64", "factors": "*fp64", "places": "*i32", "out": "*fp64"}
    signature = {**kinds, "stride": "i64", **dict.fromkeys(values, "constexpr")}
    constants = {(sphere_sweep.arg_names.index(key),): value for key, value in values.items()}
    source = ASTSource(fn=sphere_sweep, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "maxnreg": registers, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert "ld.global.v4.b32" in compiled.asm["ptx"] or 1 in codes  # four entries of float32 at once
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("no cuobjdump")
    used = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found is not None
    assert (int(found[1]) <= registers, int(found[2])) == (True, 0), used
