"""The measuring kernel against the least that memory allows. Only for CUDA.

The floor is the time to read, once, all that the figures of a step are made from, at the bandwidth that a plain copy
reaches on this GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.cases import OPTIMIZERS, Case
from lightning_sphere import SphereTracker

KERNEL = "sphere"
"""What the names of the measuring kernels contain."""

STEPS = 20


def copy_bandwidth(device: torch.device, size: int = 1 << 30, repeats: int = 20) -> float:
    """Bytes per second, read and written together, of copies of ``size`` bytes on the device."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        target.copy_(source)
    torch.cuda.synchronize(device)
    return 2 * size * repeats / (time.perf_counter() - start)


def bytes_to_read(optimizer: Optimizer, measured: list[Tensor]) -> int:
    """Bytes of the measured weights, their gradients, and all that the optimizer keeps of the weights' shape."""
    total = 0
    for weight in measured:
        kept = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
        whole = [weight, weight.grad, *(value for value in kept if value.shape == weight.shape)]
        total += sum(tensor.numel() * tensor.element_size() for tensor in whole if tensor is not None)
    return total


def kernels(run: Callable[[], Any], steps: int) -> tuple[float, float]:
    """Seconds that the measuring kernels take, and how many there are, per step of a function that runs ``steps``."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    ours = [event for event in profile.key_averages() if KERNEL in event.key.lower() and event.self_device_time_total]
    microseconds = sum(float(event.self_device_time_total) for event in ours)
    return microseconds / 1e6 / steps, sum(int(event.count) for event in ours) / steps


def kernel_figures(case: Case, optimizer_name: str, device: torch.device) -> dict[str, float]:
    """Launches and time per step of the measuring kernels, and which share of the bandwidth floor they reach."""
    network = case.seeded_network().to(device)
    optimizer = OPTIMIZERS[optimizer_name](network)
    inputs, targets = case.batch(min(4, case.batch_size), device)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.step()

    with SphereTracker(network, optimizer, strict=True) as tracker:
        F.cross_entropy(network(inputs).flatten(0, -2), targets.flatten()).backward()  # type: ignore[no-untyped-call]
        steps(100)  # until drift is measured at few steps only
        tracker.flush()
        seconds, launches = kernels(lambda: steps(STEPS), STEPS)
        plan: Any = tracker._taps[0].plan
        measured = list({id(slot.parameter): slot.parameter for slot in plan.slots}.values())
        needed = bytes_to_read(optimizer, measured)
    bandwidth = copy_bandwidth(device)
    return {
        "launches": launches,
        "kernel_ms": seconds * 1e3,
        "bytes": needed,
        "copy_bytes_per_second": bandwidth,
        "share_of_floor": needed / bandwidth / seconds if seconds else 0.0,
    }
