"""Results as tables: `python -m benchmarks.render results.json` prints Markdown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figures, figures, measurement_error
from benchmarks.machine import in_words
from benchmarks.variants import BARE

MEGABYTE = 1e6

COLUMNS = (
    "",
    "ms/step",
    "x bare",
    "(middle half)",
    "added ms",
    "of it writing",
    "grad_norm adds",
    "ops",
    "waits",
    "bytes",
    "peak MB",
)

NOTE = (
    "Medians over rounds in which all variants take turns. Added to bare training: ms, operations (in the training "
    "thread), waits for the device, bytes on disk (all per step), and memory at the peak. grad_norm + log_dict logs at "
    "every step (log_every_n_steps=1) as its users do, and SphereMonitor records every step. 'of it writing': "
    "evaluating and writing, as far as it holds up training."
)


def cells(row: Figures) -> list[str]:
    """The texts of a row, as in :data:`COLUMNS`."""
    if row.variant == BARE:
        return [row.title, _number(row.ms), "1", *["-"] * (len(COLUMNS) - 3)]
    return [
        row.title,
        _number(row.ms),
        f"{row.ratio:.3f}",
        f"{row.quartiles[0]:.3f}-{row.quartiles[1]:.3f}",
        f"{row.added_ms:+.2f}",
        "-" if row.flush_ms is None else f"{row.flush_ms:.2f}",
        "-" if row.less_than_grad_norm is None else f"{row.less_than_grad_norm:.1f}x as much",
        _count(row.operations),
        _count(row.synchronizations),
        _count(row.bytes),
        "-" if row.memory is None else f"{row.memory / MEGABYTE:+.0f}",
    ]


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    rounded = f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if rounded in ("-0", "") else rounded


def heading(model: Mapping[str, Any]) -> str:
    """What was trained, and how far apart two equal trainings were."""
    bare = model["variants"][BARE]
    error = measurement_error(model["variants"])
    size = f"{bare['parameters'] / 1e6:.2g} M parameters in {bare['tensors']} tensors"
    doubt = "" if error is None else f"; two bare trainings differ by {error:.1%}"
    kinds = {by for variant in model["variants"].values() if (by := variant.get("measured_by"))}
    way = f"; measured by {', '.join(sorted(kinds))}" if kinds else ""
    rounds = f"{model['rounds']} rounds of {model['turn']} steps"
    return f"{model['title']}, {model['optimizer']}: {size}, {rounds}{way}{doubt}"


def kernel_line(model: Mapping[str, Any]) -> list[str]:
    """The measuring kernel on CUDA, where there is one."""
    kernel = model.get("kernel")
    if not kernel:
        return []
    return [
        f"measuring kernel: {kernel['launches']:.2g} launches and {kernel['kernel_ms']:.3f} ms per step, "
        f"{kernel['share_of_floor']:.0%} of the bandwidth floor ({kernel['bytes'] / MEGABYTE:,.0f} MB at "
        f"{kernel['copy_bytes_per_second'] / 1e9:,.0f} GB/s)"
    ]


def model_table(model: Mapping[str, Any]) -> Table:
    """One training's table for the terminal."""
    table = Table(title=heading(model), title_justify="left", title_style="bold", header_style="dim", box=None)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in figures(model["variants"]):
        ours = row.variant.startswith("sphere")
        table.add_row(*cells(row), style="bold green" if ours else "")
    return table


SCALING_COLUMNS = ("", "optimizer.step", "measuring adds", "writing, per step")


def scaling_cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row, as in :data:`SCALING_COLUMNS`."""
    title = f"{row['parameters']:,} parameters, {row['layers']:,} layers, {row['groups']:,} groups"
    return [title, f"{row['step_ms']:.2f} ms", f"{row['hot_ms']:+.2f} ms", f"{row['flush_ms']:.2f} ms"]


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The scaling table for the terminal."""
    table = Table(title="Scaling, core quantities", title_justify="left", title_style="bold", box=None)
    for column in SCALING_COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    last = None
    for row in rows:
        if last not in (None, row["varied"]):
            table.add_section()
            table.add_row()
        last = row["varied"]
        table.add_row(*scaling_cells(row))
    return table


def terminal(results: Mapping[str, Any]) -> RenderableType:
    """All results, for the terminal."""
    parts: list[RenderableType] = []
    for model in results.get("models", {}).values():
        parts += [model_table(model), *map(Text, kernel_line(model)), Text()]
    if results.get("models"):
        parts += [Text(NOTE, style="dim"), Text()]
    if results.get("scaling"):
        parts += [scaling_table(results["scaling"]), Text()]
    return Group(*parts, Text(in_words(results["machine"]), style="dim"))


def markdown(results: Mapping[str, Any]) -> str:
    """All results, for the README."""
    parts: list[str] = []
    for model in results.get("models", {}).values():
        parts.append(f"**{heading(model)}**")
        parts.append(_markdown_table(COLUMNS, [cells(row) for row in figures(model["variants"])]))
        parts += kernel_line(model)
    if results.get("models"):
        parts.append(NOTE)
    if results.get("scaling"):
        parts.append("**Scaling, core quantities**")
        parts.append(_markdown_table(SCALING_COLUMNS, [scaling_cells(row) for row in results["scaling"]]))
    parts.append(in_words(results["machine"]))
    return "\n\n".join(parts)


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    border = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, border, *rows))


def report(results: Mapping[str, Any], *, output: Path | None, as_markdown: bool) -> None:
    """Print all results, without cutting where the output is a file, and save them."""
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")
    if as_markdown:
        sys.stdout.write(markdown(results) + "\n")
    else:
        console = Console()
        (console if console.is_terminal else Console(width=160)).print(terminal(results))


def main() -> None:
    """Print the Markdown of a file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="what `python -m benchmarks.overhead --output` wrote")
    report(json.loads(parser.parse_args().results.read_text()), output=None, as_markdown=True)


if __name__ == "__main__":
    main()
