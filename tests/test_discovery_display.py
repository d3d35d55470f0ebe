"""How a discovery looks: terminal, text, notebook."""

from __future__ import annotations

import io
import shutil
from html.parser import HTMLParser

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from lightning_sphere import Discovery, discover
from lightning_sphere.discovery.display import STYLE
from lightning_sphere.discovery.repeats import Row, collapse
from lightning_sphere.groups import GroupPart, ScaleGroup


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def found() -> Discovery:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block() for _ in range(12)))
    layers = {"tokens": nn.Embedding(20, 8), "blocks": blocks, "norm": nn.LayerNorm(8), "flat": nn.Flatten(0, 1)}
    head = {"fc": nn.Linear(8, 9, bias=False), "bn": nn.BatchNorm1d(9), "gelu": nn.GELU(), "head": nn.Linear(9, 20)}
    model = nn.Sequential()
    for name, layer in {**layers, **head}.items():
        model.add_module(name, layer)
    ids = torch.randint(20, (4, 6))
    return discover(F.cross_entropy(model(ids), ids.flatten()), model)


def layer(name: str, reason: str, shape: tuple[int, ...] = (8, 8), kind: str = "none") -> ScaleGroup:
    return ScaleGroup(name, (GroupPart(f"{name}.weight"),), 8, kind, shape, reason=reason)  # type: ignore[arg-type]


def test_the_title_counts() -> None:
    one = layer("a", "invariant per row: X follows", kind="row")
    two = layer("b", "not invariant")
    assert (
        repr(Discovery((one, two))) == "<Discovery: 1 of 2 weights is scale-invariant by structure; print() shows why>"
    )
    many = Discovery((one, two, one), joint_sets=(("a", "b"), ("c", "d"), tuple("efg")), frozen=(two,))
    expected = "2 of 3 weights are scale-invariant by structure; 3 joint sets of 2 (2 times) and 3 tensors; 1 frozen"
    assert many.to_text(200).startswith(expected)
    assert str(Discovery()) == "0 of 0 weights are scale-invariant by structure"


def test_repeated_blocks_are_told_as_one(found: Discovery) -> None:
    text = found.to_text(160)
    assert "blocks.{0-11}.up (12x)" in text
    assert "blocks.{0-10}.down (11x)" in text
    assert "LayerNorm `blocks.{1-11}.norm` reads" in text
    assert "LayerNorm `norm` reads" in text  # the last block's
    assert "Invariant only together (25 tensors): tokens.weight, blocks.{0-11}.down.weight, " in text
    every = found.to_text(160, expand=True)
    assert "{" not in every
    assert all(f"blocks.{index}.down " in every for index in range(12))


def test_it_fits_any_terminal(found: Discovery) -> None:
    for width in (40, 60, 80, 100, 120, 200):
        lines = found.to_text(width).split("\n")
        assert max(map(len, lines)) <= width
        assert not any(line.endswith(" ") for line in lines)
        for row in found.table():  # no word of a reason is lost
            assert row["reason"].split()[-1] in found.to_text(width, expand=True)


def test_terminal_and_text_say_the_same(found: Discovery, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    Console(file=file, width=100, color_system=None).print(found)
    shown = "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n"))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: shutil.os.terminal_size((100, 24)))
    assert str(found) == shown == found.to_text(100)
    coloured = io.StringIO()
    Console(file=coloured, width=100, color_system="standard", force_terminal=True).print(found)
    assert "\x1b[32mper row" in coloured.getvalue() or "\x1b[32minvariant per row" in coloured.getvalue()


def test_markup_in_names_is_not_markup() -> None:
    discovery = Discovery((layer("a[bold]", "not invariant: `b[/red]` <i>reads</i> it"),))
    assert "a[bold]" in discovery.to_text(80)
    assert "`b[/red]` <i>reads</i> it" in discovery.to_text(80)


class Cells(HTMLParser):
    """Tags, and the text of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def test_the_notebook_shows_the_same_table(found: Discovery) -> None:
    page = Cells(found._repr_html_())
    assert page.cells[:4] == ["tokens", "20x8", "● jointly", page.cells[3]]
    assert "blocks.{0-11}.up (12x)" in page.cells
    assert "● per row" in page.cells
    assert found.to_html(expand=True).count("<tr>") == 1 + len(found.table())


def test_names_are_no_html() -> None:
    evil = '<script>alert("x")</script>&amp;'
    page = Discovery((layer(evil, f"not invariant: `{evil}` reads it"),), joint_sets=((evil, evil),))._repr_html_()
    cells = Cells(page)
    assert "script" not in cells.tags
    assert cells.cells[0] == evil
    assert evil in cells.cells[3]


def test_colours_are_those_of_the_notebook() -> None:
    """Neither white nor black is asked for: the text takes the colour that it has around."""
    assert "color:inherit" in STYLE
    assert "#" not in STYLE


# -- repeated blocks -------------------------------------------------------------------------------------------------


def rows(*pairs: tuple[str, str]) -> list[tuple[str, str, int]]:
    return [(row.name, row.text, row.count) for row in collapse([Row(name, text) for name, text in pairs])]


def test_numbers_stay_or_move_along() -> None:
    moving = [(f"h.{i}.proj", f"before `h.{i + 1}.norm`") for i in range(5)]
    assert rows(*moving) == [("h.{0-4}.proj", "before `h.{1-5}.norm`", 5)]
    staying = [(f"h.{i}.proj", "with 13 others before `h.0.norm`") for i in range(5)]
    assert rows(*staying) == [("h.{0-4}.proj", "with 13 others before `h.0.norm`", 5)]
    both = [(f"h.{i}.proj", f"`h.{i}.a` and `h.0.b`") for i in range(3)]
    assert rows(*both) == [("h.{0-2}.proj", "`h.{0-2}.a` and `h.0.b`", 3)]
    neither = [(f"h.{i}.proj", f"before `h.{i * i}.norm`") for i in range(4)]
    assert [name for name, _, _ in rows(*neither)] == ["h.{0-1}.proj", "h.{2}.proj".replace("{2}", "2"), "h.3.proj"]


def test_what_differs_stays_apart() -> None:
    assert len(rows(("h.0.a", "x"), ("h.1.a", "y"))) == 2
    assert len(rows(("h.0.a", "with 3 others"), ("h.1.a", "with 4 others"))) == 2
    assert len(collapse([Row("h.0.a", same=(8, 8)), Row("h.1.a", same=(8, 4))])) == 2
    assert rows(("conv1", ""), ("conv2", "")) == [("conv1", "", 1), ("conv2", "", 1)]


def test_nested_blocks_gaps_and_order() -> None:
    nested = [(f"stage.{i}.block.{j}.a", f"`stage.{i}.block.{j}.n`") for i in range(2) for j in range(3)]
    assert rows(*nested) == [("stage.{0-1}.block.{0-2}.a", "`stage.{0-1}.block.{0-2}.n`", 6)]
    assert rows(("m.0.w", ""), ("m.3.w", ""), ("m.4.w", "")) == [("m.{0,3-4}.w", "", 3)]
    assert rows(*((f"m.{2 * i}.w", "") for i in range(6))) == [("m.{0,2,...,10}.w", "", 6)]
    assert rows(("h.0.a", ""), ("h.0.b", ""), ("h.1.a", ""), ("h.1.b", "")) == [
        ("h.{0-1}.a", "", 2),
        ("h.{0-1}.b", "", 2),
    ]
    assert rows() == []


def test_an_overwhelming_eps_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, eps=1e3), nn.Linear(5, 3))
    text = discover(model(torch.randn(8, 4)).exp().sum(), model).to_text(120)
    assert "(its eps is 100% of what it divides by)" in text


def test_a_claim_by_gradients_alone_looks_like_one() -> None:
    reason = "invariant per row: by the gradients of 20 steps alone (unknown operation `Own` reads it)"
    assert "per row    by the gradients of 20 steps alone" in Discovery((layer("a", reason, kind="row"),)).to_text(120)
