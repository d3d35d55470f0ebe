"""The kernel for the CPU: a plain C library, built with the package where there is a compiler, called by ctypes.

It takes its threads from the pool that torch has anyway, and as many as torch would. Without the library (no
compiler, another platform, a build of another version) :func:`load` returns ``None``, and the caller measures with
torch operations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_sphere.measurement.layout import DTYPES, Factor, Field, Layout, Sources, Sweep, Total

_Table: TypeAlias = npt.NDArray[np.int64]

_ABI = 1
"""The version of the functions' arguments, as in the C file."""

_SHARE = 1 << 16
"""Entries that a thread takes at a time."""

_WORTH_THREADS = 100_000
"""With fewer entries in all, waking threads takes longer than they save."""

_SIDE_BY_SIDE = 256
"""Entries of a stripe of segments with short runs, as in the C file: a task should not be narrower."""

_SHORT = 64
"""A run of fewer entries is short, as in the C file."""

_OF_A = frozenset({Total.AA, Total.AX, Total.AD})
_FORMULA = frozenset({Sweep.WHOLE, Sweep.ASKED})


class _Plan(ctypes.Structure):
    """``struct plan`` of the C file."""

    _fields_ = (
        ("tasks", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("shares", ctypes.c_int64),
        ("geometry", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("threads", ctypes.c_void_p),
        ("level", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Library:
    """The loaded library.

    Attributes:
        sweep: its one function.
        level: index of the best of its variants that the processor runs; 0 is the one that runs everywhere.
        pool: address of the function that runs another one on torch's threads; ``None`` if torch has no such pool.
        threads: address of the function that tells how many threads torch would take.
    """

    sweep: Any
    level: int
    pool: int | None
    threads: int | None


def load() -> Library | None:
    """The library; ``None`` where it cannot be had, see :func:`reason`."""
    found = _find()
    return found if isinstance(found, Library) else None


def reason() -> str:
    """Why there is no library, as half a sentence; empty if there is one."""
    found = _find()
    return found if isinstance(found, str) else ""


@cache
def _find() -> Library | str:
    """Look beside this file, where an installation puts extension modules."""
    places = [Path(__file__).with_name(f"_host_kernel{suffix}") for suffix in EXTENSION_SUFFIXES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return "the host kernel was not built when the package was installed, which needs a C compiler"
    try:
        library = ctypes.CDLL(str(path))
        abi, level, sweep = library.lightning_sphere_abi, library.lightning_sphere_level, library.lightning_sphere_sweep
    except (OSError, AttributeError) as error:
        return f"the host kernel cannot be loaded: {error}"
    if abi() != _ABI:
        return f"{path.name} was built for another version of this package, which has to be installed again"
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    sweep.argtypes = (pointer, ctypes.c_int, pointer, pointer, pointer, pointer, integer, pointer)
    sweep.restype = None
    return Library(sweep, level(), *_pool())


def _pool() -> tuple[int | None, int | None]:
    """Addresses of OpenMP's functions in the runtime that torch brought into the process."""
    try:
        process = ctypes.CDLL(None)
        names = (process.GOMP_parallel, process.omp_get_max_threads)
    except (OSError, TypeError, AttributeError):  # another platform, or a torch without OpenMP
        return None, None
    pool, threads = (ctypes.cast(name, ctypes.c_void_p).value for name in names)
    return pool, threads


def supports(dtypes: Iterable[torch.dtype]) -> bool:
    """Whether there is a library, and it reads tensors of these dtypes."""
    return not why_not(dtypes)


def why_not(dtypes: Iterable[torch.dtype]) -> str:
    """Why tensors of these dtypes cannot be read, as half a sentence; empty if they can."""
    foreign = sorted({str(dtype) for dtype in dtypes if dtype not in DTYPES})
    return f"the host kernel does not read {', '.join(foreign)}" if foreign else reason()


class HostKernel:
    """Sweeps over the tensors of one plan, on the CPU.

    Args:
        layout: the plan's.
        level: the library's variant to use, for tests; by default the best that the processor runs.

    Raises:
        RuntimeError: there is no library.
    """

    name = "host kernel"
    dtypes = DTYPES

    def __init__(self, layout: Layout, level: int | None = None) -> None:
        library = load()
        if library is None:
            raise RuntimeError(reason())
        best = library.level
        if level is not None and not 0 <= level <= best:
            raise ValueError(f"level must be from 0 to {best}, got {level}")
        self._sweep = library.sweep
        self._slots, self._segments = len(layout.geometry), len(layout.segments)
        geometry = np.ascontiguousarray(layout.geometry.numpy())
        tasks = _tasks(layout.segments.numpy(), geometry[:, 0])
        starts = _shares(tasks)
        entries = int(layout.segments[:, 3].sum())
        self._alive = tasks, starts, geometry
        self._plan = _Plan(
            tasks.ctypes.data,
            starts.ctypes.data,
            len(starts) - 1,
            geometry.ctypes.data,
            library.pool if entries >= _WORTH_THREADS else None,
            library.threads,
            best if level is None else level,
        )
        self._address = ctypes.addressof(self._plan)

    def launch(self, sweep: Sweep, sources: Sources, out: Tensor, wanted: dict[Total, int]) -> None:
        """Make one sweep, see :class:`~lightning_sphere.measurement.layout.Kernel`; it is over when this returns."""
        addresses, dtypes, factors = sources.addresses, sources.dtypes, sources.factors
        shape = (self._slots, len(Field))
        if addresses.shape != shape or dtypes.shape != shape:
            raise ValueError(f"the tables of addresses and dtypes must have the shape {shape}")
        if not all(table is None or table.is_contiguous() for table in (addresses, dtypes, factors)):
            raise ValueError("the tables must be contiguous")
        if factors is None:
            if sweep in _FORMULA or (sweep == Sweep.AFTER and not _OF_A.isdisjoint(wanted)):
                raise ValueError("the sweep needs factors")
        elif factors.shape != (self._slots, len(Factor)) or factors.dtype is not torch.float64:
            raise ValueError(f"factors must be float64 [{self._slots}, {len(Factor)}]")
        if out.dtype is not torch.float64 or out.shape[1] != self._segments or out.stride(1) != 1:
            raise ValueError(f"out must be float64 [rows, {self._segments}], contiguous along the segments")
        self._sweep(
            self._address,
            sweep,
            addresses.data_ptr(),
            dtypes.data_ptr(),
            None if factors is None else factors.data_ptr(),
            out.data_ptr(),
            out.stride(0),
            _rows(tuple(wanted.items()), len(out)),
        )


def _tasks(segments: _Table, inner: _Table) -> _Table:
    """Join consecutive segments that differ by their block alone.

    Args:
        segments: ``[segments, 4]``, see :class:`~lightning_sphere.measurement.layout.Layout`.
        inner: ``[slots]``, entries of a run.

    Returns:
        ``[tasks, 6]``: slot, block, first and length, as of the first segment; its index, and how many segments.
    """
    if not len(segments):
        return np.empty((0, 6), dtype=np.int64)
    slot, length = segments[:, 0], segments[:, 3]
    joined = np.all(segments[1:] - segments[:-1] == (0, 1, 0, 0), axis=1)
    place = np.arange(len(segments))
    starts = np.concatenate([[True], ~joined])
    since = place - np.maximum.accumulate(np.where(starts, place, 0))
    least = np.where(inner < _SHORT, _SIDE_BY_SIDE // inner, 1)[slot]
    most = np.maximum(least, _SHARE // np.maximum(length, 1))
    (kept,) = np.nonzero(since % most == 0)
    counts = np.diff(kept, append=len(segments))
    return np.ascontiguousarray(np.column_stack([segments[kept], kept, counts]))


def _shares(tasks: _Table) -> _Table:
    """``[shares + 1]``: where the tasks of each share start; a share is what a thread takes at a time."""
    entries = tasks[:, 3] * tasks[:, 5]
    (starts,) = np.nonzero(np.diff((np.cumsum(entries) - entries) // _SHARE, prepend=-1))
    return np.append(starts, len(tasks)).astype(np.int64)


@lru_cache(maxsize=64)
def _rows(wanted: tuple[tuple[Total, int], ...], rows: int) -> ctypes.Array[ctypes.c_int64]:
    """The row of each sum, -1 for those that are not wanted."""
    if not all(0 <= row < rows for _, row in wanted):
        raise ValueError(f"wanted names rows that out does not have: it has {rows}")
    found = (ctypes.c_int64 * len(Total))(*[-1] * len(Total))
    for total, row in wanted:
        found[total] = row
    return found
