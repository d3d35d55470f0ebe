"""The page without a mouse, without eyes for colours, and read aloud."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from browser_runs import LAYERS, QUANTITIES
from browser_tab import Tab, hex_colour
from lightning_sphere.quantities import QUANTITIES as TABLE

FOCUSED = """() => {
    const element = document.activeElement;
    const near = [element, element.nextElementSibling, element.parentElement?.closest("label, .segments")];
    const outlined = ({ outlineStyle, outlineWidth }) => outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
    const drawn = (one) => one?.checkVisibility({ opacityProperty: true });
    const seen = near.some((one) => drawn(one) && outlined(getComputedStyle(one)));
    return [element.dataset.testid ?? element.tagName, seen];
}"""
CONTROLS = (
    "run vs quantity scale-log x-axis-step smooth export-csv export-png copy-link theme follow fastest slowest "
    "open-findings filter kind-row kind-group kind-whole kind-joint kind-none only-invariant reset-zoom layers "
    "detail-close facts"
)
"""In the order of the page."""
TEXTS = """() => {
    const parse = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
    const skipped = "option, style, script, .unseen, :disabled";
    const seen = { opacityProperty: true, visibilityProperty: true };
    const over = (top, below) => below.map((part, n) => top[n] * top[3] + part * (1 - top[3]));
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const { parentElement: element, textContent } = walker.currentNode;
        if (!textContent.trim() || !element.checkVisibility(seen) || element.closest(skipped)) continue;
        const box = element.getBoundingClientRect();
        if (!box.width || !box.height) continue;
        const svg = element.ownerSVGElement;
        const style = getComputedStyle(element);
        const chain = [];
        for (let one = element; one; one = one.parentElement) chain.unshift(one);
        let below = [255, 255, 255];
        let opacity = 1;
        for (const one of chain) {
            const { backgroundColor, opacity: own } = getComputedStyle(one);
            below = over(parse(backgroundColor), below);
            opacity *= Number(own);
        }
        const colour = parse(svg ? style.fill : style.color);
        const strike = element.closest("label")?.querySelector("input:disabled");
        const front = over([...colour.slice(0, 3), colour[3] * opacity], below);
        if (!strike) found.push({ text: textContent.trim().slice(0, 40), front, below });
    }
    return found;
}"""

UNNAMED = """() => {
    const text = (one) => one?.textContent.trim();
    const named = (one) => one.getAttribute("aria-label") || text(one.closest("label")) || text(one);
    const silent = ["status", "group"];
    return [...document.querySelectorAll("button, input, select, [role], [tabindex='0']")]
        .filter((one) => one.checkVisibility() && !named(one) && !silent.includes(one.getAttribute("role")))
        .map((one) => one.outerHTML.slice(0, 100));
}"""


def test_every_control_is_reached_by_tab_and_its_focus_is_seen(tab: Tab) -> None:
    tab.show(run="first", layer="head", zoom="5,50")
    tab.until(tab.curves)
    tab.get("run").focus()
    reached: dict[str, bool] = {}
    for _ in range(60):
        name, seen = tab.frame.evaluate(FOCUSED)
        if name in reached:
            break
        reached[name] = seen
        tab.page.keyboard.press("Tab")
        if tab.frame.evaluate("!document.hasFocus()"):
            break
    expected = CONTROLS.split()
    assert [name for name in reached if name in expected] == expected, "in the order of the page"
    assert not [name for name, seen in reached.items() if name in expected and not seen]


def test_layers_are_chosen_by_the_keyboard(dashboard: Tab) -> None:
    keys, options = dashboard.page.keyboard, dashboard.get("layers")
    expect(options).to_have_attribute("role", "listbox")

    def active() -> str | None:
        place = options.get_attribute("aria-activedescendant")
        return place and dashboard.frame.locator(f"#{place}").get_attribute("data-layer")

    options.focus()
    assert active() == LAYERS[0]
    pressed = ("ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowDown", "Home", "ArrowUp")
    for key, expected in zip(pressed, (1, 2, 1, 7, 7, 0, 0), strict=True):
        keys.press(key)
        assert active() == LAYERS[expected], key
    keys.type("att")
    assert active() == "attention.qkv"
    assert dashboard.get("detail").is_hidden(), "nothing opens by itself"
    keys.press("Enter")
    expect(dashboard.get("detail")).to_be_visible()
    expect(dashboard.layer("attention.qkv")).to_have_attribute("aria-selected", "true")
    keys.press("ArrowDown")
    expect(dashboard.get("detail").locator("h2 bdi")).to_have_text("attention.out")
    keys.press("Escape")
    expect(dashboard.get("detail")).to_be_hidden()
    expect(options).to_be_focused()
    keys.press("Enter")
    expect(dashboard.get("detail")).to_be_visible()
    dashboard.get("detail-close").focus()
    keys.press("Enter")
    expect(dashboard.get("detail")).to_be_hidden()
    expect(options).to_be_focused()


def test_choices_and_findings_by_the_keyboard(dashboard: Tab) -> None:
    keys = dashboard.page.keyboard
    dashboard.get("scale-log").focus()
    keys.press("ArrowRight")
    assert dashboard.until(lambda: dashboard.heatmap().log, lambda log: not log) is False
    dashboard.get("kind-none").focus()
    keys.press("Space")
    assert "head" not in dashboard.until(dashboard.rows, lambda rows: "head" not in rows)
    expect(dashboard.get("kind-none")).to_have_attribute("aria-pressed", "false")
    dashboard.get("open-findings").focus()
    keys.press("Enter")
    expect(dashboard.frame.get_by_role("dialog", name="Findings")).to_be_visible()
    keys.press("Escape")
    expect(dashboard.get("findings")).to_be_hidden()
    expect(dashboard.get("open-findings")).to_be_focused()


def test_everything_has_a_role_and_a_name(tab: Tab) -> None:
    tab.show(run="first", vs="second", layer="stem.conv")
    frame = tab.frame
    roles: list[tuple[Any, str]] = [
        *(("combobox", name) for name in ("Run", "Compare with", "Quantity", "Theme")),
        *(("radio", name) for name in ("Log", "Linear", "Step", "Time")),
        *(("group", name) for name in ("Colours", "X axis", "Export", "Kinds of invariance that are shown")),
        *(("button", name) for name in ("CSV", "PNG", "Copy link", "Close layer")),
        *(("region", name) for name in ("Layers by steps", "Opened layer", "About this layer", "Findings")),
        *(("checkbox", name) for name in ("Follow", "only invariant")),
        *(("slider", "Chart smoothing"), ("listbox", "Layers, in network order")),
    ]
    for role, name in roles:
        expect(frame.get_by_role(role, name=name, exact=True)).to_have_count(1)
    expect(frame.get_by_role("searchbox", name=re.compile("^Filter layers"))).to_have_count(1)
    expect(frame.get_by_role("heading", level=1)).to_have_count(1)
    expect(frame.get_by_role("button", name=re.compile("row"), pressed=True)).to_have_count(1)
    option = frame.get_by_role("option", name="stem.conv, scale-invariant per row (filter)", selected=True)
    expect(option).to_have_attribute("aria-setsize", "9")
    for key in ("a", "b", "difference"):
        image = tab.get(f"legend-{key}").get_by_role("img")
        expect(image).to_have_attribute("aria-label", re.compile(r"^Colours: angular step.*, log.*, from .+ to .+$"))
    assert frame.evaluate(UNNAMED) == []
    expect(tab.get("status")).to_have_attribute("aria-live", "polite")
    expect(tab.get("count")).to_have_attribute("aria-live", "polite")
    assert frame.evaluate("document.documentElement.lang") == "en"


def luminance(colour: Any) -> float:
    """Relative luminance of sRGB, 0 to 255 each."""
    share = np.asarray(colour, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out(tab: Tab, theme: str) -> None:
    for state in ({"layer": "stage1.conv"}, {"vs": "second", "layer": "stem.conv", "kind": "row,group,whole,joint"}):
        tab.show(run="first", theme=theme, quantity="norm", **state)
        tab.until(tab.curves)
        texts = tab.frame.evaluate(TEXTS)
        tab.get("open-findings" + ("-a" if "vs" in state else "")).click()
        texts += tab.frame.evaluate(TEXTS)
        assert len(texts) > 100
        assert {"weight norm", "nominal lr", "Findings"} <= {text["text"] for text in texts}
        faint = {}
        for one in texts:
            light, dark = sorted((luminance(one["front"]), luminance(one["below"])), reverse=True)
            if (contrast := (light + 0.05) / (dark + 0.05)) < 4.5:
                faint[one["text"]] = round(contrast, 2)
        assert not faint


MACHADO: dict[str, Any] = {  # severity 1, on linear RGB (Machado, Oliveira and Fernandes 2009)
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(colours: np.ndarray, matrix: Any) -> np.ndarray:
    """CIELAB of sRGB ``[n, 3]`` (0 to 255) as somebody with this eye sees it."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(matrix).T, 0, 1)
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    xyz = seen @ to_xyz.T / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart_by_all_eyes(tab: Tab, theme: str) -> None:
    tab.show(run="first", vs="second", theme=theme)
    drawn = tab.heatmaps()

    def seen(key: str, matrix: Any) -> np.ndarray:
        places, colours = zip(*((at, hex_colour(colour)) for at, colour in drawn[key].colours), strict=True)
        fine = np.linspace(0, 1, 41)
        return lab(np.stack([np.interp(fine, places, np.array(colours)[:, part]) for part in range(3)], axis=1), matrix)

    sign = -1 if theme == "light" else 1
    for eye, matrix in MACHADO.items():
        lightness = seen("a", matrix)[:, 0]
        assert (np.diff(lightness) > 0).all(), eye
        assert lightness[-1] - lightness[0] > 60, eye
        both = seen("difference", matrix)
        assert (np.diff(sign * both[20:, 0]) > 0).all(), "away from the middle the lightness changes one way"
        assert (np.diff(sign * both[20::-1, 0]) > 0).all(), eye
        apart = np.linalg.norm(both - both[::-1], axis=1)
        assert (apart[[0, 5, 10]] > 20).all(), "more and less do not look alike"


def test_units_are_everywhere(dashboard: Tab) -> None:
    dashboard.layer("stem.conv").click()
    dashboard.until(dashboard.curves)
    assert set(QUANTITIES) <= set(TABLE)
    for name in QUANTITIES:
        quantity = TABLE[name]
        title = f"{quantity.title} ({quantity.unit})" if quantity.unit else quantity.title
        dashboard.get("quantity").select_option(name)
        expect(dashboard.get("legend-a").locator(".legend-title span").first).to_have_text(title)
        bar = dashboard.get("legend-a").get_by_role("img")
        expect(bar).to_have_attribute("aria-label", re.compile(re.escape(f"Colours: {title}, ")))
        written = dashboard.until(
            lambda: dashboard.layout()["yaxis"]["title"]["text"].replace("<br>", " ").replace("&gt;", ">"),
            lambda text, title=title: text == title,
        )
        assert written == title
        assert dashboard.get("quantity").locator("option:checked").text_content() == title
        if name != "lr":
            assert dashboard.until(lambda: dashboard.layout().get("yaxis2")) is not None
            assert dashboard.layout()["yaxis2"]["title"]["text"] == "nominal lr"
    assert dashboard.layout()["xaxis"]["title"]["text"] == "step"
    expect(dashboard.frame.locator(".axis-title")).to_have_text("step")
    expect(dashboard.get("fastest")).to_contain_text(re.compile(r"[\d.]+ rad \([\d.]+°\)"))
    dashboard.frame.get_by_text("Time", exact=True).click()
    expect(dashboard.frame.locator(".axis-title")).to_have_text("relative time (s)")
    written = dashboard.until(lambda: dashboard.layout()["xaxis"]["title"]["text"], lambda text: text != "step")
    assert written == "relative time (s)"
