"""The CPU's kernel against sums that are formed entry by entry in extended precision, from the tensors themselves."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_world import MADE, UNTOUCHED, Case, World, bits
from lightning_sphere.measurement import host_kernel
from lightning_sphere.measurement.host_kernel import HostKernel
from lightning_sphere.measurement.layout import DTYPES, Field, Sources, Sweep, Total, layout_of
from lightning_sphere.measurement.plan import CHUNK_ELEMENTS

LIBRARY = host_kernel.load()
needs_library = pytest.mark.skipif(LIBRARY is None, reason=host_kernel.reason() or "built")
LEVELS = range(LIBRARY.level + 1) if LIBRARY is not None else range(1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any shape, cut and mixture of dtypes; runs that are short and long."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 9, 17, 70]), max_size=4)))
    while np.prod(shape) > 20_000:
        shape = shape[1:]
    axis = draw(st.integers(0, max(0, len(shape) - 1)))
    size = shape[axis] if shape else 1
    blocks = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    wide = draw(st.sampled_from([DTYPES[:1], DTYPES[:3], DTYPES]))
    dtypes = [draw(st.sampled_from(wide)) for _ in Field]
    absent = draw(st.frozensets(st.sampled_from([Field.GRADIENT, Field.MOMENTUM, Field.SECOND_MOMENT])))
    factors = [draw(st.sampled_from([default, 0.0])) for default in Case.factors]
    return Case(
        shape, axis if shape else 0, blocks, len(shape) == 4 and draw(st.booleans()), dtypes, absent,
        (*factors[:3], 0.01, 1.3, *factors[5:]),
    )  # fmt: skip


@needs_library
@settings(max_examples=300, deadline=None)
@given(
    st.lists(cases(), min_size=1, max_size=3),
    st.sampled_from(Sweep),
    st.sampled_from([7, 100, 1 << 18]),
    st.sets(st.sampled_from(Total), min_size=1) | st.just(set(Total)),
    st.sampled_from(LEVELS),
)
def test_every_sum_of_every_sweep(drawn: list[Case], sweep: Sweep, chunk: int, wanted: set[Total], level: int) -> None:
    with mock.patch.dict(CHUNK_ELEMENTS, {"cpu": chunk}):
        world = World(drawn)
    world.check(sweep, sorted(wanted), level)


SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-40, 3e38)


@needs_library
@pytest.mark.parametrize("sweep", [Sweep.BEFORE, Sweep.AFTER, Sweep.PAIR, Sweep.ASKED])
@pytest.mark.parametrize("kind", Field)
@pytest.mark.parametrize("level", LEVELS)
def test_special_values_stay_in_their_segment(sweep: Sweep, kind: Field, level: int) -> None:
    world = World([Case((8, 70), blocks=8), Case((8, 9), blocks=8), Case((3, 8, 5), axis=1, blocks=8)])
    for case, tensors in zip(world.cases, world.tensors, strict=True):
        for row, value in enumerate(SPECIAL):
            first = tuple(row if d == case.axis else 0 for d in range(len(case.shape)))
            tensors[kind][first] = abs(value) if kind == Field.SECOND_MOMENT else value
    with np.errstate(all="ignore"):
        world.check(sweep, level=level)


@needs_library
@pytest.mark.parametrize("kind", Field)
@pytest.mark.parametrize("level", LEVELS)
def test_special_values_where_the_step_is_formed(kind: Field, level: int) -> None:
    """Not finite where a term is not, and as ever elsewhere."""
    world = World([Case((8, 70), blocks=8), Case((8, 9), blocks=8)])
    for tensors in world.tensors:
        tensors[kind][:, 3] = torch.tensor(SPECIAL).abs() if kind == Field.SECOND_MOMENT else torch.tensor(SPECIAL)
    found = world.measured(Sweep.WHOLE, level=level)[: Total.P_SIZE].reshape(10, 2, 8)
    lost = [] if kind == Field.OTHER else [0] if kind == Field.SECOND_MOMENT else [0, 1, 2]
    assert found[Total.DD, :, lost].isnan().logical_or(found[Total.DD, :, lost].isinf()).all()
    assert found[:, :, 3:].isfinite().all()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_every_number_of_a_short_format(dtype: torch.dtype, wide: bool, level: int) -> None:
    """Each is read as what it is, subnormal or not; exactly, as sums of one term are."""
    numbers = torch.arange(1 << 16).to(torch.uint16).view(dtype)
    dtypes = [dtype] * 4 + [torch.float64 if wide else dtype]
    single, rows = (Case((1 << 16,), blocks=1 << 16, dtypes=dtypes), Case((1 << 16, 64), blocks=1 << 16, dtypes=dtypes))
    for case in (single, rows):
        world = World([case])
        for tensor in world.tensors[0][:2]:
            tensor.zero_()
        world.tensors[0][Field.WEIGHT].view(1 << 16, -1)[:, 0] = numbers
        found = world.measured(Sweep.AFTER, [Total.DD, Total.XD], level=level)[Total.DD]
        expected = numbers.double().square()
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5000), (700, 9)])
def test_the_copy_is_one_bit_for_bit(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Also of NaN that signal or carry something; the memory around it is not written."""
    world = World([Case(shape, axis=axis, blocks=shape[axis], dtypes=(dtype,) * 5) for axis in (0, 1)])
    for tensors in world.tensors:
        raw = bits(tensors[Field.WEIGHT])
        raw.copy_(torch.randint(-(1 << 15), 1 << 15, raw.shape) << (8 * raw.element_size() - 16))
        bits(tensors[Field.OTHER]).fill_(7)
    world.measured(Sweep.BEFORE)
    for tensors in world.tensors:
        assert torch.equal(bits(tensors[Field.WEIGHT]), bits(tensors[Field.OTHER]))


LARGE = (Case((64, 9 * 700), blocks=64), Case((300, 700), axis=1, blocks=700), Case((1000, 300)), Case((9,)))


@needs_library
@pytest.mark.parametrize("sweep", Sweep)
def test_sums_do_not_depend_on_the_number_of_threads(sweep: Sweep) -> None:
    """Neither on torch's own threads nor on calls from several at once."""
    world, threads = World(LARGE), torch.get_num_threads()
    layout = layout_of(world.plan)
    assert layout is not None
    kernel, sources, wanted = HostKernel(layout), world.sources(), {total: total.value for total in Total}
    assert len(kernel._alive[1]) > 4  # several shares
    outs = [torch.full((len(Total), world.plan.segments), UNTOUCHED, dtype=torch.float64) for _ in range(8)]
    try:
        for out, number in zip(outs, (1, 2, 3, 4), strict=False):
            torch.set_num_threads(number)
            kernel.launch(sweep, sources, out, wanted)
    finally:
        torch.set_num_threads(threads)
    callers = [threading.Thread(target=kernel.launch, args=(sweep, sources, out, wanted)) for out in outs[4:]]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(out, outs[0]) for out in outs)
    world.check(sweep)


@needs_library
def test_without_the_weights_nothing_is_known() -> None:
    world = World([Case((4, 9), blocks=4, absent=frozenset({Field.OTHER})), Case((4, 9), blocks=4)])
    found = world.measured(Sweep.AFTER)[list(MADE[Sweep.AFTER])]
    assert found[:, :4].isnan().all()
    assert found[:, 4:].isfinite().all()
    world = World([Case((4, 9), blocks=4, absent=frozenset({Field.WEIGHT}))])
    assert world.measured(Sweep.WHOLE)[list(MADE[Sweep.WHOLE])].isnan().all()


@needs_library
def test_nothing_to_measure() -> None:
    for world in (World([]), World([Case((0, 3))])):
        world.measured(Sweep.WHOLE)


@needs_library
def test_tables_of_a_wrong_form_are_refused() -> None:
    world = World([Case((4, 9), blocks=4)])
    layout, sources = layout_of(world.plan), world.sources()
    assert layout is not None
    kernel, out = HostKernel(layout), torch.empty(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="addresses"):
        kernel.launch(Sweep.BEFORE, Sources(sources.addresses[:, :4], sources.dtypes), out, {})
    for wrong in (out.float(), out[:, :3], torch.empty(4, 2, dtype=torch.float64).T):
        with pytest.raises(ValueError, match="out must be"):
            kernel.launch(Sweep.BEFORE, sources, wrong, {})
    with pytest.raises(ValueError, match="rows"):
        kernel.launch(Sweep.BEFORE, sources, out, {Total.XX: 2})
    with pytest.raises(ValueError, match="factors"):
        kernel.launch(Sweep.WHOLE, Sources(sources.addresses, sources.dtypes), out, {Total.AA: 0})
    with pytest.raises(ValueError, match="level"):
        HostKernel(layout, level=9)


@needs_library
def test_factors_are_not_read_where_none_are_needed() -> None:
    world = World([Case((4, 9), blocks=4)])
    layout, sources, out = layout_of(world.plan), world.sources(), torch.empty(2, 4, dtype=torch.float64)
    assert layout is not None
    wanted = {Total.XD: 0, Total.DD: 1}
    HostKernel(layout).launch(Sweep.AFTER, Sources(sources.addresses, sources.dtypes), out, wanted)
    assert torch.equal(out, world.measured(Sweep.AFTER)[list(wanted)])


@needs_library
def test_only_known_dtypes_are_read() -> None:
    assert host_kernel.supports(DTYPES)
    assert not host_kernel.supports([torch.float32, torch.complex64])
    assert "complex64" in host_kernel.why_not([torch.float32, torch.complex64])


@needs_library
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_kernel, "_ABI", -1)
    assert "another version" in str(host_kernel._find.__wrapped__())


def test_what_was_built_is_loaded() -> None:
    """Rather than found too old, with all tests above skipped."""
    if list(Path(host_kernel.__file__).parent.glob("_host_kernel.*")):
        assert not host_kernel.reason()


def test_an_installation_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_kernel, "__file__", str(tmp_path / "host_kernel.py"))
    assert "C compiler" in str(host_kernel._find.__wrapped__())
    (tmp_path / f"_host_kernel{host_kernel.EXTENSION_SUFFIXES[0]}").write_text("no library")
    assert "cannot be loaded" in str(host_kernel._find.__wrapped__())
    monkeypatch.setattr(host_kernel, "_find", lambda: "of a reason")
    assert host_kernel.load() is None
    assert host_kernel.why_not(DTYPES) == "of a reason"
    assert not host_kernel.supports(DTYPES)
