"""What the Text tab says of a run, and that names in it stay what they are."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.plugin_util import markdown_to_safe_html
from torch import nn

from lightning_sphere.about import ROWS, about, facts_of
from lightning_sphere.quantities import STATS
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.tensorboard.text import LONGEST, code, escaped, marked, table

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b",
    "`x` | <b>bold</b>",
    "``",
    "[link](javascript:alert(1))",
    "![image](http://example.org/x.png)",
    "*a* __b__ ~c~ # d",
    "back\\slash\\",
    "&lt;b&gt; &#60;",
    "line\nbreak\r\n\n| --- |",
    "tab\tand\0null",
    "trailing`",
    "<!-- comment",
    "größe 重み \u202e",
    "\ud800",
)


def schema(rows: list[dict[str, Any]]) -> TableSchema:
    return TableSchema((), (), STATS, (), (), tuple(rows))


def row(layer: str, reason: str = "not invariant: why", **more: Any) -> dict[str, Any]:
    return {
        "layer": layer,
        "parameter": f"{layer}.weight",
        "kind": "none",
        "axis": None,
        "blocks": None,
        "members": None,
        "joint_with": (),
        "norm": None,
        "reason": reason,
        "joint": False,
        **more,
    }


def shown(markdown: str) -> str:
    """What a reader sees of TensorBoard's HTML, tags taken out."""
    return html.unescape(re.sub(r"<[^>]*>", "", markdown_to_safe_html(markdown)))


def visible(text: str) -> str:
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("write", [escaped, code])
def test_any_name_is_shown_as_it_is_and_does_nothing(write: Any, text: str) -> None:
    page = markdown_to_safe_html(table(["name", "other"], [[write(text), "next"], ["last", ""]]))
    tags = set(re.findall(r"<\s*/?\s*([a-z]+)", page))
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    cells = [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]
    assert cells == [visible(text), "next", "last", ""]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.text(alphabet=st.characters() | st.sampled_from("`|<>&*_[]()#\\!~ \n{}'\""), max_size=30))
def test_no_text_breaks_out_of_its_cell(text: str) -> None:
    for write in (escaped, code, marked):
        page = markdown_to_safe_html(table(["name", "other"], [[write(text) or "-", "next"]]))
        assert set(re.findall(r"<\s*/?\s*([a-z]+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
        assert len(re.findall("<td>", page)) == 2
    assert shown(f"x{escaped(text)}x") == f"x{visible(text)}x"


def test_names_in_reasons_are_code_and_long_ones_are_cut() -> None:
    assert marked("BatchNorm `stem.1` follows") == "BatchNorm `stem.1` follows"
    assert marked("`a|b` < c") == "<code>a&#124;b</code> &#60; c"
    assert len(shown(escaped("x" * 5000)).strip()) == LONGEST


def test_what_it_says_of_a_run() -> None:
    norm = {"kind": "row", "axis": 0, "blocks": 64, "norm": "BatchNorm `bn`"}
    rows = [
        row("stem", "invariant per filter: BatchNorm `bn` follows", **norm),
        *(row(f"blocks.{i}.up", f"not invariant: GELU `blocks.{i}.act` follows") for i in range(12)),
        row("old", "frozen"),
        row("head", norm="a norm"),
        row(
            "residual stream, 2 tensors",
            "invariant only together: 2 tensors",
            parameter="stem.weight",
            kind="whole",
            blocks=1,
            joint_with=("head.weight",),
            joint=True,
        ),
    ]
    text = about(schema(rows), ["- Optimizer: any"])
    lines = text.splitlines()
    assert lines[0] == "**1 of 14 weights is scale-invariant**; 1 joint set of 2 tensors; 1 frozen."
    assert "- Optimizer: any" in lines
    assert "| `stem` | row&nbsp;x&nbsp;64 | invariant per filter: BatchNorm `bn` follows |" in lines
    assert "| `blocks.{0-11}.up` (12x) | none | not invariant: GELU `blocks.{0-11}.act` follows |" in lines
    assert lines[-1] == "`residual stream, 2 tensors`, invariant only together: 2 tensors: `stem.weight`, `head.weight`"
    assert "| `head` | none | not invariant: why (a norm) |" in lines
    assert len([line for line in lines if line.startswith("|")]) == 6
    assert "<table>" in markdown_to_safe_html(text)


def test_a_thousand_layers_stay_bounded() -> None:
    alike = about(schema([row(f"blocks.{i}.up") for i in range(1000)]), [])
    assert "`blocks.{0-999}.up` (1000x)" in alike
    odd = about(schema([row(f"layer_{i * i}", f"not invariant: {'x' * i}") for i in range(1000)]), [])
    assert len([line for line in odd.splitlines() if line.startswith("|")]) == ROWS + 2
    assert f"{1000 - ROWS} more weights" in odd
    assert len(odd) < 100_000


def test_settings_of_all_param_groups_and_arguments_in_short() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(
        [{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "weight_decay": 0.0}], lr=1e-3
    )
    sgd = torch.optim.SGD(first.parameters(), lr=torch.tensor(0.5))
    arguments: Mapping[str, Any] = {
        "every_n_steps": 1,
        "include": ("a.*", "b"),
        "drift_from": {"huge": torch.zeros(100)},
        "groups": lambda module: [],
        "log": Path("x/y"),
        "quantities": ("norm",) * 50,
    }
    adam, plain, given_, versions = facts_of(arguments, [optimizer, sgd])
    assert adam.startswith("- Optimizer: `AdamW` with 2 param groups: `lr` 0.1 / 0.001, `weight_decay` 0.01 / 0, ")
    assert "`betas` (0.9, 0.999), `eps` 1e-08" in adam
    assert plain.startswith("- Optimizer: `SGD`: `lr` 0.5")
    assert "`include` (a.&#42;, b), `drift_from` given (dict), `groups` given (function), `log` x/y" in given_
    assert given_.endswith("norm, ...)")
    assert f"torch {torch.__version__}" in versions
