"""The sweeps on CUDA: one launch of a Triton kernel for all tensors of a plan.

The kernel (:mod:`~lightning_sphere.measurement.triton_sweep`) finds the tensors through a table of addresses on the
device, which is sent there only when it changed. Nothing waits for the device. What is launched can become part of a
CUDA graph, if the same launch was made once before on the same tensors: the first one compiles the kernel (a second or
two, kept by Triton on disk) and sends the tables.

Precision: arithmetic on entries is in float32, and up to eight products are added in float32; all further additions
are in float64. Relative to ``|a| |b|``, sums ``<a, b>`` of what is read (XX, GX, GG, XD, DD, V, ROOT_V) have errors of
1e-7 at most for rows of ten entries, and some 1e-8, 3e-9 and 1e-9 for rows of 100, 1000 and 10000, even where their
terms cancel; those of ``a`` and ``P``, which are themselves computed in float32, some 1e-7. Squares of gradients, steps
and directions neither vanish nor overflow between entries of 1e-26 and 1e12, those of weights between 1e-19 and 1e19.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from lightning_sphere.measurement.cuda_programs import ABSENT, MIXED, PART, programs_of
from lightning_sphere.measurement.layout import DTYPES, Field, Layout, Sources, Sweep, Total

_STEP = (Total.XD, Total.DD, Total.V, Total.ROOT_V, Total.AA, Total.AX, Total.AD)

MADE: dict[Sweep, tuple[Total, ...]] = {
    Sweep.BEFORE: (Total.XX, Total.GX, Total.GG),
    Sweep.AFTER: _STEP,
    Sweep.WHOLE: (Total.XX, Total.GX, Total.GG, *_STEP),
    Sweep.PAIR: (Total.XD, Total.DD, Total.XX),
    Sweep.ASKED: (Total.P_SIZE, Total.P_UNMOVED, Total.PP, Total.ERROR),
}
"""The sums that a sweep makes, in the order in which the kernel keeps them."""

_OF_A = {Total.AA, Total.AX, Total.AD}
_OF_V = {Total.V, Total.ROOT_V}
_OF_G = {Total.GX, Total.GG}

_READABLE = (torch.float32, torch.bfloat16, torch.float16)


def available(device: torch.device) -> tuple[bool, str]:
    """Whether the kernel can run on a device, and the reason where it cannot.

    A compiler may still be missing: that shows at the first launch.
    """
    try:
        import triton

        from lightning_sphere.measurement import triton_sweep
    except Exception as error:  # whatever a broken installation raises
        return False, f"Triton cannot be imported ({type(error).__name__}: {error})"
    if not isinstance(triton_sweep.sphere_sweep, triton.JITFunction):
        return device.type == "cpu", "" if device.type == "cpu" else "Triton's interpreter reads host memory only"
    if device.type != "cuda":
        return False, f"the kernel needs a CUDA device, not {device.type}"
    if torch.version.hip is not None:
        return False, "the kernel was never tried on ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 0):
        return False, f"Triton needs compute capability 7.0, this device has {capability[0]}.{capability[1]}"
    return True, ""


def supports(dtypes: Collection[torch.dtype]) -> bool:
    """Whether the kernel reads all dtypes: float32, bfloat16 and float16."""
    return all(dtype in _READABLE for dtype in dtypes)


def supported(sources: Sources) -> bool:
    """The same for the tensors of one sweep."""
    codes = set(sources.dtypes[sources.addresses != 0].tolist())
    return supports([DTYPES[code] for code in codes])


class CudaKernel:
    """Sweeps over the tensors of one plan, on one device.

    Args:
        layout: of the plan.
        device: where the weights are; one that is :func:`available`.
    """

    name = "CUDA kernel"
    dtypes = _READABLE

    def __init__(self, layout: Layout, device: torch.device) -> None:
        from lightning_sphere.measurement import triton_sweep

        self._kernel: Any = triton_sweep.sphere_sweep
        self._device = device
        self._slots, self._segments = len(layout.geometry), len(layout.segments)
        self._programs = programs_of(layout).to(device)
        self._nothing = torch.zeros(1, dtype=torch.float64, device=device)
        self._tables: dict[Sweep, _OnDevice] = {}
        self._factors: dict[Sweep, _OnDevice] = {}
        self._places: dict[tuple[int, ...], _OnDevice] = {}
        self._dtypes: dict[Sweep, tuple[int, ...]] = {}

    @property
    def uploads(self) -> int:
        """How often a table was sent to the device."""
        tables = (*self._tables.values(), *self._factors.values(), *self._places.values())
        return sum(table.uploads for table in tables)

    def launch(self, sweep: Sweep, sources: Sources, out: Tensor, wanted: dict[Total, int]) -> None:
        """Make one sweep; see :meth:`lightning_sphere.measurement.layout.Kernel.launch`.

        Raises:
            ValueError: for a dtype that is not :func:`supported`, for sums that need factors where there are none, and
                for an ``out`` of another dtype or shape.
        """
        made = tuple(total for total in MADE[sweep] if total in wanted)
        if out.dtype != torch.float64 or out.dim() != 2 or out.shape[1] != self._segments or out.stride(1) != 1:
            raise ValueError("out must be float64 of shape [rows, segments], contiguous along the segments")
        if any(not 0 <= wanted[total] < out.shape[0] for total in made):
            raise ValueError(f"out has {out.shape[0]} rows, wanted are {sorted(wanted.values())}")
        if len(self._programs) == 0 or (not made and sweep is not Sweep.BEFORE):
            return
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                self._launch(sweep, sources, out, wanted, made)
        else:
            self._launch(sweep, sources, out, wanted, made)

    def _launch(
        self, sweep: Sweep, sources: Sources, out: Tensor, wanted: dict[Total, int], made: tuple[Total, ...]
    ) -> None:
        table = _get(self._tables, sweep, self._device)
        before = table.uploads
        addresses = table.of(_packed, sources.addresses, sources.dtypes)
        if table.uploads != before:
            if not supported(sources) or (sweep is Sweep.BEFORE and _converts(sources)):
                del self._tables[sweep]
                raise ValueError("the CUDA kernel reads float32, bfloat16 and float16, and copies without a change")
            self._dtypes[sweep] = tuple(_shared(sources, field) for field in Field)
        read = _read(sweep, made)
        codes = [code if field in read else ABSENT for field, code in zip(Field, self._dtypes[sweep], strict=True)]

        factors = self._nothing
        if Field.MOMENTUM in read:
            if sources.factors is None:
                raise ValueError(f"{sweep.name} needs factors for {', '.join(total.name for total in made)}")
            if sources.factors.device.type == self._device.type == "cuda":
                factors = sources.factors.to(torch.float64).contiguous()
            else:
                factors = _get(self._factors, sweep, self._device).of(_as_it_is, sources.factors)

        bits = sum(1 << total for total in made)
        parts = -(-(max((MADE[sweep].index(total) for total in made), default=-1) + 1) // PART)
        rows = [wanted.get(total, -1) if total in made else -1 for total in MADE[sweep]]
        rows = (rows + [-1] * PART)[: max(parts, 1) * PART]
        places = _get(self._places, tuple(rows), self._device).of(
            _as_it_is, torch.tensor(rows, dtype=torch.int32, device="cpu")
        )
        few = sum(code != ABSENT for code in codes) <= 3 and len(made) <= 3
        self._kernel[(len(self._programs),)](
            self._programs, addresses, factors, places, out, out.stride(0),
            SWEEP=int(sweep), WANTED=bits,
            CODE_W=codes[0], CODE_O=codes[1], CODE_G=codes[2], CODE_P=codes[3], CODE_V=codes[4],
            BASE=int(MADE[sweep][0]), PARTS=parts, K=2 if few else 1,
            num_warps=4, maxnreg=64 if few else 96, enable_fp_fusion=True,
        )  # fmt: skip


class _OnDevice:
    """A table's copy on the device, sent anew when the table changed."""

    def __init__(self, device: torch.device) -> None:
        self.uploads = 0
        self._device = device
        self._known: tuple[Tensor, ...] | None = None
        self._copy = torch.empty(0)
        self._stream: object = None
        self._of_graphs: list[Tensor] = []

    def of(self, pack: Callable[..., Tensor], *tables: Tensor) -> Tensor:
        """The copy of ``pack(*tables)``, which are on the host."""
        cuda = self._device.type == "cuda"
        capturing = cuda and torch.cuda.is_current_stream_capturing()
        stream = torch.cuda.current_stream(self._device) if cuda else None
        # Work on another stream would have to wait for the copy: there it is sent again.
        same = capturing or stream == self._stream
        if not same or self._known is None or not all(map(_equal, self._known, tables)):
            self._known = tuple(table.clone() for table in tables)
            packed = pack(*tables)
            # A fresh buffer in pinned memory each time: PyTorch does not give it out again before it was read.
            self._copy = packed.pin_memory().to(self._device, non_blocking=True) if cuda else packed.clone()
            self._stream = stream
            self.uploads += 1
        if capturing:  # the graph reads this copy for as long as it lives
            self._of_graphs.append(self._copy)
        return self._copy


def _get(tables: dict[Any, _OnDevice], key: Any, device: torch.device) -> _OnDevice:
    if key not in tables:
        tables[key] = _OnDevice(device)
    return tables[key]


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tables on the host are the same, bit for bit: NaN is NaN."""
    if a.dtype == b.dtype == torch.float64:
        a, b = a.view(torch.int64), b.view(torch.int64)
    return a.dtype == b.dtype and torch.equal(a, b)


def _as_it_is(table: Tensor) -> Tensor:
    return table.contiguous()


def _packed(addresses: Tensor, dtypes: Tensor) -> Tensor:
    """int64 ``[slots, 6]``: the addresses, and the codes of the dtypes, four bits each."""
    bits = torch.tensor([1 << 4 * field for field in Field], device="cpu")
    return torch.cat([addresses, (dtypes.long() * bits).sum(1, keepdim=True)], dim=1)


def _converts(sources: Sources) -> bool:
    """Whether a copy would have another dtype."""
    other = sources.dtypes[:, Field.OTHER] != sources.dtypes[:, Field.WEIGHT]
    return bool((other & (sources.addresses[:, Field.OTHER] != 0)).any())


def _shared(sources: Sources, field: Field) -> int:
    """The dtype's code that all tensors share; :data:`MIXED` where they do not, :data:`ABSENT` where there is none."""
    codes = set(sources.dtypes[sources.addresses[:, field] != 0, field].tolist())
    return ABSENT if not codes else codes.pop() if len(codes) == 1 else MIXED


def _read(sweep: Sweep, made: tuple[Total, ...]) -> set[Field]:
    """The fields that a sweep reads (or writes)."""
    step = sweep in (Sweep.WHOLE, Sweep.ASKED)
    read = {Field.WEIGHT}
    if sweep is not Sweep.WHOLE:
        read.add(Field.OTHER)
    if step or _OF_G & set(made) or _OF_A & set(made):
        read.add(Field.GRADIENT)
    if step or _OF_A & set(made):
        read.add(Field.MOMENTUM)
    if step or _OF_V & set(made):
        read.add(Field.SECOND_MOMENT)
    return read
