"""The controls: choices, and the theme, on what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

from browser_runs import LAYERS, LONG, QUANTITIES, World
from browser_tab import Tab, hex_colour
from lightning_sphere.quantities import QUANTITIES as KNOWN

MENU = "Menu for changing light or dark theme"


def brightness(colour: np.ndarray) -> float:
    """Relative luminance of sRGB, 0 to 1."""
    share = np.asarray(colour, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """As the accessibility guidelines define it, 1 to 21."""
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def looks(tab: Tab) -> dict[str, np.ndarray]:
    """Colours as they are on the screen, and as plotly has them."""
    curves, layout = tab.until(tab.curves), tab.layout()
    return {
        "page": np.median(tab.pixels("body")[100:, 3], axis=0),
        "plot": np.median(tab.pixels("#detail-plot").reshape(-1, 3), axis=0),
        "text": hex_colour(layout["font"]["color"]),
        "axis": hex_colour(layout["xaxis"]["tickfont"]["color"]),
        "curve": hex_colour(curves["raw-a"].colour),
        "prediction": hex_colour(curves["predicted-a"].colour),
        "rate": hex_colour(curves["rate-a"].colour),
    }


def themed(tab: Tab) -> str:
    return str(tab.frame.evaluate("document.documentElement.dataset.theme"))


def assert_theme(tab: Tab, theme: str) -> dict[str, np.ndarray]:
    tab.until(lambda: themed(tab), lambda found: found == theme)
    dark = theme == "dark"
    text = lambda: hex_colour(tab.layout()["font"]["color"])  # noqa: E731
    tab.until(text, lambda colour: (brightness(colour) > 0.5) == dark)
    found = looks(tab)
    for ground in ("page", "plot"):
        assert brightness(found[ground]) < 0.05 if dark else brightness(found[ground]) > 0.8, (ground, found[ground])
    for drawn in ("text", "axis"):
        assert contrast(found[drawn], found["plot"]) > 4.5, drawn
    for drawn in ("curve", "prediction", "rate"):
        assert contrast(found[drawn], found["plot"]) > 3.0, drawn
    return found


def test_light_and_dark(tab: Tab) -> None:
    tab.show(run="first", layer="stem.conv", smooth=0, follow=0, theme="light")
    light = assert_theme(tab, "light")
    before = tab.heatmap()
    tab.get("theme").select_option("dark")
    dark = assert_theme(tab, "dark")
    for name in light:
        assert np.abs(light[name] - dark[name]).max() > 20, name
    np.testing.assert_array_equal(tab.heatmap().z, before.z)
    tab.get("theme").select_option("light")
    assert_theme(tab, "light")


def test_colours_around_zero_fit_the_theme(tab: Tab) -> None:
    """What is 0 has the colour of the ground, more or less, in both."""
    for theme, bright in (("light", True), ("dark", False)):
        tab.show(run="first", quantity="radius_growth", theme=theme)
        middle = hex_colour(tab.heatmap().colours[4][1])
        assert (brightness(middle) > 0.8) if bright else (brightness(middle) < 0.05)


def test_auto_follows_tensorboard(own_tab: Tab) -> None:
    own_tab.visit(run="first", layer="stem.conv", smooth=0, follow=0)
    expect(own_tab.get("theme")).to_have_value("auto")
    assert_theme(own_tab, "light")
    own_tab.page.get_by_role("button", name=MENU).click()
    own_tab.page.get_by_role("menuitem", name="Dark").click()
    expect(own_tab.page.locator("body.dark-mode")).to_have_count(1)
    assert_theme(own_tab, "dark")
    own_tab.get("theme").select_option("light")
    assert_theme(own_tab, "light")
    own_tab.get("theme").select_option("auto")
    assert_theme(own_tab, "dark")
    own_tab.visit(run="first", layer="stem.conv", smooth=0, follow=0)
    assert_theme(own_tab, "dark")
    own_tab.page.get_by_role("button", name=MENU).click()
    own_tab.page.get_by_role("menuitem", name="Light").click()
    assert_theme(own_tab, "light")


def test_every_run_and_every_recorded_quantity_can_be_chosen(dashboard: Tab) -> None:
    options = "(select) => Array.from(select.options, (option) => option.value)"
    assert dashboard.get("run").evaluate(options) == ["first", LONG, "real", "second"]
    chosen = dashboard.get("quantity").evaluate(options)
    assert sorted(chosen) == sorted(QUANTITIES)
    texts = dashboard.get("quantity").evaluate("(select) => Array.from(select.options, (option) => option.text)")
    for name, text in zip(chosen, texts, strict=True):
        assert text == KNOWN[name].title + (f" ({KNOWN[name].unit})" if KNOWN[name].unit else "")


def test_the_newest_run_is_shown_at_first(tab: Tab, world: World) -> None:
    """With the angular step, whose number is the first to ask for."""
    tab.show()
    expect(tab.get("run")).to_have_value("real")
    expect(tab.get("quantity")).to_have_value("angular_step")
    heatmap = tab.heatmap()
    assert heatmap.layers == list(world.real.layers)
    np.testing.assert_allclose(heatmap.z, np.log10(world.real["angular_step"].T.astype(np.float64)), rtol=1e-12)


def test_choosing_another_run_keeps_the_quantity(dashboard: Tab, world: World) -> None:
    dashboard.get("quantity").select_option("norm")
    dashboard.get("run").select_option("second")
    second = world.second
    heatmap = dashboard.until(dashboard.heatmap, lambda drawn: drawn.layers == list(second.schema.layers))
    assert heatmap.title == "weight norm"
    np.testing.assert_allclose(heatmap.z, np.log10(second.of("norm").T.astype(np.float64)), rtol=1e-12)
    expect(dashboard.get("status")).to_contain_text("Step 49")


def test_weights_that_are_not_measured_are_named(dashboard: Tab) -> None:
    unmeasured = dashboard.get("unmeasured")
    expect(unmeasured.locator("summary")).to_have_text("1 weight is not measured")
    unmeasured.locator("summary").click()
    expect(unmeasured.locator("li")).to_be_visible()
    expect(unmeasured.locator("li")).to_have_text("positions no optimizer steps it")
    assert "positions" not in dashboard.rows()
    assert len(dashboard.rows()) == len(LAYERS)


@pytest.mark.parametrize("quantity", ["equilibrium_ratio", "invariance_residual"])
def test_the_legend_has_the_ends_of_the_scale(tab: Tab, quantity: str) -> None:
    """Its marks stand where the colours of these numbers are."""
    tab.show(run="first", quantity=quantity)
    heatmap = tab.heatmap()
    marks = tab.frame.eval_on_selector_all(
        "[data-testid=legend-a] .bar-ticks span",
        "all => all.map((mark) => [mark.textContent, parseFloat(mark.style.left)])",
    )
    assert len(marks) >= 2
    for text, left in marks:
        value = float(text.replace("\u2212", "-"))
        drawn = np.log10(value) if heatmap.log else value
        assert left == pytest.approx(100 * (drawn - heatmap.low) / (heatmap.high - heatmap.low), abs=0.5)
