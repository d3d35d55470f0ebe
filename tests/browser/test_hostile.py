"""Names and texts that would do harm if they were taken for anything but text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from browser_tab import Tab
from browser_views import downloads, opened, singles, state_of, table
from dashboard_world import Run, schema_of, serving, write_run

RUNS = (
    *("with space", "ha#sh", "per%20cent%", "q?x=1&y=2", "pl+us", "quo'te\"s", "\u00fcn\u00ef\u2192\u7801"),
    *('<img src=x onerror=top.hacked=1>"', "<a href='javascript:top.hacked=1'>run", "back\\slash", "=1+1"),
    *("__proto__", "constructor", "deep/er/version_0", "\u202eright to left", "new\nline", "semi;co,lon"),
)
IMAGE = '<img src=x onerror="top.hacked=1">'
LINK = '<a href="javascript:top.hacked=1">link</a>'
SCRIPT = "<script>top.hacked=1</script>"
LAYERS = (
    *(IMAGE, LINK, SCRIPT, "__proto__", "constructor", "long." + "x" * 295, "line\nbreak", "\u202eright to left"),
    *('=HYPERLINK("http://127.0.0.1:9")', "@sum,1", "%{y} %{meta}", "&lt;b&gt;&amp;", "https://127.0.0.1:9/"),
    *(
        "<b>bold</b>",
        "';top.hacked=1;'",
        "${top.hacked=1}",
        "tab\there",
        "\u00fcn\u00ef\u2192\u7801 \U0001f600",
        "head",
    ),
)
WATCH = """() => {
    window.taken = [];
    const bad = new Set(["IMG", "A", "B", "I", "SUP", "IFRAME", "OBJECT"]);
    const ours = (node) => node.download && node.href.startsWith("blob:");
    const look = (node) => {
        if (node.nodeType !== 1) return;
        const name = node.nodeName.toUpperCase();
        const injected = name === "SCRIPT" && /hacked/.test(node.outerHTML);
        const styled = name === "TSPAN" && /bold/.test(node.getAttribute("style") ?? "");
        if ((bad.has(name) && !ours(node)) || injected || styled) window.taken.push(node.outerHTML);
        for (const child of node.children) look(child);
    };
    if (/plugin_entry/.test(location.href)) new MutationObserver((records) => {
        for (const { addedNodes } of records) for (const node of addedNodes) look(node);
    }).observe(document, { childList: true, subtree: true });
}"""
"""Keeps every element that the page never makes by itself, were it there for a moment only."""


def row(name: str, n: int) -> dict[str, Any]:
    """Every text of the description is hostile."""
    said = {"reason": f"{IMAGE} {LINK} {n}", "norm": f"<b>norm</b>{IMAGE}", "parameter": f"{name}{SCRIPT}"}
    further = {"equilibrium": f"{IMAGE}soon", "joint_with": (IMAGE, LINK)}
    return {**said, **further, "verdict": "contradicted", "verified_share": 0.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("hostile")
    rows = {name: row(name, n) for n, name in enumerate(LAYERS)}
    unmeasured = schema_of(1).groups[0] | {"layer": IMAGE + "2", "parameter": IMAGE, "kind": "none", "reason": LINK}
    schema = schema_of(LAYERS, rows=rows, further=[unmeasured])
    runs = {name: write_run(root / name, steps=12, layers=3, seed=n) for n, name in enumerate(RUNS)}
    for n, name in enumerate(("harm", "harm <b>too</b>")):
        runs[name] = write_run(root / name, steps=20, schema=schema, seed=n)
    return runs


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def hostile(runs: dict[str, Run], browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab that watches what is put into it."""
    with serving(runs["harm"].folder.parent, request.param) as address, opened(browser, address) as tab:
        tab.page.add_init_script(f"({WATCH})()")
        yield tab


@pytest.fixture
def watched(hostile: Tab) -> Iterator[Tab]:
    yield hostile
    assert_harmless(hostile)


def assert_harmless(tab: Tab) -> None:
    """Nothing was run, and nothing was taken for HTML."""
    for frame in tab.page.frames:
        assert frame.evaluate("typeof window.hacked") == "undefined"
    assert tab.frame.evaluate("window.taken") == []
    assert tab.frame.locator("img, a, b, [onerror], [onload], [href^=javascript]").count() == 0


def assert_drawn(tab: Tab, run: Run, key: str = "a") -> None:
    expected = np.log10(run.of("angular_step").T.astype(np.float64))
    tab.until(
        lambda: tab.heatmaps()[key].z, lambda drawn: drawn.shape == expected.shape and np.allclose(drawn, expected)
    )
    np.testing.assert_allclose(tab.heatmaps()[key].z, expected, rtol=1e-12)


def test_runs_of_any_name_are_listed_chosen_and_drawn(watched: Tab, runs: dict[str, Run]) -> None:
    watched.show(run="harm")
    choice = watched.get("run")
    assert choice.locator("option").evaluate_all("all => all.map(o => o.value)") == sorted(runs)
    assert choice.locator("option").evaluate_all("all => all.map(o => o.textContent)") == sorted(runs)
    for name in RUNS:
        choice.select_option(value=name)
        assert_drawn(watched, runs[name])


@pytest.mark.parametrize("name", ["ha#sh", "per%20cent%", "q?x=1&y=2", "pl+us", RUNS[7], "__proto__", "new\nline"])
def test_a_link_to_a_run_of_any_name(watched: Tab, runs: dict[str, Run], name: str) -> None:
    watched.show(run=name, vs="harm <b>too</b>")
    assert watched.get("run").input_value() == name
    expect(watched.get("notice")).to_have_count(0)
    kept = np.array([layer in runs[name].schema.layers for layer in watched.heatmaps()["a"].layers])
    drawn = watched.heatmaps()["a"].z[kept]
    np.testing.assert_allclose(drawn, np.log10(runs[name].of("angular_step").T.astype(np.float64)), rtol=1e-12)
    expect(watched.get("legend-a").locator(".pane-name .cut")).to_have_text(name)
    expect(watched.get("legend-b").locator(".pane-name .cut")).to_have_text("harm <b>too</b>")


def test_layers_of_any_name_are_shown_literally(watched: Tab, runs: dict[str, Run]) -> None:
    watched.show(run="harm")
    assert watched.rows() == list(LAYERS)
    assert_drawn(watched, runs["harm"])
    shown = watched.frame.locator("[data-testid=layers] .layer-name").all_text_contents()
    for name, text in zip(LAYERS, shown, strict=True):
        plain = " ".join(name.split())
        assert text == plain if len(plain) <= 32 else (plain.startswith(text.split("\u2026")[0]) and len(text) <= 32), (
            name
        )
    expect(watched.get("unmeasured")).to_contain_text("1 weight is not measured")
    watched.get("unmeasured").locator("summary").click()
    expect(watched.get("unmeasured")).to_contain_text(f"{IMAGE} {LINK}")


def test_layers_of_any_name_are_opened(watched: Tab, runs: dict[str, Run]) -> None:
    watched.show(run="harm", smooth=0)
    options, facts = watched.frame.get_by_test_id("layers").get_by_role("option"), watched.get("facts")
    for place, name in enumerate(LAYERS):
        options.nth(place).click()
        numbers = runs["harm"].of("angular_step")[:, place]
        line = watched.until(
            lambda: watched.curves().get("raw-a"),
            lambda line, numbers=numbers: line is not None and (line.y == numbers).all(),
        )
        assert line is not None
        np.testing.assert_array_equal(line.y, numbers, err_msg=name)
        heading = watched.get("detail").locator("h2 bdi")
        assert heading.text_content() == name
        box, panel = heading.bounding_box(), watched.get("detail").bounding_box()
        assert box is not None
        assert panel is not None
        assert box["x"] + box["width"] <= panel["x"] + panel["width"], "long names stay inside"
        assert state_of(watched.page.url)["layer"] == name
        expect(facts).to_contain_text(f"{IMAGE} {LINK} {place}")
        if name != "head":
            for text in (f"<b>norm</b>{IMAGE}", f"{IMAGE}, {LINK}", f"{IMAGE}soon"):
                expect(facts).to_contain_text(text)


@pytest.mark.parametrize("name", [LINK, "__proto__", "line\nbreak", "${top.hacked=1}"])
def test_a_link_to_a_layer_of_any_name(watched: Tab, name: str) -> None:
    watched.show(run="harm", layer=name)
    expect(watched.get("detail")).to_be_visible()
    assert watched.get("detail").locator("h2 bdi").text_content() == name


def test_pointing_findings_and_search_take_nothing_for_html(watched: Tab) -> None:
    watched.show(run="harm")
    for layer in range(3):
        x, y = watched.place(layer, 10)
        watched.frame.locator("#heatmap-plot").hover(position={"x": x, "y": y}, force=True)
        expect(watched.get("tooltip")).to_contain_text(LAYERS[layer])
    watched.get("filter").fill("onerror=*18")
    assert watched.until(watched.rows, lambda rows: len(rows) == 1) == ["head"], "reasons are searched, too"
    watched.get("filter").fill("")
    watched.get("open-findings").click()
    found = watched.get("finding").first
    expect(found).to_be_visible()
    expect(watched.get("findings")).to_contain_text(IMAGE)
    watched.get("findings").get_by_role("button", name=f"{IMAGE}", exact=False).first.click()
    expect(watched.get("detail").locator("h2 bdi")).to_have_text(IMAGE)


def test_tables_hold_names_as_text_and_no_formula(watched: Tab, runs: dict[str, Run]) -> None:
    watched.show(run="harm")
    ((name, content),) = downloads(watched, "export-csv")
    head, lines = table(content)
    safe = [f"'{layer}" if layer[0] in "=+-@\t\r" else layer for layer in LAYERS]
    assert [line["layer"] for line in lines] == [layer for layer in safe for _ in range(20)]
    np.testing.assert_array_equal(singles(lines, head[-1]), runs["harm"].of("angular_step").T.ravel())
    assert sum(layer.startswith("'") for layer in safe) == 3
    watched.show(run="=1+1")
    ((name, content),) = downloads(watched, "export-csv")
    assert {line["run"] for line in table(content)[1]} == {"'=1+1"}
    assert name == "sphere__1_1_angular_step.csv"


def test_a_picture_of_hostile_names(watched: Tab) -> None:
    watched.show(run="harm", vs="harm <b>too</b>", layer=LINK)
    watched.until(watched.curves)
    ((name, content),) = downloads(watched, "export-png")
    assert name == "sphere_harm_vs_harm_b_too_b__angular_step.png" or name.endswith("angular_step.png")
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
