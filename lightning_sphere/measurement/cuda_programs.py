"""How the work of a sweep is shared out among the programs of the CUDA kernel: from a layout to a table.

A program has some consecutive segments of one tensor and one cut, which it takes in tiles of as many rows (segments)
as its lanes allow. How many lanes a row gets depends on its length; all of it is decided here, once per plan.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_sphere.measurement.layout import Layout

LOG_LANES = 7
LANES = 1 << LOG_LANES
"""Lanes of a program."""

COLUMNS = 11
"""Columns of the table: slot, first segment, segments (rows), where the first row's first run begins in the tensor,
entries of a row, entries of its first run that are left out, runs, entries of a run that are looked at, ``inner``,
``outer``, and the kind (see :func:`_kinds`)."""

PART = 4
"""So many sums at a time are added over the lanes of a program."""

MIXED, ABSENT = -1, -2
"""In place of a dtype's code: the tensors' dtypes differ; all tensors are absent."""

_ENTRIES = 8
"""Entries that a lane reads at a time, where the length of rows decides how many lanes they get."""

_LONG_RUN = 256
"""Runs of so many entries are read one after the other, shorter ones several at a time."""

_PROGRAMS = 4096
"""So many programs keep every GPU busy; more than that only if programs would become larger than the largest."""

_SMALLEST, _LARGEST = 1024, 8192
"""Entries of a program: fewer do not pay for its start, more leave some processors idle in the end."""

_Ints = npt.NDArray[np.int64]


def programs_of(layout: Layout) -> Tensor:
    """The table of programs, int64 ``[programs, COLUMNS]`` on the host, the largest programs first."""
    if not len(layout.segments):
        return torch.empty(0, COLUMNS, dtype=torch.int64, device="cpu")
    slot, block, first, count = (column.numpy() for column in layout.segments.unbind(1))
    same = np.zeros(len(slot), dtype=bool)
    same[1:] = (np.diff(slot) == 0) & (np.diff(first) == 0) & (np.diff(count) == 0) & (np.diff(block) == 1)
    starts = np.flatnonzero(~same)
    rows = np.diff(np.append(starts, len(slot)))
    slot, block, first, count = slot[starts], block[starts], first[starts], count[starts]
    inner, outer = (column.numpy()[slot] for column in layout.geometry.unbind(1))
    run = first // inner
    runs = (first + count - 1) // inner + 1 - run
    start = np.where(runs == 1, first - run * inner, 0)
    left_out = np.where(runs == 1, 0, first - run * inner)
    length = np.where(runs == 1, count, inner)
    kind, tile_rows = _kinds(inner, outer, first, count, length, runs, rows)

    size = np.clip(int((rows * count).sum()) // _PROGRAMS, _SMALLEST, _LARGEST)
    step = np.maximum(1, size // (count * tile_rows)) * tile_rows
    parts = -(-rows // step)
    of = np.repeat(np.arange(len(rows)), parts)
    done = (np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)) * step[of]
    mine = np.minimum(step[of], rows[of] - done)
    base = (block[of] + done) * inner[of] + run[of] * outer[of] + start[of]
    columns = (
        slot[of], starts[of] + done, mine, base, count[of], left_out[of],
        runs[of], length[of], inner[of], outer[of], kind[of],
    )  # fmt: skip
    table = np.stack(columns, axis=1)[np.argsort(-mine * count[of], kind="stable")]
    return torch.from_numpy(np.ascontiguousarray(table))


def _kinds(
    inner: _Ints, outer: _Ints, first: _Ints, count: _Ints, length: _Ints, runs: _Ints, rows: _Ints
) -> tuple[_Ints, _Ints]:
    """How the lanes are shared out, for each stretch of segments.

    Returns:
        The kind, int64 ``[stretches]``: log2 of the lanes of a row (bits 0 to 3), log2 of those side by side in one run
        (4 to 7), whether a lane reads the same place of several runs at a time instead of several places of one (8),
        whether neighbouring lanes belong to different rows (9), whether all starts and lengths are multiples of four
        (10). And the rows of a tile, int64 ``[stretches]``.
    """
    aligned = (inner % 4 == 0) & (outer % 4 == 0) & (first % 4 == 0) & (count % 4 == 0)

    # Few lanes for short rows, so that none is idle; more where there are few rows.
    lanes = np.select([length <= 16, length <= 32, length <= 192, length <= 2048], [1, 2, 3, 5], LOG_LANES)
    useful = np.clip(_log2(-(-length // _ENTRIES)), 1, LOG_LANES)
    lanes = np.maximum(lanes, np.minimum(useful, LOG_LANES - np.minimum(_log2(rows), LOG_LANES)))
    width = lanes

    # Short runs: those of neighbouring rows are neighbours in memory, so that a tile has some of them.
    along = (runs > 1) & (length < _LONG_RUN)
    units = _log2(-(-length // np.where(aligned, 4, 1)))
    by_rows = along & (inner == 1)
    width = np.where(along, np.minimum(units, LOG_LANES), width)
    lanes = np.where(along, np.clip(np.where(length <= 4, 4, 5), width, LOG_LANES), lanes)

    # Within a tile places are 32-bit numbers.
    span = (LANES >> lanes) * inner + np.where(along, (_ENTRIES << lanes) * outer, 0)
    huge = span >= 2**31
    along, by_rows = along & ~huge, by_rows & ~huge
    lanes, width = np.where(huge, LOG_LANES, lanes), np.where(huge, LOG_LANES, width)
    kind = lanes | width << 4 | along.astype(np.int64) << 8 | by_rows.astype(np.int64) << 9
    return kind | aligned.astype(np.int64) << 10, LANES >> lanes


def _log2(numbers: _Ints) -> _Ints:
    """The logarithm, rounded up, of positive numbers."""
    return np.ceil(np.log2(numbers)).astype(np.int64)
