"""What can be told of the page's files without a browser: small, in use, nothing from elsewhere, no HTML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lightning_sphere

STATIC = Path(lightning_sphere.__file__).parent / "tensorboard" / "dashboard" / "static"
MODULES = sorted(STATIC.glob("*.js"))


def test_there_are_scripts_and_a_style_and_nothing_else() -> None:
    assert {path.suffix for path in STATIC.iterdir()} == {".js", ".css"}
    assert len(MODULES) > 10


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_a_module_is_small_and_says_what_it_is_for(module: Path) -> None:
    text = module.read_text()
    assert text.startswith("/** ")
    assert len(text.splitlines()) <= 210


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_text_cannot_become_html_or_code(module: Path) -> None:
    ways = r"(inner|outer|insertAdjacent)HTML|document\.write|DOMParser|ContextualFragment|srcdoc|\beval\(|Function\("
    assert not re.search(ways, module.read_text())


@pytest.mark.parametrize("file", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(file: Path) -> None:
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text()))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_every_module_is_reached_from_the_first() -> None:
    imports = {path.name: set(re.findall(r"from \"\./([\w.]+)\"", path.read_text())) for path in MODULES}
    reached, left = {"main.js"}, ["main.js"]
    while left:
        for name in imports[left.pop()] - reached:
            reached.add(name)
            left.append(name)
    assert reached == {path.name for path in MODULES}
