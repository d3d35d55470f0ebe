"""The weights that drift is measured from, and their sums with the weights of now.

Copies are exact. Rounded to bfloat16 they would halve the memory and put a floor of 1.66e-3 rad under the drift
(measured: the angle between Gaussian float32 weights and their rounding, the same from 512 to a million entries).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_sphere.measurement.plan import Bucket, Plan, Slot
from lightning_sphere.measurement.sums import Scratch, as_matrices, compare_bucket, weights

DEVICE_LIMIT_MB = 256
"""Copies of up to so many MiB, all parameters together, stay where the weights are; larger ones go to the host."""

ABSENT = "not among the given weights"
"""Why a weight has no reference that was not given."""


@dataclass(frozen=True)
class _Copy:
    """The reference of one parameter."""

    name: str
    parameter: nn.Parameter
    """Held, so that no other object gets its address. A weak reference would forbid ``torch.utils.swap_tensors``."""
    values: Tensor
    """Shaped like the parameter."""
    near: bool
    """Whether it is on the parameter's device, rather than streamed there for each use."""
    place: str


class PairSums(Protocol):
    """What compares the weights of a plan with others."""

    plan: Plan

    def pair(self, then: Sequence[Tensor | None], out: Tensor) -> None:
        """Write ``<x0, x0>, <x0, E>, <E, E>`` into ``[3, segments]``, ``E`` being the weights less ``x0``."""


class ReferenceWeights:
    """The weights that drift is measured from: copies of those at the start, or of given ones.

    Nothing is copied before :meth:`prepare`. A parameter keeps its copy until another object is prepared under its
    name: one that is measured later starts where it is then, one that left the plan and comes back (frozen for a while)
    goes on from its old start.

    **Memory.** One copy per measured parameter, in the parameter's own dtype. All copies together stay on the device if
    they take at most :data:`DEVICE_LIMIT_MB` MiB. Those that would exceed the limit are kept in pinned memory of the
    host, and each :meth:`write` streams them through the scratch memory of one bucket; PyTorch rounds such allocations
    up to powers of two. If the host refuses to pin, they are pageable, and a write may wait for the device. Given
    weights are held besides, where they are, until their parameter is prepared (those of no parameter: until the end).

    Args:
        given: reference by name of the parameter, any floating dtype and device; it is rounded to the parameter's
            dtype, as loading it into the model would. A parameter that is absent or has another shape has no reference.
            ``None``: the reference is what the weights are when they are first prepared.
    """

    def __init__(self, given: Mapping[str, Tensor] | None = None) -> None:
        self._given = None if given is None else dict(given)
        self._copies: dict[int, _Copy] = {}
        self._missing: dict[str, str] = {}
        self._scratch: tuple[Plan, Scratch] | None = None  # for copies that are streamed

    @property
    def missing(self) -> dict[str, str]:
        """Why there is no reference, by name of each parameter that was prepared and has none."""
        return dict(self._missing)

    @property
    def nbytes(self) -> int:
        """Memory of all copies in bytes, wherever they are."""
        return sum(copy.values.nbytes for copy in self._copies.values())

    @property
    def near(self) -> bool:
        """Whether all copies are where their parameters are, so that comparing costs no transfer."""
        return all(copy.near or copy.values.device == copy.parameter.device for copy in self._copies.values())

    @property
    def placement(self) -> str:
        """Where the copies are: "device", "pinned host memory", "host", several joined by "and", or "nowhere" yet."""
        return " and ".join(sorted({copy.place for copy in self._copies.values()})) or "nowhere"

    @torch.no_grad()
    def prepare(self, plan: Plan) -> None:
        """Take the copies that are still missing; call it for each new plan, before its first step.

        Args:
            plan: what is measured from now on.
        """
        bearers = {slot.name: id(slot.parameter) for slot in plan.slots}
        self._copies = {key: copy for key, copy in self._copies.items() if bearers.get(copy.name, key) == key}
        new: dict[int, tuple[Slot, Tensor]] = {}
        for slot in plan.slots:
            known = self._copies.get(id(slot.parameter))
            if known is None or known.values.shape != slot.parameter.shape:
                self._copies.pop(id(slot.parameter), None)
                source = self._source(slot.name, slot.parameter)
                if source is not None:
                    new.setdefault(id(slot.parameter), (slot, source))
        held = sum(copy.values.nbytes for copy in self._copies.values() if copy.near)
        wanted = sum(slot.parameter.nbytes for slot, _ in new.values())
        near = held + wanted <= DEVICE_LIMIT_MB * 2**20
        for key, (slot, source) in new.items():
            values, place = _copied(source, slot, near)
            self._copies[key] = _Copy(slot.name, slot.parameter, values, near, place)
            if self._given is not None:
                self._given[slot.name] = values  # lets go of the one that was given

    def _source(self, name: str, parameter: nn.Parameter) -> Tensor | None:
        """What to copy for a parameter; ``None`` with the reason in :attr:`missing`."""
        self._missing.pop(name, None)
        if self._given is None:
            return parameter.detach()
        found = self._given.get(name)
        if found is None:
            self._missing[name] = ABSENT
        elif found.shape != parameter.shape:
            self._missing[name] = f"shape {tuple(found.shape)} there, {tuple(parameter.shape)} here"
        else:
            return found.detach()
        return None

    @torch.no_grad()
    def write(self, sums: PairSums, out: Tensor) -> None:
        """Write ``<x0, x0>``, ``<x0, E>`` and ``<E, E>`` of each segment, ``E = x - x0`` being what came since.

        They give the angle as ``<x, x>``, ``<x, D>`` and ``<D, D>`` of one step do, and like those add up over the
        segments of a group. ``E`` is formed element-wise. NaN where there is no reference. Nothing waits for the device
        (but see above for memory that is not pinned).

        Args:
            sums: of a plan that was prepared.
            out: ``[3, segments]``, in the precision of the sums.
        """
        plan = sums.plan
        copies = [self._copies.get(id(slot.parameter)) for slot in plan.slots]
        then = [None if copy is None else copy.values for copy in copies]
        far = {index for index, copy in enumerate(copies) if copy is not None and not copy.near}
        if not far:
            sums.pair(then, out)
            return
        if self._scratch is None or self._scratch[0] is not plan:
            self._scratch = plan, Scratch(plan)
        scratch, old, now = self._scratch[1], as_matrices(plan.slots, then), weights(plan)
        for bucket in plan.buckets:
            x = _stream(bucket, old, far, scratch.wide(0, bucket))
            compare_bucket(bucket, x, now, out, scratch)


def _copied(source: Tensor, slot: Slot, near: bool) -> tuple[Tensor, str]:
    """A copy of a tensor in a slot's dtype, and where it is.

    Its memory has the order of the slot's matrix, so that pieces of it are contiguous and stream without another copy.
    """
    device, dtype = slot.parameter.device, slot.parameter.dtype
    source = source.to(dtype).movedim(slot.axis, 0)
    if near or device.type == "cpu":
        place = "host" if device.type == "cpu" else "device"
        values = torch.empty(source.shape, dtype=dtype, device=device).copy_(source, non_blocking=True)
    else:
        values, pinned = _on_host(source.shape, dtype)
        place = "pinned host memory" if pinned else "host"
        # Only this device's queue reads the copy again, later: no need to wait for it, unless it is not pinned.
        values.copy_(source, non_blocking=pinned)
    return values.movedim(0, slot.axis), place


def _on_host(shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Memory of the host, pinned if it can be; and whether it is."""
    try:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True), True
    except RuntimeError:  # no memory left to pin, or a backend that pins none
        return torch.empty(shape, dtype=dtype, device="cpu"), False


def _stream(bucket: Bucket, matrices: Sequence[Tensor], far: Collection[int], out: Tensor) -> Tensor:
    """What :func:`gather` does where some slots' matrices are in memory of the host, without waiting for the device."""
    start = 0
    for piece in bucket.pieces:
        part = piece.of(matrices[piece.slot])
        target = out[start : start + len(piece.rows)]
        if piece.slot not in far or part.is_contiguous():
            target.copy_(part, non_blocking=True)
        else:  # the ends of long rows: together they would pass through a pageable buffer, and the device be waited for
            for row, values in zip(target, part, strict=True):
                row.copy_(values, non_blocking=True)
        start += len(piece.rows)
    return out
