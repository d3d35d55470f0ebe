# mypy: ignore-errors
# ruff: noqa: N803, N806, SIM108, SIM109
# The functions below are Triton programs, not Python: their operators and calls mean what Triton makes of them.
"""One sweep over all tensors of a plan, in one launch of one Triton kernel.

A program works on some consecutive segments of one tensor, as its row of the table of programs says
(:mod:`~lightning_sphere.measurement.cuda_programs`). Its 128 lanes are shared out among the rows (segments) of a tile,
at run time, so that short and long rows, and those in many runs, take the same way: a lane reads some entries of its
row at a time, adds what they give in float32, and goes on in float64. In the end the lanes of a row are added.

Arithmetic on entries is in float32. Gradients, steps and directions are multiplied by a power of two first, which is
exact, so that their squares neither vanish nor overflow between 1e-26 and 1e12.

Legend: a unit is ``V`` neighbouring entries, read at once: four where all is aligned, else one. A lane has ``K`` units
at a time, so that what is read at a time is ``[K, LANES, V]``. Places and lengths are counted in units, but ``base``,
``inner``, ``outer``, ``start`` and ``offsets`` in entries.
"""

import triton
import triton.language as tl

from lightning_sphere.measurement.cuda_programs import ABSENT, COLUMNS, LANES, LOG_LANES, MIXED, PART
from lightning_sphere.measurement.layout import Factor, Field, Sweep, Total

# In the order in which the enumerations have them; sums are bits.
_BEFORE, _AFTER, _WHOLE, _PAIR, _ASKED = (tl.constexpr(int(sweep)) for sweep in Sweep)
_WEIGHT, _OTHER, _GRADIENT, _MOMENTUM, _SECOND_MOMENT = (tl.constexpr(int(field)) for field in Field)
_OF_MOMENTUM, _OF_GRADIENT, _OF_WEIGHT, _RATE, _ROOT, _OFFSET, _SHRINK = (tl.constexpr(int(f)) for f in Factor)
_XX, _GX, _GG, _XD, _DD, _V, _ROOT_V, _AA, _AX, _AD, _P_SIZE, _P_UNMOVED, _PP, _ERROR = (
    tl.constexpr(1 << total) for total in Total
)
_OF_V = tl.constexpr(1 << Total.V | 1 << Total.ROOT_V)
_OF_A = tl.constexpr(1 << Total.AA | 1 << Total.AX | 1 << Total.AD)
_FIELDS, _FACTORS = tl.constexpr(len(Field)), tl.constexpr(len(Factor))
_COLUMNS = tl.constexpr(COLUMNS)
_LANES = tl.constexpr(LANES)
_PART = tl.constexpr(PART)
_LOG_LANES = tl.constexpr(LOG_LANES)
_MIXED = tl.constexpr(MIXED)
_ABSENT = tl.constexpr(ABSENT)

_SCALE = tl.constexpr(2.0**24)
_ONCE = tl.constexpr(2.0**-24)
_TWICE = tl.constexpr(2.0**-48)


@triton.jit
def _at(address, start, offsets, DTYPE: tl.constexpr, V: tl.constexpr):
    """Pointers to the entries of a tensor."""
    first = address.to(tl.pointer_type(DTYPE)) + start
    if V > 1:
        first = tl.multiple_of(first, 4 * DTYPE.primitive_bitwidth // 8)
    return first + offsets


@triton.jit
def _given(address, like):
    """Whether there is a tensor, in the shape of a mask. (Triton's interpreter cannot mix such with single flags.)"""
    return (address + tl.zeros(like.shape, tl.int64)) != 0


@triton.jit
def _read(address, start, offsets, mask, code, CODE: tl.constexpr, V: tl.constexpr):
    """Entries of a tensor in float32; 0 where it is absent."""
    here = mask & _given(address, mask)
    if CODE == 0:
        entries = tl.load(_at(address, start, offsets, tl.float32, V), mask=here, other=0.0)
    elif CODE == 1:
        entries = tl.load(_at(address, start, offsets, tl.bfloat16, V), mask=here, other=0.0).to(tl.float32)
    elif CODE == 2:
        entries = tl.load(_at(address, start, offsets, tl.float16, V), mask=here, other=0.0).to(tl.float32)
    elif CODE == _MIXED:
        if code == 0:
            entries = tl.load(_at(address, start, offsets, tl.float32, V), mask=here, other=0.0)
        elif code == 1:
            entries = tl.load(_at(address, start, offsets, tl.bfloat16, V), mask=here, other=0.0).to(tl.float32)
        else:
            entries = tl.load(_at(address, start, offsets, tl.float16, V), mask=here, other=0.0).to(tl.float32)
    else:
        entries = tl.zeros(offsets.shape, tl.float32)
    return entries


@triton.jit
def _copy_as(address, to, start, offsets, mask, DTYPE: tl.constexpr, V: tl.constexpr):
    here = mask & _given(address, mask)
    entries = tl.load(_at(address, start, offsets, DTYPE, V), mask=here, other=0.0)
    tl.store(_at(to, start, offsets, DTYPE, V), entries, mask=here & _given(to, mask))
    return entries.to(tl.float32)


@triton.jit
def _read_and_copy(address, to, start, offsets, mask, code, CODE: tl.constexpr, V: tl.constexpr):
    """The same, and write them to another address, if it is not 0, without a change of their bits."""
    if CODE == 0:
        entries = _copy_as(address, to, start, offsets, mask, tl.float32, V)
    elif CODE == 1:
        entries = _copy_as(address, to, start, offsets, mask, tl.bfloat16, V)
    elif CODE == 2:
        entries = _copy_as(address, to, start, offsets, mask, tl.float16, V)
    else:
        if code == 0:
            entries = _copy_as(address, to, start, offsets, mask, tl.float32, V)
        elif code == 1:
            entries = _copy_as(address, to, start, offsets, mask, tl.bfloat16, V)
        else:
            entries = _copy_as(address, to, start, offsets, mask, tl.float16, V)
    return entries


@triton.jit
def _add(total, terms):
    """Add terms ``[K, LANES, V]`` to the lanes' totals, float64 ``[LANES]``: float32 at first, float64 then."""
    return total + tl.sum(tl.sum(terms, axis=2), axis=0).to(tl.float64)


@triton.jit
def _put(stack, total, known, factor, BIT: tl.constexpr):
    """Put the lanes' totals of one sum, float64 ``[LANES]``, at its place among others; NaN where it is not known."""
    mine = ((tl.full((_PART,), 1, tl.int32) << tl.arange(0, _PART)) == BIT)[:, None]
    return tl.where(mine, tl.where(known, total * factor, float("nan"))[None, :], stack)


@triton.jit
def _pairs(stack, BIT: tl.constexpr):
    """Give each two lanes that differ in one bit of their number the sum of both."""
    pairs = tl.reshape(stack, (_PART, _LANES >> (BIT + 1), 2, 1 << BIT))
    sums = tl.broadcast_to(tl.expand_dims(tl.sum(pairs, axis=2), 2), pairs.shape)
    return tl.reshape(sums, (_PART, _LANES))


@triton.jit
def _add_lanes(stack, bits):
    """Add over all lanes whose numbers differ in some bits only; each of them gets the sum."""
    for bit in tl.static_range(0, 5):
        stack = tl.where(((bits >> bit) & 1) != 0, _pairs(stack, bit), stack)
    if (bits >> 5) != 0:  # a row's lanes are in more than one warp
        for bit in tl.static_range(5, _LOG_LANES):
            stack = tl.where(((bits >> bit) & 1) != 0, _pairs(stack, bit), stack)
    return stack


@triton.jit
def _root(v):
    """The square root of positive numbers, nearly as well rounded as can be, without a branch."""
    near = tl.sqrt(v)
    return tl.where(near > 0.0, near + tl.fma(-near, near, v) / (2.0 * near), near)


@triton.jit
def _over(a, b, inverse):
    """The quotient, likewise, where ``inverse`` is about ``1 / b``."""
    near = a * inverse
    return tl.fma(tl.fma(-near, b, a), inverse, near)


@triton.jit
def _work(
    program, tables, factors, places, out, stride,
    SWEEP: tl.constexpr, WANTED: tl.constexpr,
    CODE_W: tl.constexpr, CODE_O: tl.constexpr, CODE_G: tl.constexpr, CODE_P: tl.constexpr, CODE_V: tl.constexpr,
    BASE: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """What one program does, reading ``V`` neighbouring entries at once."""
    slot = tl.load(program)
    segment = tl.load(program + 1)
    rows = tl.load(program + 2).to(tl.int32)
    base = tl.load(program + 3)
    count = tl.load(program + 4).to(tl.int32) // V
    skipped = tl.load(program + 5).to(tl.int32) // V
    runs = tl.load(program + 6).to(tl.int32)
    length = tl.load(program + 7).to(tl.int32) // V
    inner = tl.load(program + 8)
    outer = tl.load(program + 9)
    kind = tl.load(program + 10).to(tl.int32)
    table = tables + slot * (_FIELDS + 1)
    at_w = tl.load(table + _WEIGHT)
    at_o = tl.load(table + _OTHER)
    at_g = tl.load(table + _GRADIENT)
    at_p = tl.load(table + _MOMENTUM)
    at_v = tl.load(table + _SECOND_MOMENT)
    codes = tl.load(table + _FIELDS)

    # How the lanes are shared out: a row has 2^log_lanes of them, 2^log_width side by side in one of its runs.
    log_lanes = kind & 15
    log_width = (kind >> 4) & 15
    along_runs = ((kind >> 8) & 1) != 0
    by_rows = ((kind >> 9) & 1) != 0
    lane = tl.arange(0, _LANES)
    in_row = lane & ((1 << log_lanes) - 1)
    row_of_lane = tl.where(by_rows, lane & 7, lane >> log_lanes)
    run_of_lane = tl.where(by_rows, lane >> 3, in_row >> log_width)
    unit_of_lane = tl.where(by_rows, 0, in_row & ((1 << log_width) - 1))
    tile_rows = _LANES >> log_lanes
    lane_bits = tl.where(by_rows, _LANES - 8, (1 << log_lanes) - 1)
    leads = (lane & lane_bits) == 0
    at_once = (1 << log_lanes) >> log_width
    width = 1 << log_width
    run_step = tl.where(along_runs, at_once * K, at_once)
    unit_step = tl.where(along_runs, width, width * K)
    # From one of a lane's K units to the next: in memory, in its row, and in its run.
    inner_units = (inner // V).to(tl.int32)
    outer_units = (outer // V).to(tl.int32)
    memory_step = tl.where(along_runs, at_once * outer_units, width)
    row_step = tl.where(along_runs, at_once * inner_units, width)
    within_step = tl.where(along_runs, 0, width)
    lane_in_memory = row_of_lane * inner_units + run_of_lane * outer_units + unit_of_lane
    lane_in_row = run_of_lane * inner_units + unit_of_lane - skipped
    turn = tl.arange(0, K)[:, None]

    NEEDS_A: tl.constexpr = (_OF_A & WANTED) != 0 or SWEEP == _WHOLE or SWEEP == _ASKED
    NEEDS_V: tl.constexpr = (_OF_V & WANTED) != 0 or SWEEP == _WHOLE or SWEEP == _ASKED
    known = at_w != 0
    if SWEEP != _BEFORE and SWEEP != _WHOLE:
        known = known & (at_o != 0)
    known_g = known & (at_g != 0)
    known_v = known & (at_v != 0)
    if NEEDS_A:
        of = factors + slot * _FACTORS
        of_p = (tl.load(of + _OF_MOMENTUM) * _SCALE).to(tl.float32)
        of_g = tl.load(of + _OF_GRADIENT).to(tl.float32)
        of_x = (tl.load(of + _OF_WEIGHT) * _SCALE).to(tl.float32)
        rate = tl.load(of + _RATE).to(tl.float32)
        root = tl.load(of + _ROOT).to(tl.float32)
        offset = tl.load(of + _OFFSET).to(tl.float32)
        shrink = tl.load(of + _SHRINK)
        scaled_shrink = (shrink * _SCALE).to(tl.float32)
        kept = (1.0 - shrink).to(tl.float32)
        scale_of_x = (tl.load(of + _RATE) * tl.load(of + _OF_WEIGHT)).to(tl.float32)

    for tile in range(0, rows, tile_rows):
        in_tile = row_of_lane < rows - tile
        zero = tl.zeros((_LANES,), tl.float64)
        xx = zero
        gx = zero
        gg = zero
        xd = zero
        dd = zero
        vs = zero
        root_v = zero
        aa = zero
        ax = zero
        ad = zero
        p_size = zero
        p_unmoved = zero
        pp = zero
        error = zero
        for run in range(0, runs, run_step):
            for unit in range(0, length, unit_step):
                start = base + tile * inner + run * outer + unit * V
                place = (run * inner_units + unit + lane_in_row)[None, :] + turn * row_step
                left = (length - unit - unit_of_lane)[None, :]
                inside = in_tile[None, :] & (place >= 0) & (place < count) & (turn * within_step < left)
                units = lane_in_memory[None, :] + turn * memory_step
                offsets = units[:, :, None] * V + tl.arange(0, V)[None, None, :]
                mask = inside[:, :, None]

                # All reads come first: a write, or a branch, would hold up those that follow it.
                g = _read(at_g, start, offsets, mask, (codes >> 8) & 15, CODE_G, V) * _SCALE
                if SWEEP == _BEFORE:
                    if CODE_O == _ABSENT:
                        x = _read(at_w, start, offsets, mask, codes & 15, CODE_W, V)
                    else:
                        x = _read_and_copy(at_w, at_o, start, offsets, mask, codes & 15, CODE_W, V)
                else:
                    w = _read(at_w, start, offsets, mask, codes & 15, CODE_W, V)
                    if SWEEP != _WHOLE:
                        x = _read(at_o, start, offsets, mask, (codes >> 4) & 15, CODE_O, V)
                    if NEEDS_A:
                        momentum = _read(at_p, start, offsets, mask, (codes >> 12) & 15, CODE_P, V)
                    if NEEDS_V:
                        v = _read(at_v, start, offsets, mask, (codes >> 16) & 15, CODE_V, V)

                if SWEEP != _BEFORE:
                    if NEEDS_V:
                        v_root = _root(v)
                    if NEEDS_A:
                        a = of_g * g + of_p * momentum
                    if SWEEP == _WHOLE or SWEEP == _ASKED:
                        b = tl.where(at_v != 0, root * v_root + offset, 1.0)
                        inverse = 1.0 / b
                    if SWEEP == _WHOLE:
                        # x from w = x (1 - shrink - rate of_weight / b) - rate (the rest of a) / b
                        factor = kept - _over(scale_of_x, b, inverse)
                        x = tl.where(mask, _over(w + _over(rate * a, b, inverse) * _ONCE, factor, 1.0 / factor), 0.0)
                    if NEEDS_A:
                        a += of_x * x
                    if SWEEP == _WHOLE or SWEEP == _ASKED:
                        p = tl.where(mask, -_over(rate * a, b, inverse) - scaled_shrink * x, 0.0)
                    if SWEEP == _WHOLE:
                        d = p
                    else:
                        d = (w - x) * _SCALE

                if (_XX & WANTED) != 0:
                    xx = _add(xx, x * x)
                if (_GX & WANTED) != 0:
                    gx = _add(gx, g * x)
                if (_GG & WANTED) != 0:
                    gg = _add(gg, g * g)
                if (_XD & WANTED) != 0:
                    xd = _add(xd, x * d)
                if (_DD & WANTED) != 0:
                    dd = _add(dd, d * d)
                if (_V & WANTED) != 0:
                    vs = _add(vs, v)
                if (_ROOT_V & WANTED) != 0:
                    root_v = _add(root_v, v_root)
                if (_AA & WANTED) != 0:
                    aa = _add(aa, a * a)
                if (_AX & WANTED) != 0:
                    ax = _add(ax, a * x)
                if (_AD & WANTED) != 0:
                    ad = _add(ad, a * d)
                if (_P_SIZE & WANTED) != 0:
                    p_size = _add(p_size, tl.abs(p))
                if (_P_UNMOVED & WANTED) != 0:
                    p_unmoved = _add(p_unmoved, tl.where(d == 0.0, tl.abs(p), 0.0))
                if (_PP & WANTED) != 0:
                    pp = _add(pp, p * p)
                if (_ERROR & WANTED) != 0:
                    error = _add(error, (d - p) * (d - p))

        for part in tl.static_range(0, PARTS):
            stack = tl.zeros((_PART, _LANES), tl.float64)
            if (_XX & WANTED) != 0:
                stack = _put(stack, xx, known, 1.0, (_V if SWEEP == _PAIR else _XX) >> (BASE + part * _PART))
            if (_GX & WANTED) != 0:
                stack = _put(stack, gx, known_g, _ONCE, _GX >> (BASE + part * _PART))
            if (_GG & WANTED) != 0:
                stack = _put(stack, gg, known_g, _TWICE, _GG >> (BASE + part * _PART))
            if (_XD & WANTED) != 0:
                stack = _put(stack, xd, known, _ONCE, _XD >> (BASE + part * _PART))
            if (_DD & WANTED) != 0:
                stack = _put(stack, dd, known, _TWICE, _DD >> (BASE + part * _PART))
            if (_V & WANTED) != 0:
                stack = _put(stack, vs, known_v, 1.0, _V >> (BASE + part * _PART))
            if (_ROOT_V & WANTED) != 0:
                stack = _put(stack, root_v, known_v, 1.0, _ROOT_V >> (BASE + part * _PART))
            if (_AA & WANTED) != 0:
                stack = _put(stack, aa, known, _TWICE, _AA >> (BASE + part * _PART))
            if (_AX & WANTED) != 0:
                stack = _put(stack, ax, known, _ONCE, _AX >> (BASE + part * _PART))
            if (_AD & WANTED) != 0:
                stack = _put(stack, ad, known, _TWICE, _AD >> (BASE + part * _PART))
            if (_P_SIZE & WANTED) != 0:
                stack = _put(stack, p_size, known, _ONCE, _P_SIZE >> (BASE + part * _PART))
            if (_P_UNMOVED & WANTED) != 0:
                stack = _put(stack, p_unmoved, known, _ONCE, _P_UNMOVED >> (BASE + part * _PART))
            if (_PP & WANTED) != 0:
                stack = _put(stack, pp, known, _TWICE, _PP >> (BASE + part * _PART))
            if (_ERROR & WANTED) != 0:
                stack = _put(stack, error, known, _TWICE, _ERROR >> (BASE + part * _PART))
            place = tl.load(places + part * _PART + tl.arange(0, _PART))
            targets = out + place.to(tl.int64) * stride + (segment + tile)
            stack = _add_lanes(stack, lane_bits)
            tl.store(
                targets[:, None] + row_of_lane[None, :], stack, mask=(place >= 0)[:, None] & (in_tile & leads)[None, :]
            )


@triton.jit(do_not_specialize=["out", "stride"])
def sphere_sweep(
    programs, tables, factors, places, out, stride,
    SWEEP: tl.constexpr, WANTED: tl.constexpr,
    CODE_W: tl.constexpr, CODE_O: tl.constexpr, CODE_G: tl.constexpr, CODE_P: tl.constexpr, CODE_V: tl.constexpr,
    BASE: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One sweep.

    Args:
        programs: int64 ``[programs, COLUMNS]``.
        tables: int64 ``[slots, 6]``: addresses, and the codes of the dtypes, four bits each.
        factors: float64 ``[slots, 7]``.
        places: int32 ``[totals]``: row of ``out`` by sum.
        out: float64 ``[rows, segments]``.
        stride: elements from one row of ``out`` to the next.
        SWEEP: which one.
        WANTED: which sums, one bit each.
        CODE_W: the dtype's code that all slots share for WEIGHT, or MIXED, or ABSENT; likewise the other fields.
        CODE_O: OTHER.
        CODE_G: GRADIENT.
        CODE_P: MOMENTUM.
        CODE_V: SECOND_MOMENT.
        BASE: number of the sum that stands first in ``places``; in PAIR, XX comes after the others.
        PARTS: so many parts of four are added over the lanes one after the other.
        K: units that a lane reads at a time where all is aligned.
    """
    program = programs + tl.program_id(0).to(tl.int64) * _COLUMNS
    table = tables + tl.load(program) * (_FIELDS + 1)
    every = tl.load(table + _WEIGHT) | tl.load(table + _OTHER) | tl.load(table + _GRADIENT)
    every = every | tl.load(table + _MOMENTUM) | tl.load(table + _SECOND_MOMENT)
    aligned = (((tl.load(program + 10) >> 10) & 1) != 0) & ((every & 15) == 0)
    if aligned:
        _work(
            program, tables, factors, places, out, stride,
            SWEEP, WANTED, CODE_W, CODE_O, CODE_G, CODE_P, CODE_V, BASE, PARTS, K, 4,
        )  # fmt: skip
    else:
        _work(
            program, tables, factors, places, out, stride,
            SWEEP, WANTED, CODE_W, CODE_O, CODE_G, CODE_P, CODE_V, BASE, PARTS, 4, 1,
        )  # fmt: skip
