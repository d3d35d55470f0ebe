"""The README says what is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from lightning_sphere import SphereMonitor
from lightning_sphere.quantities import markdown_table

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_table_of_quantities_is_the_packages() -> None:
    assert markdown_table() in README


def test_every_argument_is_described_with_its_default() -> None:
    section = README.partition("## Arguments")[2].partition("\n## ")[0]
    for name, parameter in inspect.signature(SphereMonitor).parameters.items():
        (row,) = (line for line in section.splitlines() if line.startswith(f"| `{name}`"))
        shown = f"{parameter.default:g}" if type(parameter.default) in (int, float) else f"`{parameter.default}`"
        assert f"| {shown} |" in row


def test_pictures_and_commands_exist() -> None:
    root = Path(__file__).parent.parent
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (root / picture).is_file(), picture
    makefile = (root / "Makefile").read_text()
    for command in re.findall(r"^make (\S+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
