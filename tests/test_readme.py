"""The README says what is."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
from pathlib import Path
from typing import cast

from rich.console import Console

from benchmarks.render import markdown
from lightning_sphere import SphereMonitor
from lightning_sphere.quantities import markdown_table
from lightning_sphere.settling import LayerEquilibrium, State
from lightning_sphere.summary import LayerSummary, RunSummary

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_table_of_quantities_is_the_packages() -> None:
    assert markdown_table() in README


def test_every_argument_is_described_with_its_default() -> None:
    section = README.partition("## Arguments")[2].partition("\n## ")[0]
    for name, parameter in inspect.signature(SphereMonitor).parameters.items():
        (row,) = (line for line in section.splitlines() if line.startswith(f"| `{name}`"))
        shown = f"{parameter.default:g}" if type(parameter.default) in (int, float) else f"`{parameter.default}`"
        assert f"| {shown} |" in row


def test_the_lines_on_equilibrium_are_the_packages() -> None:
    nan = math.nan
    for name, state, ratio, turns, to_go in (
        ("stem.0", "out of reach", 0.62, 0.53, 220.0),
        ("block1.conv1", "settled", 0.93, 0.79, 0.0),
        ("block3.shortcut.0", "transient", 0.67, 0.57, 160.0),
    ):
        angles = math.radians(turns), math.radians(0.85)
        layer = LayerEquilibrium(cast(State, state), ratio, *angles, nan, nan, 238.0, to_go, remaining=200)
        assert f"\n{name} {layer.describe()}\n" in README


def test_the_legend_of_the_table_is_the_packages() -> None:
    layer = LayerSummary("stem.0", (16, 1, 3, 3), "row", 0.5, 1e-3, 0.9, 0.0, 7e-5)
    console = Console(file=io.StringIO(), width=80, record=True)
    RunSummary((layer,), steps=1320, window=10).print(console=console)
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    assert printed[printed.index("Medians over") :] in README


def test_pictures_and_commands_exist() -> None:
    root = Path(__file__).parent.parent
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (root / picture).is_file(), picture
    makefile = (root / "Makefile").read_text()
    for command in re.findall(r"^make (\S+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command


def test_the_figures_are_those_of_the_results() -> None:
    shown = README.partition("<!-- benchmark -->\n")[2].partition("\n<!-- /benchmark -->")[0]
    results = json.loads((Path(__file__).parent.parent / "benchmarks" / "results.json").read_text())
    assert shown == markdown(results)
