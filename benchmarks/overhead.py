"""What watching a training costs, in one run: `python -m benchmarks.overhead`.

Bare training, other tools and SphereMonitor train the same networks, each in its own process, and take turns. See
`--help` for what can be chosen; `python -m benchmarks.render results.json` prints the Markdown of a saved run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.bandwidth import kernel_figures
from benchmarks.cases import CASES, DEFAULT_CASES, EARLY_STEPS, OPTIMIZERS
from benchmarks.interleave import take_turns
from benchmarks.machine import machine
from benchmarks.render import report
from benchmarks.scaling import QUICK_SIZES, SIZES, scaling
from benchmarks.variants import BARE, VARIANTS
from benchmarks.worker import Job

QUICK_ROUNDS = 3

QUICKER = 4
"""How much shorter turns are with ``--quick``."""


def arguments_of(line: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=CASES, default=DEFAULT_CASES, metavar="MODEL", help=", ".join(CASES)
    )
    available = [name for name, variant in VARIANTS.items() if variant.available]
    parser.add_argument(
        "--variants", nargs="+", choices=available, default=available, metavar="VARIANT", help=", ".join(available)
    )
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adamw")
    parser.add_argument("--rounds", type=int, help="turns of each variant (default: by model)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write, with all raw times")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--no-scaling", action="store_true", help="leave out the scaling table")
    parser.add_argument("--quick", action="store_true", help="a minute or two: few rounds, less reliable")
    return parser.parse_args(line)


def measure_model(name: str, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All variants of one training."""
    case = CASES[name]
    turn = case.turn // QUICKER if arguments.quick else case.turn
    early = 1 if arguments.quick else -(-EARLY_STEPS // turn)
    rounds = arguments.rounds or (min(case.rounds, QUICK_ROUNDS) if arguments.quick else case.rounds)
    chosen = [variant for variant in VARIANTS if variant == BARE or variant in arguments.variants]
    jobs = [Job(name, variant, arguments.optimizer, arguments.device, turn, early) for variant in chosen]
    with console.status("") as status:
        variants = take_turns(jobs, rounds, lambda text: status.update(f"{case.title}: {text}"))
    model = {
        "title": case.title,
        "optimizer": arguments.optimizer,
        "turn": turn,
        "rounds": rounds,
        "variants": variants,
    }
    if arguments.device == "cuda":
        model["kernel"] = kernel_figures(case, arguments.optimizer, torch.device("cuda"))
    return model


def main(line: Sequence[str] | None = None) -> None:
    """Measure, show, save."""
    arguments = arguments_of(line)
    console = Console(stderr=True)
    start = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(arguments.device), "models": {}}
    for name in arguments.models:
        results["models"][name] = measure_model(name, arguments, console)
    if not arguments.no_scaling:
        sizes, rounds = (QUICK_SIZES, 2) if arguments.quick else (SIZES, 5)
        with console.status("scaling"):
            device = torch.device(arguments.device)
            results["scaling"] = list(scaling(device, arguments.optimizer, rounds, sizes))
    results["seconds"] = time.perf_counter() - start
    report(results, output=arguments.output, as_markdown=arguments.markdown)


if __name__ == "__main__":
    main()
