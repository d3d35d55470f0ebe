"""Which way the sums are made: by a kernel where there is one for the device, else by PyTorch operations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_sphere.measurement import host_kernel
from lightning_sphere.measurement.kernel_sums import KernelSums
from lightning_sphere.measurement.layout import Kernel, Layout, layout_of
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.sums import TorchSums

_log = logging.getLogger("lightning_sphere")

Sums: TypeAlias = TorchSums | KernelSums
"""Anything that makes the sums of a plan."""

_told: set[str] = set()
_failed: dict[str, str] = {}
"""Why a kernel could not be made, by type of device."""


def give_up(device: torch.device, reason: str) -> None:
    """Make no more kernels for a type of device, in this process."""
    _failed[device.type] = reason


def sums_of_plan(plan: Plan, columns: Sequence[str]) -> Sums:
    """What measures a plan.

    Args:
        plan: what to measure.
        columns: names of the sums per segment, the order of a row of the ring.
    """
    if not plan.slots:
        return TorchSums(plan, columns)
    layout = layout_of(plan) if all(_is_plain(slot.parameter) for slot in plan.slots) else None
    if layout is None:
        reason = "a weight's memory is not laid out as a kernel reads it"
    else:
        kernel, reason = _kernel(plan.device, layout, {slot.parameter.dtype for slot in plan.slots})
        if kernel is not None:
            return KernelSums(plan, columns, kernel)
    if reason not in _told:
        _told.add(reason)
        # On the host that is the plain install; on CUDA the training itself waits for these operations.
        level = logging.WARNING if plan.device.type == "cuda" else logging.INFO
        _log.log(level, "steps are measured by PyTorch operations, which take more time than a kernel: %s", reason)
    return TorchSums(plan, columns)


def _kernel(device: torch.device, layout: Layout, dtypes: set[torch.dtype]) -> tuple[Kernel | None, str]:
    """A kernel for a device, or why there is none."""
    kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if device.type == "cpu":
        reason = host_kernel.reason()
        if not reason and host_kernel.supports(dtypes):
            return host_kernel.HostKernel(layout), ""
        return None, reason or f"the host's kernel does not read {kinds}"
    if device.type in _failed:
        return None, _failed[device.type]
    if device.type == "cuda":
        from lightning_sphere.measurement import cuda_kernel  # Triton takes a while to import

        usable, why_not = cuda_kernel.available(device)
        if usable and cuda_kernel.supports(dtypes):
            return cuda_kernel.CudaKernel(layout, device), ""
        return None, why_not if not usable else f"the CUDA kernel does not read {kinds}"
    return None, f"there is no kernel for devices of type {device.type}"


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is its own memory, rather than a wrapper of other tensors (as a DTensor is)."""
    return type(parameter) in (nn.Parameter, Tensor) or type(parameter).__torch_dispatch__ is Tensor.__torch_dispatch__
