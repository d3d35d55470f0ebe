"""What measuring costs by number of parameters, groups and layers: `python -m benchmarks.scaling`.

There is no network: weights get fixed gradients, and only ``optimizer.step()`` runs, with and without a SphereTracker,
in turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.cases import EARLY_STEPS, OPTIMIZERS, SEED
from benchmarks.machine import machine
from benchmarks.render import report
from benchmarks.worker import synchronize
from lightning_sphere import GroupPart, ScaleGroup, SphereTracker

STEPS = 20
"""Per turn, and between two flushes."""

LR = 1e-6
"""So small that the fixed gradients stay orthogonal to the weights."""

PARAMETERS, LAYERS, GROUPS = 4_000_000, 10, 10_000
"""What is kept constant while something else varies, in all layers together."""


@dataclass(frozen=True)
class Size:
    """One point of the table."""

    varied: str
    parameters: int
    layers: int
    groups: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of each layer's weight: groups, and elements of a group."""
        rows = self.groups // self.layers
        return rows, max(1, self.parameters // self.groups)


SIZES: tuple[Size, ...] = (
    *(Size("parameters", count, LAYERS, 1000) for count in (100_000, 1_000_000, 10_000_000, 30_000_000)),
    *(Size("groups", PARAMETERS, LAYERS, count) for count in (100, 1_000, 10_000, 100_000, 1_000_000)),
    *(Size("layers", PARAMETERS, count, GROUPS) for count in (10, 100, 1000)),
)

QUICK_SIZES = tuple(size for size in SIZES if size.parameters <= 4e6 and size.groups <= 1e4 and size.layers <= 100)


MANY_GROUPS = 10_000
"""With more groups, steps are written one by one: a turn of them exceeds the memory that a tracker takes."""


class TimedTracker(SphereTracker):
    """Knows how long its flushes took, also those that a full buffer asks for."""

    flush_seconds = 0.0

    def flush(self, *args: Any, **kwargs: Any) -> None:
        """Evaluate and write."""
        start = time.perf_counter()
        super().flush(*args, **kwargs)
        self.flush_seconds += time.perf_counter() - start


def weights(size: Size, device: torch.device) -> tuple[nn.ParameterList, list[ScaleGroup]]:
    """Weights of that size with gradients, and their rows as groups; gradients are orthogonal to them, as claimed."""
    torch.manual_seed(SEED)
    model = nn.ParameterList([torch.randn(size.shape) for _ in range(size.layers)]).to(device)
    for parameter in model:
        gradient, weight = torch.randn_like(parameter), parameter.detach()
        along = (gradient * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True)
        parameter.grad = gradient - along * weight
    groups = [
        ScaleGroup(f"layer{index}", (GroupPart(str(index)),), blocks=size.shape[0], kind="row")
        for index in range(size.layers)
    ]
    return model, groups


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def measure(size: Size, device: torch.device, optimizer: str, rounds: int) -> dict[str, Any]:
    """Milliseconds per step: of the bare optimizer, what measuring adds, and what a flush takes."""
    plain, _ = weights(size, device)
    watched, groups = weights(size, device)
    bare, measured = OPTIMIZERS[optimizer](plain), OPTIMIZERS[optimizer](watched)
    for group in (*bare.param_groups, *measured.param_groups):
        group["lr"] = LR

    def steps(taken: torch.optim.Optimizer, count: int = STEPS) -> None:
        for _ in range(count):
            taken.step()

    base: list[float] = []
    added: list[float] = []
    flushed: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        TimedTracker(watched, measured, folder, groups=groups, flush_every_n_steps=STEPS, strict=True) as tracker,
    ):
        steps(measured, EARLY_STEPS)
        steps(bare)
        tracker.flush()
        for _ in range(rounds):
            base.append(timed(lambda: steps(bare), device))
            tracker.flush_seconds = 0.0

            def turn() -> None:
                for _ in range(STEPS):
                    steps(measured, 1)
                    if size.groups > MANY_GROUPS:  # the buffer would be full
                        tracker.flush()
                tracker.flush()

            total = timed(turn, device)
            flushed.append(tracker.flush_seconds)
            added.append(total - tracker.flush_seconds - base[-1])
    per_step = 1e3 / STEPS
    return {
        **asdict(size),
        "step_ms": median(base) * per_step,
        "hot_ms": median(added) * per_step,
        "flush_ms": median(flushed) * per_step,
        "rounds": {"step_s": base, "hot_s": added, "flush_s": flushed},
    }


def scaling(device: torch.device, optimizer: str, rounds: int, sizes: tuple[Size, ...]) -> Iterator[dict[str, Any]]:
    """All points, one by one."""
    for size in sizes:
        yield measure(size, device, optimizer, rounds)


def main() -> None:
    """Measure all sizes, show and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adamw")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--quick", action="store_true", help="only the small sizes")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    rows = []
    with Console(stderr=True).status("") as status:
        for size in sizes:
            status.update(str(size))
            rows.append(measure(size, torch.device(arguments.device), arguments.optimizer, arguments.rounds))
    results = {"machine": machine(arguments.device), "scaling": rows}
    report(results, output=arguments.output, as_markdown=arguments.markdown)


if __name__ == "__main__":
    main()
